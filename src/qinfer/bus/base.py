"""The contract every bus implementation keeps; `tests/bus/contract.py` is its executable form.

Handlers are plain functions called on the event loop, in order, and must not block. Methods that are not
`async` never wait: they hand their bytes to the connection and return.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from qinfer.bus.services import Service
from qinfer.errors import PayloadTooLarge, QInferError, Unsupported
from qinfer.naming import Names

if TYPE_CHECKING:
    from qinfer.bus.table import Backlog, Table

ReplyHandler: TypeAlias = "Callable[[bytes], None]"
RefusedHandler: TypeAlias = "Callable[[QInferError], None]"
AnswerHandler: TypeAlias = "Callable[[bytes], Awaitable[bytes]]"
WatchHandler: TypeAlias = "Callable[[str, bytes | None], None]"
Data: TypeAlias = "bytes | bytearray | memoryview"


BLOB_LIFETIME = 3600.0
"""Seconds after which stored data that nobody removed is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """How a model's queue is kept; times in seconds, sizes in bytes.

    Attributes:
        ack_wait: after how long without ack or sign of life a frame is delivered again.
        max_messages: frames queued before more are refused with `QueueFull`.
        max_bytes: bytes queued before more are refused; -1 for no limit. The broker
            reserves them.
        storage: "memory" or "file".
        replicas: copies kept by a cluster.
    """

    ack_wait: float = 5.0
    max_messages: int = 65536
    max_bytes: int = 64 << 20
    storage: Literal["memory", "file"] = "file"
    replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantees:
    """What not every broker can give. Nothing that is correct may depend on it, only how well it does.

    Attributes:
        order: the frames of one sender are delivered in the order in which they were published.
        fair: a frame goes to any consumer that has credit, and comes to another one when it is given back.
        backlog: `Delivery.pending` counts all that is queued.
        silence: a question that nobody listens for ends at once, and not at its timeout.
    """

    order: bool = True
    fair: bool = True
    backlog: bool = True
    silence: bool = True


class Delivery(ABC):
    """One frame handed to a consumer. Exactly one of `ack`, `nak` and `term` ends it.

    Attributes:
        payload: the frame.
        sequence: the frame's number in its model's queue, the same for each delivery.
        attempt: how often the frame was delivered, this time included; from 1.
        pending: frames queued behind this one, as the broker last saw it.
        stored_us: when the broker stored the frame, Unix microseconds of the broker's clock.
    """

    __slots__ = ("attempt", "payload", "pending", "sequence", "stored_us")

    payload: bytes
    sequence: int
    attempt: int
    pending: int
    stored_us: int

    @abstractmethod
    def ack(self) -> None:
        """The frame is done: the queue forgets it."""

    @abstractmethod
    def nak(self, delay: float = 0.0) -> None:
        """Give the frame back; it is delivered again, to any worker, after `delay` seconds."""

    @abstractmethod
    def in_progress(self) -> None:
        """Restart the frame's ack wait."""

    @abstractmethod
    def term(self) -> None:
        """The frame can never be done: the queue forgets it."""


DeliveryHandler: TypeAlias = Callable[[Delivery], None]


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it lies in its stream.

    Attributes:
        sequence: its number there.
        data: see `qinfer.deadletter`.
    """

    sequence: int
    data: bytes


class Consumer(ABC):
    """A worker's pull on one queue. Frames come only against credit."""

    @property
    @abstractmethod
    def credit(self) -> int:
        """Frames that may still be delivered."""

    @abstractmethod
    def grant(self, frames: int) -> None:
        """Add credit for `frames` more frames."""

    @abstractmethod
    async def close(self) -> None:
        """Stop pulling. Idempotent. Frames delivered before must still be ended by their holder."""


class Watcher(ABC):
    """A running watch on a registry bucket."""

    @abstractmethod
    async def close(self) -> None:
        """Stop watching. Idempotent."""


