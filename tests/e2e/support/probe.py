# SPDX-License-Identifier: Apache-2.0
"""What a probe pod does on its node; run as `python3 -c SOURCE COMMAND ARGUMENTS` in the project's image.

The answer goes into the pod's termination message, which the kubelet reports to the API server: that works from behind
any NAT, where `kubectl logs` and `exec` do not. A message has at most 4096 bytes, so it is compressed.

    ping SECONDS ADDRESS...    {address: [Unix time of the first answer, its round trip in s] or null}
    gaps SECONDS ADDRESS...    {address: longest time in s without an answer, from the first one on}
    forward PORT HOST PORT     passes TCP connections on, as a load balancer does; until it is ended
    fetch SECONDS URL...       {url: body or null}
    state                      the node's interfaces, addresses, rules, routes, nft tables and network sysctls
    process TEXT               {fields of /proc/PID/status, and "root": mount options of its root} of the process whose
                               command line has the text; with hostPID
    commands                   names of all running programs; with hostPID
    cost SECONDS TEXT...       {text: {"cpu": share of one core over that time, "rss": bytes}}; with hostPID
    signal NAME TEXT           sends a signal to those processes, and returns their number; with hostPID
    rename OLD NEW             renames a file of the host; with hostPID
    unregistered SECONDS NODE TEXT  waits until the API has no such Node, and ends those processes; with hostPID and token
"""

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib

MESSAGE = "/dev/termination-log"
VOLATILE = ("veth", "lxc", "cali", "cni0")  # come and go with pods


def ping(seconds, *addresses):
    """Send an echo request to each address ten times a second until it has answered once."""
    sockets = {4: icmp(4, addresses), 6: icmp(6, addresses)}
    ready = [sock for sock in sockets.values() if sock]
    found, end, sequence = dict.fromkeys(addresses), time.monotonic() + float(seconds), 0
    while None in found.values() and time.monotonic() < end:
        sequence += 1
        for number, address in enumerate(addresses):
            version = 6 if ":" in address else 4
            if found[address] is None and sockets[version]:
                with contextlib.suppress(OSError):  # no route yet
                    sockets[version].sendto(echo(version, number, sequence), (address, 0))
        until = time.monotonic() + 0.1
        while (left := until - time.monotonic()) > 0:
            for sock in select.select(ready, [], [], left)[0]:
                hear(sock, addresses, found)
    return found


def gaps(seconds, *addresses):
    """Send an echo request to each address twenty times a second, all the time."""
    sock, begin, sequence = icmp(4, addresses), time.monotonic(), 0
    times = {address: [] for address in addresses}
    while (now := time.monotonic()) - begin < float(seconds):
        sequence += 1
        for number, address in enumerate(addresses):
            with contextlib.suppress(OSError):
                sock.sendto(echo(4, number, sequence), (address, 0))
        while (left := now + 0.05 - time.monotonic()) > 0:
            if select.select([sock], [], [], left)[0]:
                heard = dict.fromkeys(addresses)
                hear(sock, addresses, heard)
                for address in (address for address, answer in heard.items() if answer):
                    times[address].append(time.monotonic())
    end = time.monotonic()
    return {
        address: round(max(later - one for one, later in zip(each, [*each[1:], end], strict=True)), 2) if each else None
        for address, each in times.items()
    }


def forward(port, host, target):
    """Serve until the pod is deleted."""

    async def copy(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        try:
            there, back = await asyncio.open_connection(host, int(target))
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, back), copy(there, writer))

    async def main():
        async with await asyncio.start_server(serve, "0.0.0.0", int(port)) as server:  # noqa: S104
            await server.serve_forever()

    asyncio.run(main())


def icmp(version, addresses):
    """Return a raw socket, or None when no address has that version."""
    if not any((":" in address) == (version == 6) for address in addresses):
        return None
    if version == 6:
        return socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


