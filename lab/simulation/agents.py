# SPDX-License-Identifier: Apache-2.0
"""A process of simulated agents: `python -m wirekube.lab.simulation.agents CONFIG`.

CONFIG is a JSON file: {"server": URL, "ca": PATH, "kind": "light" or "whole", "nodes": {NAME: TOKEN or KUBECONFIG PATH}}.
Commands come on standard input, answers go to standard output, one JSON object a line; times are CLOCK_MONOTONIC seconds,
which all processes of a machine share.

    (start)                           {"ready": TIME}             all agents have listed
    {"expect": N}                     {"known": N, "at": TIME}    the last agent knows N nodes with their keys
    {"watch": NAME, "endpoint": E}    {"seen": NAME, "at": [..]}  when each agent, but NAME's own, knew this endpoint
    {"move": NAME, "endpoint": E}     {"moved": NAME, "at": TIME} told the agent of that name, if it is here
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Union

from ...runtime.limits import raise_file_limit
from .light import Decoder, LightAgent
from .wire import Wire

if TYPE_CHECKING:
    from .whole import WholeAgent

AT_ONCE: Final = 40  # agents that start: each makes several TLS sessions

NOT_IN_THE_IMAGE: Final = ("click", "trio")  # httpx loads them where they are, for tests say: 8 MiB

Agent = Union[LightAgent, "WholeAgent"]


class Agents:
    """The agents of this process, and what is asked about them."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._context, self._decoder = ssl.create_default_context(cafile=config["ca"]), Decoder()
        self._agents: dict[str, Agent] = {name: self._agent(config, name, own) for name, own in config["nodes"].items()}
        self._expected: int | None = None
        self._knowing: set[str] = set()
        self._moved: tuple[str, str] = ("", "")
        self._seen: dict[str, float] = {}

    def _agent(self, config: dict[str, Any], name: str, own: str) -> Agent:
        if config["kind"] == "whole":
            for each in NOT_IN_THE_IMAGE:
                sys.modules[each] = None  # type: ignore[assignment]  # which makes an import fail
            from .whole import WholeAgent  # noqa: PLC0415 - after that

            return WholeAgent(name, own, self._changed)
        return LightAgent(name, Wire(config["server"], own, self._context), self._decoder, self._changed)

    async def run(self) -> None:
        """Run until standard input ends."""
        async with asyncio.TaskGroup() as group:
            running = []
            gate = asyncio.Semaphore(AT_ONCE)

            async def start(agent: Agent) -> None:
                async with gate:
                    running.append(group.create_task(agent.run()))
                    await agent.ready.wait()

            starts = [asyncio.create_task(start(agent)) for agent in self._agents.values()]
            await asyncio.gather(*starts)
            _say({"ready": time.monotonic()})
            await self._obey()
            for task in running:
                task.cancel()

    async def _obey(self) -> None:
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            command = json.loads(line)
            if "expect" in command:
                self._expected, self._knowing = command["expect"], set()
            if "watch" in command:
                self._moved, self._seen = (command["watch"], command["endpoint"]), {}
            if "move" in command and (agent := self._agents.get(command["move"])) is not None:
                _say({"moved": command["move"], "at": time.monotonic()})
                agent.move(command["endpoint"])
            for each in self._agents.values():
                self._changed(each)

    def _changed(self, agent: Agent) -> None:
        name, endpoint = self._moved
        if name and agent.name not in self._seen and (agent.name == name or agent.endpoint_seen(name) == endpoint):
            self._seen[agent.name] = time.monotonic()
            if len(self._seen) == len(self._agents):
                _say({"seen": name, "at": [at for who, at in self._seen.items() if who != name]})
                self._moved = ("", "")
        if self._expected is not None and agent.known >= self._expected:
            self._knowing.add(agent.name)
            if len(self._knowing) == len(self._agents):
                _say({"known": self._expected, "at": time.monotonic()})
                self._expected = None


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the agents of the configuration that the command line names."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m wirekube.lab.simulation.agents CONFIG\n")
        return 2
    raise_file_limit()  # three connections each
    asyncio.run(Agents(json.loads(Path(sys.argv[1]).read_text())).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