class Bus(ABC):
    """A connection to the broker.

    Attributes:
        names: subjects and streams of the namespace.
        reply_to: this connection's inbox, to put into request frames.
        max_payload: largest frame in bytes.
        guarantees: what this broker gives beyond what every broker does.
    """

    guarantees: ClassVar[Guarantees] = Guarantees()
    names: Names
    reply_to: str
    max_payload: int

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the broker can be reached at the moment."""

    @abstractmethod
    async def start(self) -> None:
        """Connect. Raises `BusUnavailable` when the broker does not answer in time."""

    @abstractmethod
    async def close(self) -> None:
        """Send what is buffered and disconnect. Idempotent."""

    # Requests

    @abstractmethod
    def publish(self, model: str, version: str, frame: bytes, refused: RefusedHandler) -> None:
        """Queue a frame durably.

        `refused` is called later, at most once, when the broker did not take it: `QueueFull`, `NoWorker`
        when the model has no queue, else `BusUnavailable`. That is also what becomes of a frame that was not
        confirmed before the connection was lost; it is told as soon as publishing again makes sense.

        Raises:
            BusUnavailable: not connected, or more bytes wait to be sent than the connection may buffer.
            PayloadTooLarge: the frame is above `max_payload`.
        """

    @abstractmethod
    async def enqueue(self, model: str, version: str, frame: bytes, *, message_id: str = "") -> bool:
        """Queue a frame durably and wait until the broker has it.

        Args:
            message_id: the broker keeps only the first frame of a name within `ANSWER_LIFETIME`.

        Returns:
            False when the broker has had a frame of that `message_id` before.

        Raises:
            BusUnavailable, NoWorker, PayloadTooLarge, QueueFull: it is not queued, or nobody knows.
        """

    @abstractmethod
    def on_reply(self, handler: ReplyHandler) -> None:
        """Set who gets the frames that arrive at `reply_to`."""

    @abstractmethod
    async def declare(self, model: str, spec: QueueSpec) -> None:
        """Create the model's queue, or bring an existing one to `spec`."""

    @abstractmethod
    async def consume(self, model: str, version: str, handler: DeliveryHandler) -> Consumer:
        """Pull frames published for `version` ("" for those that name none). Starts with no credit."""

    @abstractmethod
    async def clock_us(self, model: str) -> int:
        """What the clock that gives a model's frames their `stored_us` shows now, Unix microseconds.

        Raises:
            BusUnavailable: the broker does not answer, or does not tell.
        """

    @abstractmethod
    async def queued(self, model: str, version: str) -> int:
        """Frames published for `version` that are not ended yet, those out at workers included.

        Raises:
            BusUnavailable: the broker does not answer, or nobody ever consumed them.
        """

    async def backlog(self, model: str, version: str) -> Backlog:  # noqa: ARG002 (for those that can)
        """How far the consumers of frames published for `version` are.

        Raises:
            BusUnavailable: the broker does not answer, or nobody ever consumed them.
            Unsupported: this bus cannot tell.
        """
        raise Unsupported(f"a {type(self).__name__} does not tell how far its queues are")

    @abstractmethod
    def reply(self, reply_to: str, frame: bytes) -> None:
        """Publish responses on a sender's inbox.

        Raises:
            InvalidRequest: `reply_to` is not an inbox.
            BusUnavailable, PayloadTooLarge: as for `publish`.
        """

    # Cancellation

    @abstractmethod
    def cancel(self, model: str, notice: bytes) -> None:
        """Tell all workers of a model, those that listen now, what nobody waits for any more.

        Raises:
            BusUnavailable, PayloadTooLarge: as for `publish`.
        """

    @abstractmethod
    async def on_cancel(self, model: str, handler: ReplyHandler) -> Watcher:
        """Call `handler` with each notice for a model until the watcher is closed."""

    # Questions to every process of the namespace

    @abstractmethod
    async def ask(self, topic: str, question: bytes, *, answers: int, timeout: float) -> list[bytes]:
        """Ask all who `answer` on a topic; returns when `answers` have come or after `timeout` seconds."""

    @abstractmethod
    async def answer(self, topic: str, handler: AnswerHandler) -> None:
        """Answer questions on a topic until the bus is closed."""

    async def advertise(self, services: Sequence[Service]) -> None:  # noqa: ARG002 (for those that can)
        """Tell tools of the broker that this process offers these services from now on, and no others.

        Where the broker knows no such thing, nothing happens.

        Raises:
            BusUnavailable: the bus is closed.
        """
        return

    # Registry

    @abstractmethod
    async def put(self, bucket: str, key: str, value: bytes) -> None:
        """Write a registry entry. Keys are escaped names joined with dots."""

    @abstractmethod
    async def delete(self, bucket: str, key: str) -> None:
        """Remove a registry entry, if it is there."""

    @abstractmethod
    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        """A registry entry and its revision, a number that grows with each change; None without entry."""

    @abstractmethod
    async def replace(self, bucket: str, key: str, value: bytes, revision: int) -> bool:
        """Write an entry unless somebody was faster; False then.

        Args:
            revision: of the entry that was read; 0 when there was none.
        """

    @abstractmethod
    async def watch(self, bucket: str, handler: WatchHandler, key: str = "") -> Watcher:
        """Call `handler(key, value)` for every entry, now and at each change; value None for a removal.

        Args:
            key: watch only this entry.

        Returns once the handler has seen everything that is there.
        """

    def table(self, name: str, *, max_bytes: int = -1) -> Table:  # noqa: ARG002 (for those that have them)
        """A table of that name; it need not be there yet. The broker reserves `max_bytes`; -1 for no limit.

        Raises:
            Unsupported: this bus has none.
        """
        raise Unsupported(f"a {type(self).__name__} has no tables, which jobs are kept in")

    # Blobs: what is too large for a message

    @abstractmethod
    async def put_blob(self, name: str, *parts: Data) -> None:
        """Store data under a name of letters, digits and '-'. It is forgotten after `BLOB_LIFETIME`.

        Not to be cancelled: what was sent until then would lie at the broker without a name.

        Args:
            parts: joined they are the data; they are not copied as a whole, and must not change meanwhile.

        Raises:
            BusUnavailable: the broker does not take it.
            QueueFull: it has no room for it.
        """

    @abstractmethod
    async def get_blob(self, name: str, *, limit: int) -> Data:
        """Stored data.

        Raises:
            NotFound: there is none of that name (any more).
            PayloadTooLarge: it is more than `limit` bytes.
            BusUnavailable: the broker does not answer in time.
        """

    @abstractmethod
    async def delete_blob(self, name: str) -> None:
        """Remove stored data, if it is there."""

    # Dead letters

    @abstractmethod
    async def bury(self, model: str, letter: bytes, *, letter_id: str = "") -> None:
        """Keep a dead letter, once for each `letter_id`. Returns when the broker has it.

        Raises:
            BusUnavailable, PayloadTooLarge: it is not kept, or nobody knows.
        """

    @abstractmethod
    async def letters(self, model: str = "", *, after: int = 0, limit: int = 100) -> list[Letter]:
        """Dead letters of a model or of all, oldest first, those numbered above `after`."""

    @abstractmethod
    async def forget_letter(self, sequence: int) -> bool:
        """Remove a dead letter; False when there is none of that number."""

    @abstractmethod
    def on_disconnect(self, handler: Callable[[], None]) -> None:
        """Add a function to be called whenever the connection is lost; not when it is closed."""

    @abstractmethod
    def on_reconnect(self, handler: Callable[[], None]) -> None:
        """Add a function to be called whenever a lost connection is there again."""


def check_blob(name: str, size: int, limit: int) -> None:
    """Raise `PayloadTooLarge` for stored data above what its reader takes."""
    if size > limit:
        raise PayloadTooLarge(f"{size} bytes are stored under {name!r}; at most {limit} are expected")


def check_payload(frame: bytes, limit: int) -> None:
    """Raise `PayloadTooLarge` for a frame above the broker's limit."""
    if len(frame) > limit:
        raise PayloadTooLarge(
            f"message of {len(frame)} bytes is above the broker's max_payload of {limit} bytes"
        )
