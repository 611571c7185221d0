# SPDX-License-Identifier: Apache-2.0
"""Who leads, decided from a Lease as client-go's leader election does; pure, so every method takes the time `now`.

A candidate trusts nobody's clock but its own, and of that only differences:

```
 leader     ├ sent ───────── 10 s without an accepted renewal: it no longer leads ┤
 Lease        └ changed
 others          ├ seen ──────────────────────────── 15 s without a change: theirs to take ┤
```

What is seen cannot come before what was sent, so the leader has always stopped when another one may start, however long
requests are under way and whatever the clocks show, as long as no clock runs faster than another by half. Times in the
Lease are for people.

It is no fence: a request that a leader sent before it stopped may still arrive later. Writes are therefore such that it
does not matter who makes them: deterministic, with a uid or a resource version where an older one could do harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from .objects import Object

RELEASED: Final = 1  # seconds: the API server wants a duration of at least one


@dataclass(frozen=True)
class Timing:
    """How long things last, in seconds; the defaults are those of Kubernetes' own components.

    Attributes:
        lease: without a change for so long, a Lease is anybody's.
        renew: without an accepted renewal for so long, a leader leads no more.
        retry: between two tries.
    """

    lease: int = 15
    renew: float = 10.0
    retry: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what could make two leaders.

        Raises:
            ValueError: retry < renew < lease does not hold.
        """
        if not 0 < self.retry < self.renew < self.lease:
            raise ValueError("a Lease must outlast the renewal's deadline, and that one pause between tries")


@dataclass(frozen=True)
class Record:
    """The content of a Lease.

    Attributes:
        holder: identity of the leader; empty when nobody leads.
        seconds: leaseDurationSeconds; 0 when absent.
        transitions: how often it went from one to another.
        acquired: acquireTime, as it stands there.
        renewed: renewTime, as it stands there.
    """

    holder: str
    seconds: int
    transitions: int
    acquired: str
    renewed: str


@dataclass(frozen=True)
class Claim:
    """What to write.

    Attributes:
        version: resource version that must still be there; None creates the Lease.
        record: its new content.
    """

    version: str | None
    record: Record


class Candidate:
    """One that wants to lead.

    Args:
        identity: differs from that of every other living candidate; one that is dead may leave its own to us.
        timing: the same for all candidates.

    Attributes:
        holder: who leads, as far as we have seen; empty for nobody.
    """

    def __init__(self, identity: str, timing: Timing | None = None) -> None:
        self.identity = identity
        self.timing = timing or Timing()
        self.holder = ""
        self._record: Record | None = None
        self._version: str | None = None  # None: there is no Lease, or we have not looked yet
        self._changed_at = 0.0  # when we saw _record first
        self._renewed_at: float | None = None  # when our last accepted claim was sent; None: we do not lead

    def saw(self, lease: Object | None, now: float) -> None:
        """Take what was read; None when there is no Lease.

        A Lease that somebody deletes is no news of its holder: its time goes on.
        """
        self._version = None if lease is None else str(lease["metadata"].get("resourceVersion") or "")
        if lease is None:
            return
        record = record_of(lease)
        if record != self._record:
            self._record, self._changed_at = record, now
        self.holder = record.holder
        if record.holder != self.identity:
            self._renewed_at = None

    def claim(self, now: float, wall: str) -> Claim | None:
        """Return what to write now to lead, or to go on leading; None while the Lease is somebody else's.

        Args:
            now: monotonic seconds.
            wall: the time for people, as `acquireTime` and `renewTime` have it: MicroTime, exactly six digits.
        """
        old = self._record
        if old is None:
            return Claim(self._version, Record(self.identity, self.timing.lease, 0, wall, wall))
        if old.holder == self.identity:
            return Claim(
                self._version, Record(self.identity, self.timing.lease, old.transitions, old.acquired or wall, wall)
            )
        if old.holder and now < self._changed_at + (old.seconds or self.timing.lease):
            return None
        return Claim(self._version, Record(self.identity, self.timing.lease, old.transitions + 1, wall, wall))

    def confirmed(self, lease: Object, sent: float, now: float) -> None:
        """Take the server's answer to a claim that was sent at `sent`."""
        self.saw(lease, now)
        if self.holder == self.identity:
            self._renewed_at = sent

    def resign(self, wall: str) -> Claim | None:
        """Lead no more; return what to write so that the next one need not wait, None if the Lease is not ours."""
        self._renewed_at = None
        if self._record is None or self._record.holder != self.identity or self._version is None:
            return None
        return Claim(self._version, Record("", RELEASED, self._record.transitions, wall, wall))

    def left(self, now: float) -> float:
        """Return the seconds for which we still lead without another renewal; 0 or less when we do not."""
        return 0.0 if self._renewed_at is None else self._renewed_at + self.timing.renew - now

    def leads(self, now: float) -> bool:
        """Whether we lead."""
        return self.left(now) > 0


def record_of(lease: Object) -> Record:
    """Read a Lease; whatever is malformed or absent counts as empty."""
    spec = lease.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    return Record(
        holder=_text(spec.get("holderIdentity")),
        seconds=max(0, _number(spec.get("leaseDurationSeconds"))),
        transitions=_number(spec.get("leaseTransitions")),
        acquired=_text(spec.get("acquireTime")),
        renewed=_text(spec.get("renewTime")),
    )


def spec_of(record: Record) -> dict[str, Any]:
    """Return the Lease's spec for a record: all fields, so that it serves as a merge patch."""
    return {
        "holderIdentity": record.holder,
        "leaseDurationSeconds": record.seconds,
        "leaseTransitions": record.transitions,
        "acquireTime": record.acquired,
        "renewTime": record.renewed,
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
