"""One request, any number of responses: see "Streams" in `docs/protocol.md`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from qinfer.bus import Bus
from qinfer.client.nats.call import Call
from qinfer.client.nats.exchange import Exchange
from qinfer.client.nats.inference import Inference
from qinfer.client.nats.models import Target
from qinfer.errors import QInferError
from qinfer.message import END, FINAL, Request, Response, ResponseFrame

WINDOW = 64
"""Responses that may be on their way, or wait here, before the worker hears how many were taken."""


class Responses(Call):
    """A request whose responses are read one after the other.

    Workers that died in the middle have the request run again, from the first response: what was had before
    is dropped by its index.

    Args:
        exchange: tells the worker how far the reader is.
    """

    __slots__ = ("_changed", "_ended", "_error", "_exchange", "_later", "_next", "_ready", "_taken", "_told")

    def __init__(self, target: Target, request: Request, deadline: float, exchange: Exchange) -> None:
        super().__init__(target, request, deadline)
        request.window = WINDOW
        self._exchange = exchange
        self._ready: deque[tuple[ResponseFrame, Response]] = deque()
        self._later: dict[int, tuple[ResponseFrame, Response]] = {}
        self._next = 0  # index of the response that comes next
        self._taken = 0
        self._told = 0
        self._ended = False
        self._error: QInferError | None = None
        self._changed = asyncio.Event()

    @property
    def gapless(self) -> bool:
        return not self._later

    def take(self, frame: ResponseFrame, response: Response) -> bool:
        if response.error is not None:
            self.failed(response.error.exception())
            return True
        if response.index < self._next:
            self._exchange.discard(response)
            if response.flags & FINAL:  # this run was shorter than the one before
                self._ended = True
                self._changed.set()
            elif response.index % (WINDOW // 2) == 0:
                self._tell()  # the worker that began again has not heard it
            return self._ended
        if response.index - self._next <= 2 * WINDOW:  # more are never on their way
            self._later.setdefault(response.index, (frame, response))
        while not self._ended and self._next in self._later:
            frame, response = self._later.pop(self._next)
            self._next += 1
            self._ended = bool(response.flags & FINAL)
            if not response.flags & END:
                self._ready.append((frame, response))
            self._changed.set()
        return self._ended

    def failed(self, error: QInferError) -> None:
        self._error = self._error or error
        self._changed.set()

    async def read(self) -> tuple[ResponseFrame, Response] | None:
        """The next response; None after the last one.

        Raises:
            QInferError: why there is none. What came before it is read first.
        """
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        self._taken += 1
        if self._taken - self._told >= WINDOW // 2 and not self._ended:
            self._tell()
        return self._ready.popleft()

    def _tell(self) -> None:
        self._told = self._taken
        self._exchange.notices.taken(self.target.model, self.number, self._taken)

    def drop(self) -> None:
        """Nobody reads what has come and was not read."""
        for _, response in (*self._ready, *self._later.values()):
            self._exchange.discard(response)
        self._ready.clear()
        self._later.clear()


class Streams:
    """Asks models for any number of responses.

    Args:
        bus: a started bus.
        exchange: what is in flight on it.
        inference: stores and reads large tensors.
    """

    def __init__(self, bus: Bus, exchange: Exchange, inference: Inference) -> None:
        self._bus = bus
        self._exchange = exchange
        self._inference = inference

    async def ask(self, call: Responses) -> AsyncGenerator[tuple[ResponseFrame, Response], None]:
        """Send a call and give its responses; leaving the iteration cancels it.

        Raises:
            QInferError: why there are no more.
        """
        try:
            if call.size > self._bus.max_payload:
                await self._inference.deposit(call)
            self._exchange.enter(call)
            self._exchange.send(call)
            while (found := await call.read()) is not None:
                if found[1].claim:
                    await self._inference.redeem(found[1], call.deadline)
                yield found
        finally:
            self._exchange.abandon(call)
            call.drop()
            self._inference.remove(call)
