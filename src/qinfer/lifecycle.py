"""Signals and the end of a process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@asynccontextmanager
async def until_stopped() -> AsyncIterator[asyncio.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second ends the process at once.

    The handlers found before are put back at the end.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def stop(number: signal.Signals) -> None:
        if stopped.is_set():
            logger.warning("%s again: not waiting any longer", number.name)
            os._exit(128 + number)
        stopped.set()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
