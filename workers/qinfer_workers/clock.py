"""Deadlines across hosts whose clocks differ.

A frame says when its sender published it and when each request is due, both by the sender's clock: their
difference is the budget that was left. How much of it is used up since, the worker measures against the
broker's store time. The smallest difference seen between its own clock and the broker's is the offset
of the two clocks plus the shortest transit; whatever exceeds it is age. No clock is compared with another
host's, so they need not agree; a steady drift is followed because the minimum is taken over recent windows.

Frames alone would not do: when a worker meets a backlog all of them are old, and the least old would count as
new. So the broker is asked for its time as well, at the start and `CALIBRATION` seconds after each time.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter_ns

from qinfer.bus import Bus
from qinfer.errors import BusUnavailable

logger = logging.getLogger(__name__)

CALIBRATION = 20.0
"""Seconds between two questions for the broker's time: each window has several answers."""

_WINDOW_US = 60_000_000


class BrokerClock:
    """Estimates how long ago the broker stored a frame."""

    __slots__ = ("_current", "_previous", "_started")

    def __init__(self) -> None:
        self._previous: int | None = None
        self._current: int | None = None
        self._started = 0

    def calibrate(self, broker_us: int, now_us: int) -> None:
        """The broker's clock showed `broker_us` when it was asked, and the answer came at `now_us`."""
        self.age_us(broker_us, now_us)

    def age_us(self, stored_us: int, now_us: int) -> int:
        """Microseconds since the broker stored a frame, never negative.

        Args:
            stored_us: the broker's store time, Unix microseconds of its clock.
            now_us: microseconds of a steady clock of this host, which nobody sets: its zero does not matter.
        """
        difference = now_us - stored_us
        if self._current is None or difference < self._current:
            self._current = difference
        if now_us - self._started > _WINDOW_US:
            self._previous, self._current, self._started = self._current, difference, now_us
        base = self._current if self._previous is None else min(self._current, self._previous)
        return max(0, difference - base)


async def calibrate(clock: BrokerClock, bus: Bus, model: str) -> None:
    """Learn how far this host's clock is from the one that gives a model's frames their times."""
    try:
        broker_us = await bus.clock_us(model)
    except BusUnavailable as error:
        logger.warning("model %s: ages are estimated from frames alone: %s", model, error)
    else:
        clock.calibrate(broker_us, perf_counter_ns() // 1000)


async def follow(clock: BrokerClock, bus: Bus, model: str) -> None:
    """Calibrate again and again, until cancelled."""
    while True:
        await asyncio.sleep(CALIBRATION)
        await calibrate(clock, bus, model)