def echo(version, number, sequence):
    """Return an echo request: the pod's process and the address's number as identifier, the time as payload."""
    kind = 128 if version == 6 else 8
    identifier = (os.getpid() * 64 + number) & 0xFFFF
    payload = struct.pack("!d", time.time())
    message = struct.pack("!BBHHH", kind, 0, 0, identifier, sequence & 0xFFFF) + payload
    if version == 6:
        return message  # the kernel fills in the checksum
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total >> 16) + (total & 0xFFFF)
    return message[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + message[4:]


def hear(sock, addresses, found):
    """Note an answer."""
    data, sender = sock.recvfrom(2048)
    if sock.family == socket.AF_INET:
        data = data[(data[0] & 15) * 4 :]
    if len(data) < 16 or data[0] not in (0, 129):
        return
    number = (struct.unpack_from("!H", data, 4)[0] - os.getpid() * 64) & 0xFFFF
    if number < len(addresses) and addresses[number] == sender[0] and found[addresses[number]] is None:
        now = time.time()
        found[addresses[number]] = [now, now - struct.unpack_from("!d", data, 8)[0]]


def fetch(seconds, *urls):
    """Get each URL, again and again until it answers or the time is up."""
    end, found = time.monotonic() + float(seconds), dict.fromkeys(urls)
    while None in found.values() and time.monotonic() < end:
        for url in (url for url in urls if found[url] is None):
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - a test's own URLs
                    found[url] = answer.read(200_000).decode(errors="replace")[:200]
            except OSError as error:
                last = error
                time.sleep(0.1)
    return found if None not in found.values() else {**found, "error": repr(last)}


def state():
    """Return what an uninstall must leave as it was."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        links = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
        stable = {index: name for index, name in links.items() if not name.startswith(VOLATILE)}
        addresses = [
            f"{stable[a['index']]} {a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}"
            for a in ip.get_addr()
            if a["index"] in stable
        ]
        routes, rules = [], []
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in ip.get_routes(family=family):
                device = route.get_attr("RTA_OIF")
                if device is None or device in stable:
                    words = (
                        route.get_attr("RTA_TABLE"),
                        route.get_attr("RTA_DST"),
                        route["dst_len"],
                        route["type"],
                        stable.get(device),
                        route.get_attr("RTA_GATEWAY"),
                        route.get_attr("RTA_PREFSRC"),
                        route["proto"],
                    )
                    routes.append(" ".join(map(str, words)))
            for rule in ip.get_rules(family=family):
                words = (
                    rule["family"],
                    rule.get_attr("FRA_PRIORITY"),
                    rule.get_attr("FRA_FWMARK"),
                    rule.get_attr("FRA_TABLE"),
                    rule["flags"],
                    rule.get_attr("FRA_SRC"),
                    rule.get_attr("FRA_DST"),
                    rule.get_attr("FRA_SUPPRESS_PREFIXLEN"),
                )
                rules.append(" ".join(map(str, words)))
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout.splitlines()
    files = [
        str(p) for folder in ("/host/run/wirekube", "/host/var/lib/wirekube") for p in pathlib.Path(folder).rglob("*")
    ]
    return {
        "links": sorted(stable.values()), "addresses": sorted(addresses), "routes": sorted(routes), "rules": sorted(rules),
        "tables": sorted(tables), "sysctls": sysctls(stable.values()), "files": sorted(files),
    }  # fmt: skip


def sysctls(names):
    """Return the settings of these interfaces, with those that all have once only."""
    found = {}
    for family in ("ipv4", "ipv6"):
        for name in ("all", "default", *names):
            for path in pathlib.Path(f"/proc/sys/net/{family}/conf/{name}").glob("*"):
                if path.is_file() and "stable_secret" not in path.name and "mtu" not in path.name:
                    try:
                        found[f"{family}/{name}/{path.name}"] = path.read_text().strip()
                    except OSError:
                        continue
    return found


def pids(text):
    """Return the processes whose command line has the text, ourselves left out."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line and "python3 -c" not in line:
                found.append(int(entry.name))
    return sorted(found)


def commands():
    """Return the names of all programs that run."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            found.add(path.read_text().strip())
    return sorted(found)


def process(text):
    """Describe the first such process."""
    path = pathlib.Path(f"/proc/{pids(text)[0]}")
    fields = dict(line.split(":\t", 1) for line in (path / "status").read_text().splitlines() if ":\t" in line)
    mounts = (line.split() for line in (path / "mountinfo").read_text().splitlines())
    options = next(words[5] for words in mounts if words[4] == "/")
    kept = ("Uid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "VmRSS")
    return {key: fields[key].strip() for key in kept if key in fields} | {"root": options}


def cost(seconds, *texts):
    """Measure the first process with each text."""
    paths = {text: pathlib.Path(f"/proc/{pids(text)[0]}") for text in texts}

    def ticks(path):
        fields = (path / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before, begin = {text: ticks(path) for text, path in paths.items()}, time.monotonic()
    time.sleep(float(seconds))
    scale, page = os.sysconf("SC_CLK_TCK") * (time.monotonic() - begin), os.sysconf("SC_PAGE_SIZE")
    return {
        text: {
            "cpu": (ticks(path) - before[text]) / scale,
            "rss": int((path / "statm").read_text().split()[1]) * page,
        }
        for text, path in paths.items()
    }


def send(name, text):
    """Send a signal to all such processes."""
    found = pids(text)
    for pid in found:
        os.kill(pid, signal.Signals[name])
    return len(found)


def rename(old, new):
    """Rename a file of the host, seen through its first process."""
    pathlib.Path(f"/proc/1/root{old}").rename(f"/proc/1/root{new}")
    return new


def unregistered(seconds, node, text):
    """Wait for the end of a Node, then end processes; their supervisor starts them again."""
    folder = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
    trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    url = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}/api/v1/nodes/{node}"
    headers, end = {"Authorization": f"Bearer {(folder / 'token').read_text()}"}, time.monotonic() + float(seconds)
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=2, context=trust).close()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return send("SIGTERM", text)
        except OSError:
            pass  # asked again
        time.sleep(0.2)
    return 0


COMMANDS = {
    "ping": ping,
    "gaps": gaps,
    "forward": forward,
    "fetch": fetch,
    "state": state,
    "process": process,
    "commands": commands,
    "cost": cost,
    "signal": send,
    "rename": rename,
    "unregistered": unregistered,
}

if __name__ == "__main__":
    answer = json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:]))
    pathlib.Path(MESSAGE).write_bytes(base64.b85encode(zlib.compress(answer.encode(), 9)))
