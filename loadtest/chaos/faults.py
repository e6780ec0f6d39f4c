"""What is done to the system, what callers may see of it, and in which order it happens."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["worker", "gateway", "broker", "models", "load"]

PROCESSES: tuple[Role, ...] = ("worker", "gateway", "broker")
COUNT: dict[Role, int] = {"worker": 2, "gateway": 2, "broker": 1, "models": 3, "load": 2}
"""How many there are of each that something can happen to."""

FIRST_AT = 3.0
"""Seconds of load before the first fault, to know how much is answered without one."""

_QUIET = (1.5, 2.5)  # seconds between two faults
_PAIR_EVERY = 4  # one fault in so many comes with another of another role
LAST_BEFORE_END = 4.0
"""Seconds the load goes on after the last fault began, at least."""


class Way(StrEnum):
    """How a request comes in."""

    HTTP = "http"
    GRPC = "grpc"
    NATS = "nats"


CONNECTION = "connection"
"""The reason of a request whose connection ended before its answer."""

FRONT = frozenset((Way.HTTP, Way.GRPC))
EVERY = frozenset(Way)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: as the reports have it.
        role: what it is done to.
        title: what happens.
        lasts: shortest and longest time in seconds until it is undone.
        back: about how many seconds until everything is ready again after that, on a small machine.
        allows: reasons with which requests may be refused meanwhile; all others that are under way have to be
            answered as if nothing had happened.
        ways: on which ways in.
        keyed: whether that goes for requests with an idempotency key too.
        after: for how many seconds after it was undone it still allows that.
    """

    name: str
    role: Role
    title: str
    lasts: tuple[float, float]
    back: float = 0.0
    allows: frozenset[str] = field(default_factory=frozenset)
    ways: frozenset[Way] = FRONT
    keyed: bool = True
    after: float = 0.0


_BROKER_GONE = frozenset(("bus_unavailable",))
# It closes its queues before its connections: publishers are told that nobody takes the message.
_BROKER_GOES = frozenset((*_BROKER_GONE, "no_worker"))
_FULL = frozenset(("queue_full", "wait_too_long"))

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(name="worker-kill", role="worker", title="SIGKILL, started again", lasts=(0.2, 1.5), back=1.5),
        Fault(
            name="worker-restart", role="worker", title="SIGTERM, started again", lasts=(0.0, 0.0), back=1.5
        ),
        Fault(name="worker-pause", role="worker", title="SIGSTOP, SIGCONT", lasts=(1.0, 4.0)),
        Fault(name="worker-cut", role="worker", title="link to the broker cut", lasts=(0.5, 4.0)),
        Fault(name="worker-stall", role="worker", title="link to the broker stalled", lasts=(0.5, 4.0)),
        Fault(name="worker-slow", role="worker", title="link to the broker slowed down", lasts=(1.0, 3.0)),
        Fault(
            name="gateway-kill",
            role="gateway",
            title="SIGKILL, started again",
            lasts=(0.2, 1.5),
            back=1.5,
            allows=frozenset((CONNECTION,)),
            keyed=False,
        ),
        Fault(
            name="gateway-restart", role="gateway", title="SIGTERM, started again", lasts=(0.0, 0.0), back=5.0
        ),
        Fault(name="gateway-pause", role="gateway", title="SIGSTOP, SIGCONT", lasts=(0.5, 3.0)),
        Fault(
            name="gateway-cut",
            role="gateway",
            title="link to the broker cut",
            lasts=(0.3, 2.0),
            allows=_BROKER_GONE,
            after=2.0,
        ),
        Fault(name="gateway-stall", role="gateway", title="link to the broker stalled", lasts=(0.5, 3.0)),
        Fault(name="gateway-slow", role="gateway", title="link to the broker slowed down", lasts=(1.0, 3.0)),
        Fault(
            name="broker-kill",
            role="broker",
            title="SIGKILL, started again",
            lasts=(0.1, 1.5),
            back=0.5,
            allows=_BROKER_GONE,
            after=3.0,
        ),
        Fault(
            name="broker-restart",
            role="broker",
            title="SIGTERM, started again",
            lasts=(0.0, 1.0),
            back=0.5,
            allows=_BROKER_GOES,
            ways=EVERY,
            after=3.0,
        ),
        Fault(name="broker-pause", role="broker", title="SIGSTOP, SIGCONT", lasts=(0.5, 3.0)),
        Fault(name="swap", role="models", title="a model gets a new version", lasts=(0.0, 0.0), back=1.0),
        Fault(
            name="poison",
            role="load",
            title="a request that kills its worker",
            lasts=(0.0, 0.0),
            back=7.0,
            # It takes one worker after the other: for a moment the queue stands still.
            allows=frozenset(("wait_too_long",)),
            after=1.0,
        ),
        Fault(
            name="burst",
            role="load",
            title="more at once than is taken",
            lasts=(0.0, 0.0),
            back=2.5,
            allows=_FULL,
            ways=EVERY,
            after=1.0,
        ),
    )
}

