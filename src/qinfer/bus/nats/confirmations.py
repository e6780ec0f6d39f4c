"""Frames the broker has been sent and has not confirmed yet."""

from __future__ import annotations

import json
import logging
from collections import deque

from nats.aio.msg import Msg

from qinfer.bus.base import RefusedHandler
from qinfer.errors import BusUnavailable, NoWorker, QInferError, QueueFull

MAX_UNCONFIRMED = 16384
"""Frames that may wait for their confirmation; then the broker counts as too slow."""

# Looks (`connection.LOOK`) after which a frame's confirmation is given up: more than the connection takes to
# be found dead. The connection may live on without it: the member of a cluster that had the frame died.
_PATIENCE = 8

_FULL = frozenset((10077, 10047, 10054))  # maximum messages, memory or storage exceeded, message too big

NO_QUEUE = "the broker has no queue for this model, or it has no leader at the moment"

logger = logging.getLogger(__name__)


class Confirmations:
    """Who is told when the broker does not take a frame. Each is told at most once."""

    def __init__(self) -> None:
        self._refused: dict[int, RefusedHandler] = {}  # in the order of their numbers
        self._last = 0
        self._seen: deque[int] = deque()
        self._doubtful = 0  # number of the last frame that was sent before the latest reconnect

    def __len__(self) -> int:
        return len(self._refused)

    def add(self, refused: RefusedHandler) -> int:
        """A frame is about to be sent; returns its number.

        Raises:
            BusUnavailable: too many are not confirmed.
        """
        if len(self._refused) >= MAX_UNCONFIRMED:
            raise BusUnavailable("the broker does not confirm what it is sent", retry_after=1.0)
        number = self._last = self._last + 1
        self._refused[number] = refused
        return number

    def withdraw(self, number: int) -> None:
        """It could not be sent."""
        del self._refused[number]

    def receive(self, number: int, message: Msg) -> None:
        """The broker's answer about a frame (JetStream's PubAck), or that nobody stores it."""
        refused = self._refused.pop(number, None)
        if refused is not None and (b'"error"' in message.data or message.headers):
            refused(_refusal(message))

    def look(self) -> None:
        """Give up frames that were sent `_PATIENCE` looks ago."""
        self._seen.append(self._last)
        if len(self._seen) > _PATIENCE:
            self._give_up(self._seen.popleft(), "the broker has not confirmed the request in time")

    def reconnected(self) -> None:
        """The connection was lost, and with it the confirmations that were on their way."""
        self._seen.clear()
        self._doubtful = self._last

    def give_up_doubtful(self) -> None:
        """Give up frames of before the latest reconnect."""
        self._give_up(self._doubtful, "the broker went before it confirmed the request")

    def _give_up(self, last: int, why: str) -> None:
        """Give up all up to this number. Stored or not: nobody knows."""
        overdue: list[int] = []
        for number in self._refused:
            if number > last:
                break
            overdue.append(number)
        if not overdue:
            return
        logger.warning("%d frames are given up: %s", len(overdue), why)
        error = BusUnavailable(why, retry_after=1.0)
        for refused in [self._refused.pop(number) for number in overdue]:
            refused(error)


def refusal(code: int, description: str, *, what: str = "the model's queue") -> QInferError:
    """The error for one of JetStream's; `what` was to take something."""
    if code in _FULL:
        return QueueFull(f"{what} is full: {description}", retry_after=1.0)
    return BusUnavailable(f"the broker refused the message: {description}", retry_after=1.0)


def _refusal(message: Msg) -> QInferError:
    try:
        error = json.loads(message.data)["error"]
        code, description = int(error.get("err_code", 0)), str(error.get("description", ""))
    except (ValueError, KeyError, TypeError):
        return NoWorker(NO_QUEUE, retry_after=1.0)
    return refusal(code, description)
