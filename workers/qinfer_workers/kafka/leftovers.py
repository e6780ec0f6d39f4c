"""Closes Kafka clients without waiting for ever for brokers that are away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any

from qinfer.lifecycle import cancelled

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT = 10.0


class Leftovers:
    """Closes clients whose brokers may be away, without waiting for them for ever.

    A client that has something to send ends when that is sent or refused. No session begins before the
    clients of the last one have ended, so there are never more of them than one session has.
    """

    def __init__(self) -> None:
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self, closing: Coroutine[Any, Any, None]) -> None:
        """Close a client, in the background after some seconds."""
        task = asyncio.create_task(_quietly(closing), name="kafka close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        await asyncio.wait({task}, timeout=_CLOSE_TIMEOUT)

    async def ended(self) -> None:
        """Return when all clients are closed."""
        while self._closing:
            await asyncio.wait(self._closing)

    async def abandon(self) -> None:
        """Wait no longer."""
        await cancelled(*self._closing)


async def _quietly(closing: Awaitable[None]) -> None:
    try:
        await closing
    except Exception as error:  # noqa: BLE001 (whatever it is, the client is of no use any more)
        logger.info("a Kafka client did not close in good order: %r", error)
