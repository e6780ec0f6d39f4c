"""What this connection publishes, in order, without anybody having to wait for it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qinfer.bus.kafka.connection import ANSWER_TIMEOUT, Connection, Partition
from qinfer.errors import BusUnavailable, PayloadTooLarge, QInferError
from qinfer.lifecycle import cancelled

logger = logging.getLogger(__name__)

_BUFFER_LIMIT = 32 * 1024 * 1024
_RECORD = 100  # bytes a record counts for beside its value

Headers = Sequence[tuple[str, bytes]]
Done = Callable[["Stored | None", "QInferError | None"], None]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a record lies.

    Attributes:
        offset: in its partition.
        stored_ms: when it was stored, Unix milliseconds of the broker's clock.
    """

    offset: int
    stored_ms: int


@dataclass(frozen=True, slots=True)
class _Outgoing:
    partition: Partition
    key: bytes | None
    value: bytes | None
    headers: Headers
    done: Done | None
    size: int


class Sender:
    """Hands records to aiokafka's producer, which is not to be waited for, and tells what became of them.

    Producers are idempotent: what the line swallows is sent again, and stored once.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[_Outgoing] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._handed = asyncio.Event()
        self._handed.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._pump(), name="kafka sender")

    async def close(self) -> None:
        """Hand over what waits, then stop. Idempotent."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._handed.wait()
        except TimeoutError:
            logger.warning("%d messages were not sent", len(self._waiting))
        await cancelled(self._task)
        self._task = None

    def send(
        self,
        partition: Partition,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        done: Done | None = None,
    ) -> None:
        """Publish a record without waiting.

        Args:
            done: called later, once, with where it was stored or with why it was not.

        Raises:
            BusUnavailable: not connected, or too much waits to be sent already.
        """
        self._connection.check()
        if self._bytes > _BUFFER_LIMIT:
            raise BusUnavailable("the broker takes messages too slowly", retry_after=1.0)
        size = _RECORD + len(value or b"")
        self._bytes += size
        self._waiting.append(_Outgoing(partition, key, value, headers, done, size))
        self._handed.clear()
        self._wake.set()

    async def store(
        self,
        partition: Partition,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timeout: float = ANSWER_TIMEOUT,
    ) -> Stored:
        """Publish a record and wait until the broker has it.

        Raises:
            BusUnavailable, PayloadTooLarge: it is not stored, or nobody knows.
        """
        told: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()

        def done(stored: Stored | None, error: QInferError | None) -> None:
            if told.done():
                return
            if error is not None:
                told.set_exception(error)
            elif stored is not None:
                told.set_result(stored)

        self.send(partition, value, key=key, headers=headers, done=done)
        try:
            async with asyncio.timeout(timeout):
                return await told
        except TimeoutError:
            raise BusUnavailable("the broker does not answer in time", retry_after=1.0) from None

    async def flush(self) -> None:
        """Wait until everything sent before is stored, or will never be.

        Raises:
            BusUnavailable: that takes too long.
        """
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._handed.wait()
                await self._connection.producer.flush()
        except TimeoutError:
            raise BusUnavailable("the broker does not answer in time", retry_after=1.0) from None

    async def _pump(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._hand_over(self._waiting[0])
                self._waiting.popleft()
            self._handed.set()

    async def _hand_over(self, outgoing: _Outgoing) -> None:
        topic, number = outgoing.partition
        try:
            future = await self._connection.producer.send(
                topic, outgoing.value, outgoing.key, number, headers=outgoing.headers
            )
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 (of any library's kind: what waits behind it has to go on)
            self._finished(outgoing, None, error)
            return
        future.add_done_callback(lambda ended: self._confirmed(outgoing, ended))

    def _confirmed(self, outgoing: _Outgoing, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self._finished(outgoing, None, BusUnavailable("the connection was closed", retry_after=1.0))
        elif (error := future.exception()) is not None:
            self._finished(outgoing, None, error)
        else:
            told = future.result()
            if told.timestamp_type == 1:
                self._connection.seen_clock(told.timestamp)
            self._finished(outgoing, Stored(told.offset, told.timestamp), None)

    def _finished(self, outgoing: _Outgoing, stored: Stored | None, error: BaseException | None) -> None:
        self._bytes -= outgoing.size
        reason = None if error is None else self._reason(error)
        if outgoing.done is not None:
            outgoing.done(stored, reason)
        elif reason is not None:
            logger.warning("a message for %s is lost: %s", outgoing.partition[0], reason)

    def _reason(self, error: BaseException) -> QInferError:
        if isinstance(error, QInferError):
            return error
        if isinstance(error, self._connection.errors.MessageSizeTooLargeError):
            return PayloadTooLarge(f"the broker takes no message of that size: {error}")
        return self._connection.unavailable(error)
