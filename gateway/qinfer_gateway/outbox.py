"""From calls to frames: all requests of one event-loop tick for the same model and version leave together.

There is no timer: an idle gateway sends frames of one. A frame is no more than a batch of the model, nor than
a share of what the broker takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic, time_ns

from qinfer.bus import Bus
from qinfer.errors import PayloadTooLarge, QInferError
from qinfer.message import PROTOCOL_VERSION, RequestFrame, encode
from qinfer_gateway.call import Call
from qinfer_gateway.catalog import Target
from qinfer_gateway.observer import Observer

_FRAME_SHARE = 2  # a frame takes at most this part of max_payload, unless one request alone is larger


class Outbox:
    """Collects calls and publishes them at the end of the tick.

    Args:
        bus: a started bus.
        calls: what is in flight, by number; only read. A call that left within the tick is not sent.
        observer: told of frames.
        expired: called with a call whose deadline passed before it could be sent.
        unsent: called with calls that could not be published, and why.
        refused: called later with calls that the broker did not take, when they were published (their
            `sent_us`), and why.
    """

    def __init__(
        self,
        bus: Bus,
        calls: Mapping[int, Call],
        observer: Observer,
        *,
        expired: Callable[[Call], None],
        unsent: Callable[[Sequence[Call], QInferError], None],
        refused: Callable[[Sequence[Call], int, QInferError], None],
    ) -> None:
        self._bus = bus
        self._calls = calls
        self._observer = observer
        self._expired = expired
        self._unsent = unsent
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._collected: dict[Target, list[Call]] = {}

    def add(self, call: Call, target: Target) -> None:
        """Send a call at the end of this tick."""
        collected = self._collected
        if target in collected:
            collected[target].append(call)
            return
        if not collected:
            self._loop.call_soon(self._flush)
        collected[target] = [call]

    def _flush(self) -> None:
        collected, self._collected = self._collected, {}
        for target, calls in collected.items():
            self._send(target, calls)

    def _send(self, target: Target, calls: list[Call]) -> None:
        """Send one model's requests in as few frames as its batch size and the broker's limit allow."""
        max_rows = target.max_rows
        max_bytes = self._bus.max_payload // _FRAME_SHARE
        now_us = time_ns() // 1000
        now = monotonic()
        in_flight = self._calls
        frame: list[Call] = []
        rows = size = 0
        for call in calls:
            if call.number not in in_flight:
                continue  # the caller left within this very tick
            budget = call.deadline - now
            if budget <= 0:
                self._expired(call)
                continue
            if frame and (rows + call.rows > max_rows or size + call.size > max_bytes):
                self._publish(target, frame, rows, now_us)
                frame, rows, size = [], 0, 0
            call.sent_us = now_us
            call.request.deadline_us = now_us + int(budget * 1e6)
            if call.span is not None:
                self._observer.published(call)
            frame.append(call)
            rows += call.rows
            size += call.size
        if frame:
            self._publish(target, frame, rows, now_us)

    def _publish(self, target: Target, calls: list[Call], rows: int, now_us: int) -> None:
        data = encode(
            RequestFrame(
                PROTOCOL_VERSION,
                self._bus.reply_to,
                target.model,
                target.wanted_version,
                now_us,
                calls[0].flight.count,
                [call.request for call in calls],
            )
        )
        try:
            self._bus.publish(
                target.model, target.wanted_version, data, partial(self._refused, calls, now_us)
            )
        except PayloadTooLarge as error:
            # Names and parameters are not in the sizes that frames are filled by: find out whose they are.
            if len(calls) == 1:
                self._unsent(calls, error)
                return
            for call in calls:
                self._publish(target, [call], call.rows, now_us)
            return
        except QInferError as error:
            self._unsent(calls, error)
            return
        self._observer.stats.record_frame(target.model, requests=len(calls), rows=rows)
