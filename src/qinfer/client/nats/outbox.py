"""From calls to frames: all requests of one event-loop tick for the same model and version leave together.

There is no timer: a client that asks one thing after the other sends frames of one. A frame is no more than
a batch of the model, nor than a share of what the broker takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic, time_ns

from qinfer.bus import Bus
from qinfer.client.nats.call import Call
from qinfer.client.nats.models import Target
from qinfer.errors import PayloadTooLarge, QInferError
from qinfer.message import PROTOCOL_VERSION, RequestFrame, encode

_FRAME_SHARE = 2  # a frame takes at most this part of max_payload, unless one request alone is larger


class Outbox:
    """Collects calls and publishes them at the end of the tick.

    Args:
        bus: a started bus.
        calls: what is in flight, by number; only read. A call that left within the tick is not sent.
        expired: called with a call whose deadline passed before it could be sent.
        unsent: called with calls that could not be published, and why.
        refused: called later with calls that the broker did not take, when they were published (their
            `sent_us`), and why.
    """

    def __init__(
        self,
        bus: Bus,
        calls: Mapping[int, Call],
        *,
        expired: Callable[[Call], None],
        unsent: Callable[[Sequence[Call], QInferError], None],
        refused: Callable[[Sequence[Call], int, QInferError], None],
    ) -> None:
        self._bus = bus
        self._calls = calls
        self._expired = expired
        self._unsent = unsent
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._collected: dict[tuple[str, str], list[Call]] = {}

    def add(self, call: Call) -> None:
        """Send a call at the end of this tick."""
        collected = self._collected
        if not collected:
            self._loop.call_soon(self._flush)
        collected.setdefault((call.target.model, call.target.version), []).append(call)

    def _flush(self) -> None:
        collected, self._collected = self._collected, {}
        for calls in collected.values():
            self._send(calls[0].target, calls)

    def _send(self, target: Target, calls: list[Call]) -> None:
        max_bytes = self._bus.max_payload // _FRAME_SHARE
        now_us = time_ns() // 1000
        now = monotonic()
        frame: list[Call] = []
        rows = size = 0
        for call in calls:
            if call.number not in self._calls:
                continue
            budget = call.deadline - now
            if budget <= 0:
                self._expired(call)
                continue
            if frame and (rows + call.rows > target.max_rows or size + call.size > max_bytes):
                self._publish(frame, now_us)
                frame, rows, size = [], 0, 0
            call.sent_us = now_us
            call.request.deadline_us = now_us + int(budget * 1e6)
            frame.append(call)
            rows += call.rows
            size += call.size
        if frame:
            self._publish(frame, now_us)

    def _publish(self, calls: list[Call], now_us: int) -> None:
        target = calls[0].target
        try:
            self._bus.publish(
                target.model,
                target.version,
                encode(frame_of(calls, self._bus.reply_to, now_us)),
                partial(self._refused, calls, now_us),
            )
        except PayloadTooLarge as error:
            # Names and parameters are not in the sizes that frames are filled by: find out whose they are.
            if len(calls) == 1:
                self._unsent(calls, error)
                return
            for call in calls:
                self._publish([call], now_us)
        except QInferError as error:
            self._unsent(calls, error)


def frame_of(calls: Sequence[Call], reply_to: str, now_us: int) -> RequestFrame:
    """The frame of calls for the same model and version, published now."""
    first = calls[0]
    return RequestFrame(
        PROTOCOL_VERSION,
        reply_to,
        first.target.model,
        first.target.version,
        now_us,
        first.flight.count,
        [call.request for call in calls],
    )
