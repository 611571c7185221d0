# SPDX-License-Identifier: Apache-2.0
"""One line for each step with the time it took, as it ends; and the sum of it, as a budget."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class Step:
    """A finished step: when it began and how long it took, in seconds; steps may overlap."""

    name: str
    begin: float
    seconds: float


class Progress:
    """Prints steps.

    Args:
        out: where to; None prints nothing.
    """

    def __init__(self, out: TextIO | None = sys.stderr) -> None:
        self._out, self._begin, self._lock = out, time.monotonic(), threading.Lock()
        self.steps: list[Step] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the first moment."""
        return time.monotonic() - self._begin

    @contextmanager
    def step(self, name: str, said: str = "") -> Iterator[list[str]]:
        """Time a step. What the body appends to the list stands in the line; a step that fails prints none.

        Args:
            name: of the step, in the budget.
            said: the words of the line, the name if empty.
        """
        begin, details = self.elapsed, list[str]()
        yield details
        step = Step(name, begin, self.elapsed - begin)
        with self._lock:
            self.steps.append(step)
        self.say(f"{said or name}{': ' if details else ''}{', '.join(details)} ({step.seconds:.1f} s)")

    def say(self, line: str) -> None:
        """Print a line with the time since the beginning."""
        if self._out is not None:
            with self._lock:
                print(f"[{self.elapsed:6.1f} s] {line}", file=self._out, flush=True)
