"""What the client library's errors mean, and which of them pass."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import nats.errors
from nats.js.errors import APIError, NotFoundError

from qinfer.errors import BusUnavailable

PATIENCE = 15.0
"""Seconds to wait for a cluster to be able again: its members elect a leader within ten."""

_RETRY_WAIT = 0.25
_INTERNAL = 500  # what a member answers that cannot tell whether it still leads
_NO_ROOM = frozenset((10047, 10023, 10028))  # storage, resources or memory: that does not pass

logger = logging.getLogger(__name__)

T = TypeVar("T")


def unavailable(error: Exception) -> BusUnavailable:
    """The error to raise for one of the client library's."""
    if isinstance(error, NotFoundError):
        return BusUnavailable(f"the broker has no such stream or consumer: {error}", retry_after=1.0)
    if isinstance(error, TimeoutError):
        return BusUnavailable("the broker does not answer in time", retry_after=1.0)
    return BusUnavailable(f"the broker refused: {str(error) or repr(error)}", retry_after=1.0)


async def patiently(step: Callable[[], Awaitable[T]]) -> T:
    """Do something at the broker; again, for `PATIENCE` seconds, while it has no leader for it.

    Raises:
        BusUnavailable: that did not pass, or it is something else.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + PATIENCE
    while True:
        try:
            return await step()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            if not _passes(error) or loop.time() > give_up:
                raise unavailable(error) from error
            logger.info("the broker is not able to at the moment: %r", error)
            await asyncio.sleep(_RETRY_WAIT)


def _passes(error: Exception) -> bool:
    if isinstance(error, APIError):
        return (error.code or 0) >= _INTERNAL and error.err_code not in _NO_ROOM
    return isinstance(error, TimeoutError | nats.errors.TimeoutError | nats.errors.NoRespondersError)
