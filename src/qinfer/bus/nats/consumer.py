"""Lingering pulls on a JetStream consumer.

`fetch` of a client library either returns at once or waits its whole timeout, so it cannot express "the
first frame, then whatever comes within a window". Instead a pull request stays open at the server, which
delivers frame by frame against it as they arrive, and windows are formed by the worker. Where credit is
granted while a frame is acked, the pull travels within the ack (`+NXT`): one message less per round.
Protocol: https://docs.nats.io/reference/reference-protocols/nats_api_reference and ADR-15, ADR-37.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from qinfer.bus.base import Consumer, Delivery, DeliveryHandler
from qinfer.bus.nats.connection import LOOK, Connection
from qinfer.errors import BusUnavailable

PULL_EXPIRES = 5.0
"""Seconds a pull request stays open at the server.

Then the server says so. One that does not has lost the pull, and whoever asked would wait for ever.
"""

_UNUSED_HEADER = "Nats-Pending-Messages"
_STATUS_HEADER = "Status"
_EXPIRED, _NOBODY = "408", "503"
_DRAIN_TIMEOUT = 2.0
_STATUS_PAUSE = 0.25  # an error status would come back at once: do not spin on it
_EXPIRY_PAUSE = 0.05  # pulls that expire one after the other are asked for again as one
_GRACE = 2.0  # seconds by which the server's word about a pull may be late
_MISSING_AFTER = 8  # times in a row that nobody listened where pulls are sent

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """How far a durable consumer is: frames never delivered, delivered and not ended, deliveries so far."""

    waiting: int
    unended: int
    delivered: int


async def state_of(jetstream: JetStreamContext, stream: str, consumer: str) -> ConsumerState:
    """Ask the broker how far a consumer is. Raises what the client library raises."""
    info = await jetstream.consumer_info(stream, consumer)
    delivered = info.delivered.consumer_seq if info.delivered else 0
    return ConsumerState(int(info.num_pending or 0), int(info.num_ack_pending or 0), int(delivered))


class NatsDelivery(Delivery):
    """A JetStream message. Its ack subject tells attempt, store time and backlog (ADR-15)."""

    __slots__ = ("_ack_subject", "_consumer")

    def __init__(self, message: Msg, consumer: NatsConsumer) -> None:
        self.payload = message.data
        self._ack_subject = message.reply
        self._consumer = consumer
        # $JS.ACK[.domain.account].stream.consumer.delivered.sseq.cseq.timestamp.pending[.token]
        fields = message.reply.split(".")
        first = 4 if len(fields) < 11 else 6
        self.attempt = int(fields[first])
        self.sequence = int(fields[first + 1])
        self.stored_us = int(fields[first + 3]) // 1000
        self.pending = int(fields[first + 4])

    def ack(self) -> None:
        self._consumer.acknowledge(self._ack_subject)

    def nak(self, delay: float = 0.0) -> None:
        body = b'-NAK {"delay":%d}' % int(delay * 1e9) if delay > 0 else b"-NAK"
        self._consumer.send(self._ack_subject, body)

    def in_progress(self) -> None:
        self._consumer.send(self._ack_subject, b"+WPI")

    def term(self) -> None:
        self._consumer.send(self._ack_subject, b"+TERM")


class NatsConsumer(Consumer):
    """One worker's pull on one durable consumer.

    Credit is kept until frames use it up: an expired pull is asked for again, and so is one that the server
    has lost. Pulls share an inbox until that happens; what is said about lost ones comes to one of before.

    Args:
        stream, consumer: what to pull from.
        inbox: a subject of its own for this consumer.
        handler: gets the frames.
        missing: called when the consumer seems not to exist (any more).
        expires: see `PULL_EXPIRES`.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        consumer: str,
        inbox: str,
        handler: DeliveryHandler,
        missing: Callable[[], None],
        expires: float = PULL_EXPIRES,
    ) -> None:
        self._connection = connection
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = inbox
        self._generation = 0
        self._reply = f"{inbox}.0"
        self._handler = handler
        self._missing = missing
        self._missed = 0
        self._expires_ns = int(expires * 1e9)
        self._patience = (expires + _GRACE) / LOOK
        self._silent = 0  # looks since the server was heard of
        self._subscription: Subscription | None = None
        self._asked = 0  # credit in open pulls at the server
        self._wanted = 0  # credit not asked for yet
        self._flush_handle: asyncio.Handle | None = None
        self._loop = asyncio.get_running_loop()
        self.closed = False

    async def start(self) -> None:
        # What waits in this subscription is bounded by credit, so nats-py need not bound it by dropping.
        self._subscription = await self._connection.client.subscribe(
            f"{self._inbox}.*", cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0
        )

    @property
    def credit(self) -> int:
        return self._asked + self._wanted

    def grant(self, frames: int) -> None:
        if frames <= 0 or self.closed:
            return
        self._wanted += frames
        if self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self._flush)

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._flush_handle is not None:
            self._flush_handle.cancel()
        if self._subscription is None:
            return
        # The server drops the pulls of an inbox nobody listens to. Frames that it sent before it heard of the
        # end are still handed over: dropped, they would be delivered again only after the ack wait.
        try:
            await asyncio.wait_for(self._subscription.drain(), _DRAIN_TIMEOUT)  # type: ignore[no-untyped-call]
        except (nats.errors.Error, TimeoutError) as error:
            logger.warning("frames on their way come again after the ack wait: %r", error)

    def reset(self) -> None:
        """The server has forgotten the open pulls, as after a reconnect: ask for their credit again."""
        # Also what was granted meanwhile and never asked for: nobody grants it a second time.
        self._wanted += self._write_off()
        if self._wanted and self._flush_handle is None and not self.closed:
            self._flush_handle = self._loop.call_soon(self._flush)

    def look(self) -> None:
        """Called every `LOOK` seconds while connected: find out whether the server has lost the pulls.

        It may die, and hand over what it leads to others, without the connection noticing.
        """
        self._silent = self._silent + 1 if self._asked else 0
        if self._silent > self._patience and not self.closed:
            logger.warning("the broker has lost the pulls on %s; pulling again", self._next_subject)
            self.reset()

    def _write_off(self) -> int:
        """Forget the open pulls; returns their credit."""
        lost, self._asked = self._asked, 0
        self._generation += 1
        self._reply = f"{self._inbox}.{self._generation}"
        self._silent = 0
        return lost

    def acknowledge(self, subject: str) -> None:
        """Ack a frame; pull in the same message when credit waits to be asked for."""
        if self._wanted and not self.closed and self._connection.settled:
            self.send(subject, b"+NXT " + self._take_pull(), reply=self._reply)
        else:
            self.send(subject, b"+ACK")

    def send(self, subject: str, body: bytes, reply: str = "") -> None:
        try:
            self._connection.publish(subject, body, reply)
        except BusUnavailable:
            # The broker delivers the frame again when its ack wait is over; the second answer is dropped.
            logger.info("could not tell the broker %r: the frame will be delivered again", body[:4].decode())

    def _take_pull(self) -> bytes:
        frames, self._wanted = self._wanted, 0
        self._asked += frames
        return b'{"batch":%d,"expires":%d}' % (frames, self._expires_ns)

    def _flush(self) -> None:
        self._flush_handle = None
        # Not connected, or answers would find nobody yet: `reset` asks again.
        if self._wanted and not self.closed and self._connection.settled:
            self.send(self._next_subject, self._take_pull(), reply=self._reply)

    async def _receive(self, message: Msg) -> None:
        self._silent = 0
        if message.reply.startswith("$JS.ACK."):
            self._missed = 0
            self._asked = max(0, self._asked - 1)
            self._handler(NatsDelivery(message, self))
        elif message.subject == self._reply:
            self._end_pull(message.headers or {})

    def _end_pull(self, headers: dict[str, str]) -> None:
        """A status ends one pull, 408 when it expired; without a count it is about them all.

        Such are 503, nobody is there to pull from, and 409, the server goes, or its successor is there.
        """
        status = headers.get(_STATUS_HEADER)
        if _UNUSED_HEADER in headers:
            unused = min(self._asked, int(headers[_UNUSED_HEADER]))
            self._asked -= unused
        else:
            unused = self._write_off()
        self._wanted += unused
        self._missed = self._missed + 1 if status == _NOBODY else 0
        if self._missed >= _MISSING_AFTER:
            self._missed = 0
            self._missing()
        if self._flush_handle is None and not self.closed:
            delay = _STATUS_PAUSE
            if status == _EXPIRED:
                delay = _EXPIRY_PAUSE if self._asked else 0.0
            self._flush_handle = self._loop.call_later(delay, self._flush)
