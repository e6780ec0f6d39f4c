"""Requests with an idempotency key, which are run once however often they are sent.

See "Asking again" in `docs/protocol.md`: look for an answer that is kept, queue the request under its name,
and wait for its own answer, or that of another try, whichever comes first.
"""

from __future__ import annotations

import asyncio
import random
from time import monotonic, time_ns

from qinfer.answers import Kept, find_kept
from qinfer.bus import Bus, Watcher
from qinfer.client.nats.call import Answer
from qinfer.client.nats.exchange import Exchange
from qinfer.client.nats.inference import Inference, until
from qinfer.client.nats.outbox import frame_of
from qinfer.errors import BusUnavailable
from qinfer.idempotency import check_fingerprint, fingerprint
from qinfer.message import Response, ResponseFrame, encode

_PAUSE = 0.5  # seconds between two looks for an answer while the broker cannot be asked
_LINGER = 10.0  # seconds after its deadline for which the inputs of a request that nobody waits for are left


class Keyed:
    """Asks models once.

    Args:
        bus: a started bus.
        exchange: what is in flight on it.
        inference: stores and reads large tensors.
    """

    def __init__(self, bus: Bus, exchange: Exchange, inference: Inference) -> None:
        self._bus = bus
        self._exchange = exchange
        self._inference = inference
        self._waiting: set[_Try] = set()
        bus.on_reconnect(self._look_again)

    async def ask(self, call: Answer) -> tuple[ResponseFrame, Response]:
        """Wait for the answer to a call with a key: one that is kept, or that of another try, or its own.

        Raises:
            KeyReused: the key is that of another request.
            QInferError: why there is no answer.
        """
        call.request.fingerprint = await fingerprint(call.request)
        self._exchange.enter(call)
        attempt = _Try(call)
        self._waiting.add(attempt)
        answered = False
        try:
            async with until(call.deadline):
                frame, response = await self._wait(attempt)
            answered = True
        finally:
            self._waiting.discard(attempt)
            self._exchange.abandon(call)
            call.forget()
            self._clear(attempt, answered=answered)
        if response.claim:
            await self._inference.redeem(response, call.deadline)
        return frame, response

    def _look_again(self) -> None:
        """After a reconnect: answers may have been sent meanwhile, to nobody."""
        for attempt in self._waiting:
            attempt.reconnected = True
            attempt.changed.set()

    async def _wait(self, attempt: _Try) -> tuple[ResponseFrame, Response]:
        call, request = attempt.call, attempt.call.request
        watcher: Watcher | None = None
        tried = ""  # the id under which it was queued last
        own = False  # by this very call: an error kept then is its own
        try:
            while not call.future.done():
                attempt.changed.clear()
                if attempt.reconnected:
                    attempt.reconnected, tried = False, ""
                try:
                    kept = await find_kept(self._bus, request.idempotency)
                    message_id = f"{request.idempotency}.{0 if kept is None else kept.revision}"
                    if kept is not None and (kept.final or (own and message_id != tried)):
                        check_fingerprint(request, kept.response)
                        return _told(kept)
                    if message_id != tried:
                        own = await self._queue(attempt, message_id)
                        tried = message_id
                        if not own and watcher is None:
                            watcher = await self._watch(attempt)
                            continue
                except BusUnavailable:
                    if not attempt.queued:
                        raise
                    # Under its id it may be queued again, whatever the broker did with it.
                    tried = ""
                    await asyncio.sleep(_PAUSE * random.uniform(0.5, 1.0))
                    continue
                await attempt.changed.wait()
        finally:
            if watcher is not None:
                await watcher.close()
        return call.future.result()

    async def _watch(self, attempt: _Try) -> Watcher:
        return await self._bus.watch(
            self._bus.names.answers_bucket,
            lambda _key, _value: attempt.changed.set(),
            attempt.call.request.idempotency,
        )

    async def _queue(self, attempt: _Try, message_id: str) -> bool:
        """Queue the call's frame; False when another try is queued under that id."""
        call = attempt.call
        if call.size > self._bus.max_payload and not call.request.claim:
            await self._inference.deposit(call)
        attempt.queued = True
        call.sent_us = now_us = time_ns() // 1000
        call.request.deadline_us = now_us + max(1, int((call.deadline - monotonic()) * 1e6))
        frame = encode(frame_of([call], self._bus.reply_to, now_us))
        return await self._bus.enqueue(call.target.model, call.target.version, frame, message_id=message_id)

    def _clear(self, attempt: _Try, *, answered: bool) -> None:
        """Remove the inputs that were stored, once the request is not run any more."""
        if answered or not attempt.queued:
            self._inference.remove(attempt.call)
        elif attempt.call.request.claim:
            wait = max(0.0, attempt.call.deadline - monotonic()) + _LINGER
            asyncio.get_running_loop().call_later(wait, self._inference.remove, attempt.call)


class _Try:
    """A call with a key that is waited for.

    Attributes:
        changed: set when there is something new to look for, or the call is over.
        reconnected: the broker may have lost what was queued.
        queued: the call's frame may be at the broker.
    """

    __slots__ = ("call", "changed", "queued", "reconnected")

    def __init__(self, call: Answer) -> None:
        self.call = call
        self.changed = asyncio.Event()
        self.reconnected = False
        self.queued = False
        call.future.add_done_callback(lambda _: self.changed.set())


def _told(kept: Kept) -> tuple[ResponseFrame, Response]:
    if kept.response.error is not None:
        raise kept.response.error.exception()
    return kept.frame, kept.response
