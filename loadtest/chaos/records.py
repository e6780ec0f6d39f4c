"""What clients tell of their requests: one line of JSON each, when it has ended."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from loadtest.chaos.faults import Way

GRACE = {Way.HTTP: 6.0, Way.GRPC: 6.0, Way.NATS: 15.0}
"""Seconds a request may end after its deadline.

Gateways watch deadlines, and none is stopped for so long. A raw client hears of it from a worker: when the
request lies in one that was killed by another request, after as many deliveries as that is given.
"""


class Outcome(StrEnum):
    """How a request ended."""

    RIGHT = "right"
    REFUSED = "refused"  # with a reason; or its connection ended
    WRONG = "wrong"
    LOST = "lost"
    SPARE = "spare"  # a further answer to one that had ended, which only raw clients see: in addition
    DUPLICATE = "duplicate"  # the same, and it contradicts the first: in addition


IN_ADDITION = frozenset((Outcome.SPARE, Outcome.DUPLICATE))
"""What is told of a request beside how it ended."""


class Intent(StrEnum):
    """What a request is for."""

    STEADY = "steady"
    HURRIED = "hurried"  # with a deadline that it may well miss
    REPLAY = "replay"  # the same key again, after the answer
    POISON = "poison"
    BURST = "burst"


class Record(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One request. Times are of `time.monotonic`, which all processes of a host share, in seconds.

    Attributes:
        id: unique in the run; a replay has that of its first.
        way: how it came in.
        intent: what it was for.
        model: which model was asked.
        sent, ended: when it was first sent, and when its outcome was known.
        deadline: when its answer had to be there.
        outcome: how it ended.
        keyed: whether it had an idempotency key.
        sends: how often it was sent.
        reason: of a refusal.
        status: of a refusal, the protocol's code.
        detail: of anything but a right answer: what came, for people.
        pause: what a refusal said about a retry, in seconds; None when nothing.
        version: of the model that answered.
        run: number of the execution that was answered.
    """

    id: int
    way: Way
    intent: Intent
    model: str
    sent: float
    ended: float
    deadline: float
    outcome: Outcome
    keyed: bool = False
    sends: int = 1
    reason: str = ""
    status: int = 0
    detail: str = ""
    pause: float | None = None
    version: int = 0
    run: int = 0


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def line(record: Record) -> bytes:
    return _encoder.encode(record) + b"\n"


class Follower:
    """Reads a file of records while it is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[Record]:
        """The records that came since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [_decoder.decode(each) for each in whole.splitlines()]
