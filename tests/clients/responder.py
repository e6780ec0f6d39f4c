"""A worker that says exactly what a test has it say, frame by frame."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from qinfer.bus import Bus, Delivery, QueueSpec, connect
from qinfer.message import (
    END,
    FINAL,
    CancelFrame,
    RequestFrame,
    decode_cancel_frame,
    decode_request_frame,
)
from tests.helpers.waiting import Mailbox

MODEL = "scripted"


class Responder:
    """Holds the frames of `MODEL`, and what senders tell on its cancellation subject."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.frames = Mailbox()
        self.told = Mailbox()

    async def start(self) -> None:
        await self.bus.declare(MODEL, QueueSpec(storage="memory", max_bytes=1 << 20))
        await self.bus.on_cancel(MODEL, lambda notice: self.told(decode_cancel_frame(notice)))
        (await self.bus.consume(MODEL, "", self._deliver)).grant(100)
        await self.bus.ask("nobody", b"", answers=1, timeout=20)  # subscribed for sure

    def _deliver(self, delivery: Delivery) -> None:
        self.frames(decode_request_frame(delivery.payload))
        delivery.ack()

    async def frame(self) -> RequestFrame:
        (frame,) = await self.frames.take()
        assert isinstance(frame, RequestFrame)
        return frame

    async def heard(self) -> CancelFrame:
        (frame,) = await self.told.take()
        assert isinstance(frame, CancelFrame)
        return frame

    def say(self, frame: RequestFrame, *responses: list[Any], error: list[Any] | None = None) -> None:
        """Publish one response frame."""
        told = [1, "scripted-worker", "3", [0, 0, 0, 0, 0], list(responses), error, 0]
        self.bus.reply(frame.reply_to, msgpack.packb(told))

    def say_raw(self, frame: RequestFrame, data: bytes) -> None:
        """Publish bytes."""
        self.bus.reply(frame.reply_to, data)


def response(frame: RequestFrame, index: int, *, flags: int = 0, error: Any = None, **more: Any) -> list[Any]:
    """One response, whose output `i` is its index."""
    outputs = [] if error or flags & END else [["i", "INT32", [1], index.to_bytes(4, "little")]]
    fields = {"parameters": {}, "flags": flags, "queue": 0, "claim": "", "claim_bytes": 0, "fingerprint": ""}
    return [frame.requests[0].id, 1, error, outputs, *({**fields, **more}).values(), index]


LAST = FINAL
NOTHING_MORE = FINAL | END


@asynccontextmanager
async def responder(url: str, namespace: str) -> AsyncIterator[Responder]:
    """A responder of a namespace."""
    bus = connect(url, namespace=namespace, name="responder")
    await bus.start()
    made = Responder(bus)
    try:
        await made.start()
        yield made
    finally:
        await bus.close()
