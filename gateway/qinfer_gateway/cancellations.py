"""Tells workers of requests whose callers have gone, and how far the readers of streams are."""

from __future__ import annotations

import asyncio
import logging

from qinfer.bus import Bus
from qinfer.errors import QInferError
from qinfer.message import PROTOCOL_VERSION, CancelFrame, encode

logger = logging.getLogger(__name__)


class Cancellations:
    """Collects the cancellations of an event-loop tick into one notice a model. Best effort: never raises."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._pending: dict[str, list[int]] = {}
        self._taken: dict[str, dict[int, int]] = {}

    def add(self, model: str, number: int) -> None:
        """Nobody waits for the answer to this request, which was published, any more."""
        self._schedule()
        self._pending.setdefault(model, []).append(number)

    def taken(self, model: str, number: int, count: int) -> None:
        """So many responses to this request were taken in all."""
        self._schedule()
        self._taken.setdefault(model, {})[number] = count

    def _schedule(self) -> None:
        if not self._pending and not self._taken:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        pending, self._pending = self._pending, {}
        taken, self._taken = self._taken, {}
        for model in {**pending, **taken}:
            numbers, counts = pending.get(model, []), list(taken.get(model, {}).items())
            notice = encode(CancelFrame(PROTOCOL_VERSION, self._bus.reply_to, numbers, counts))
            try:
                self._bus.cancel(model, notice)
            except QInferError as error:
                # Work is done in vain, no more. What was taken is told again after the reconnect.
                logger.debug("%d cancellations for model %s not sent: %s", len(numbers), model, error)
