"""A request of a client, and what may come of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import msgspec
import numpy as np

from loadtest.chaos.faults import CONNECTION, Way
from loadtest.chaos.models import Integers, expected
from loadtest.chaos.records import Intent


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a client process is told.

    Attributes:
        way: how it asks.
        http_port, grpc_port: of the gateways.
        nats: URL of the broker.
        namespace: of the fleet.
        seed: of everything that is random.
        lanes: requests it has in flight at most, bursts aside.
        think: mean seconds between an answer and the next request of a lane.
        keys: whether some requests have an idempotency key.
        ledger: file for the records.
    """

    way: Way
    http_port: int
    grpc_port: int
    nats: str
    namespace: str
    seed: int
    lanes: int
    think: float
    keys: bool
    ledger: str


@dataclass(slots=True, kw_only=True)
class Ask:
    """One request.

    Attributes:
        id: unique in the run.
        model: which model.
        x: INT64 [n, WIDTH].
        intent: what for.
        deadline: by the loop's clock, `time.monotonic`.
        key: idempotency key, or "".
        sends: how often it was sent.
    """

    id: int
    model: str
    x: Integers
    intent: Intent
    deadline: float
    key: str = ""
    sends: int = 0

    @property
    def ids(self) -> Integers:
        """The input "id", INT64 [n, 1]."""
        return np.full((len(self.x), 1), self.id, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Outputs of a model, and the version that the protocol says they are of."""

    y: Integers
    by: Integers
    model_version: str

    @property
    def version(self) -> int:
        return int(self.by[0, 1])

    @property
    def run(self) -> int:
        return int(self.by[0, 2])

    def fault(self, ask: Ask) -> str:
        """What is wrong with it as the answer to a request; "" if nothing is."""
        rows = len(ask.x)
        if self.by.shape != (rows, 3) or self.y.shape != ask.x.shape:
            return f"shapes {self.by.shape} and {self.y.shape} for {rows} rows"
        if (self.by[:, 0] != ask.id).any():
            return f"it is the answer to request {self.by[0, 0]}"
        if (self.by != self.by[0]).any():
            return f"its rows are of different executions: {self.by.tolist()}"
        if (self.y != expected(ask.x, self.version)).any():
            return f"{ask.x.tolist()} became {self.y.tolist()} in version {self.version}"
        if str(self.version) != self.model_version:
            return f"version {self.version} answered, and was called {self.model_version!r}"
        return ""


class Refusal(Exception):
    """The system said no.

    Attributes:
        reason: from the enumeration of the protocol, or `CONNECTION`.
        status: the protocol's code.
        pause: what it said about a retry, in seconds; None when nothing.
    """

    def __init__(self, reason: str, detail: str, *, status: int = 0, pause: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.status = status
        self.pause = pause


def broken(error: BaseException) -> Refusal:
    """The refusal that a lost connection is."""
    return Refusal(CONNECTION, repr(error))


class Sender(ABC):
    """One way in.

    Attributes:
        further: answers that came for requests which had one, each with what is wrong with it, or "".
    """

    def __init__(self) -> None:
        self.further: list[tuple[Ask, str]] = []

    @abstractmethod
    async def start(self) -> None:
        """Connect where that is done once."""

    @abstractmethod
    async def close(self) -> None:
        """End all connections."""

    @abstractmethod
    async def send(self, ask: Ask, lane: int, budget: float) -> Answer:
        """Send a request and wait for its answer; the caller sees to a limit of time.

        Args:
            ask: the request.
            lane: which of the client's lanes asks, for those that have a connection each.
            budget: seconds until the deadline that the system is told.

        Raises:
            Refusal: there is none.
        """
