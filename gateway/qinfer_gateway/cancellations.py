"""Tells workers of requests whose callers have gone."""

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

    def add(self, model: str, number: int) -> None:
        """Nobody waits for the answer to this request, which was published, any more."""
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.setdefault(model, []).append(number)

    def _flush(self) -> None:
        pending, self._pending = self._pending, {}
        for model, numbers in pending.items():
            notice = encode(CancelFrame(PROTOCOL_VERSION, self._bus.reply_to, numbers))
            try:
                self._bus.cancel(model, notice)
            except QInferError as error:
                # Their work is done in vain, no more.
                logger.debug("%d cancellations for model %s not sent: %s", len(numbers), model, error)