# What must not come together: two of these at once could leave no worker, or kill a request's third one.
_ALONE = frozenset(("poison",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A fault to come.

    Attributes:
        at: so many seconds after the load began, or later when the round before has not ended.
        round: faults of one round overlap, those of two never do.
        fault: name of its kind.
        target: which of its role, from 0.
        lasts: seconds until it is undone.
    """

    at: float
    round: int
    fault: str
    target: int
    lasts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A fault that was caused; times are of `time.monotonic`.

    Attributes:
        fault: name of its kind.
        target: which of its role.
        began: when it was caused.
        undone: when it was undone, as far as that can be done from outside: a process was started again.
        until: when it may have no effect on requests any more: all processes are ready again, and some time
            has passed where the kind allows that.
        model, version: what is served by all workers from then on, where it was swapped.
    """

    fault: str
    target: int
    began: float
    undone: float
    until: float
    model: str = ""
    version: int = 0

    def touches(self, began: float, ended: float) -> bool:
        """Whether something that lasted from `began` to `ended` may have been affected."""
        return began <= self.until and ended >= self.began


def schedule(seed: int, seconds: float, *, faults: tuple[str, ...] = tuple(FAULTS)) -> list[Planned]:
    """The faults of a run: the same for the same arguments, on any machine.

    Every kind comes once before any comes again. One in four comes with a second one of another role.

    Args:
        seed: any number.
        seconds: how long the load lasts; the last fault leaves it time to recover.
        faults: the kinds to choose from.
    """
    random = Random(seed)
    planned: list[Planned] = []
    deck: list[str] = []
    at, rounds = FIRST_AT, 0
    while at < seconds - LAST_BEFORE_END:
        if not deck:
            deck = random.sample(faults, len(faults))
        rounds += 1
        first = _plan(random, at, rounds, deck.pop())
        planned.append(first)
        end = _end(first)
        if rounds % _PAIR_EVERY == 0 and (second := _companion(random, first, deck)):
            planned.append(second)
            end = max(end, _end(second))
        at = end + random.uniform(*_QUIET)
    return planned


def _companion(random: Random, first: Planned, deck: list[str]) -> Planned | None:
    """Take a second fault from the deck, to begin while the first one lasts; None when none fits."""
    role = FAULTS[first.fault].role
    fitting = [name for name in deck if FAULTS[name].role != role]
    if first.fault in _ALONE or not (fitting := [name for name in fitting if name not in _ALONE]):
        return None
    name = random.choice(fitting)
    deck.remove(name)
    return _plan(random, first.at + random.uniform(0.2, 0.8) * first.lasts, first.round, name)


def _end(planned: Planned) -> float:
    return planned.at + planned.lasts + FAULTS[planned.fault].back


def _plan(random: Random, at: float, number: int, name: str) -> Planned:
    fault = FAULTS[name]
    return Planned(
        at=round(at, 3),
        round=number,
        fault=name,
        target=random.randrange(COUNT[fault.role]),
        lasts=round(random.uniform(*fault.lasts), 3),
    )
