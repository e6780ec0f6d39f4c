"""Tells workers what nobody waits for any more, and how far the readers of streams are."""

from __future__ import annotations

import asyncio
import logging

from qinfer.bus import Bus
from qinfer.errors import QInferError
from qinfer.message import PROTOCOL_VERSION, CancelFrame, encode

logger = logging.getLogger(__name__)


class Notices:
    """Collects the notices of an event-loop tick into one message a model. Best effort: never raises."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._cancelled: dict[str, list[int]] = {}
        self._taken: dict[str, dict[int, int]] = {}

    def cancel(self, model: str, number: int) -> None:
        """Nobody waits for the answer to this request, which was published, any more."""
        self._soon()
        self._cancelled.setdefault(model, []).append(number)

    def taken(self, model: str, number: int, count: int) -> None:
        """So many responses to this request were taken in all."""
        self._soon()
        self._taken.setdefault(model, {})[number] = count

    def _soon(self) -> None:
        if not (self._cancelled or self._taken):
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        cancelled, self._cancelled = self._cancelled, {}
        taken, self._taken = self._taken, {}
        for model in {**cancelled, **taken}:
            pairs = list(taken.get(model, {}).items())
            frame = CancelFrame(PROTOCOL_VERSION, self._bus.reply_to, cancelled.get(model, []), pairs)
            try:
                self._bus.cancel(model, encode(frame))
            except QInferError as error:
                # Work is done in vain, or waits until more is taken; no more than that.
                logger.debug("a notice for model %s was not sent: %s", model, error)
