"""Capacity that nobody else wants: batch jobs ask a model only while it has nothing else to do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import TypeAlias

from qinfer.errors import QInferError
from qinfer_gateway.admission import Flight
from qinfer_gateway.jobs.lane import Shares

_LOOK = 0.1  # seconds between two looks
MOST = 2
"""Requests of batch jobs at a model at once: one that runs, and one that waits so that no worker is idle."""

_YIELD = 1.0  # seconds without a request after an answer that told of others who wait
_NO_FLIGHT = Flight()

Heard: TypeAlias = Callable[[int], None]
"""Told how many requests wait behind an answer, whoever sent them."""


class Spare:
    """Tells when a model has nothing to do.

    Args:
        flights: what this gateway has in flight, by model.
        shares: what of that is jobs'; the requests that are made in turns are counted there, too.
        queued: how many frames lie in the queue of a model and version, whoever sent them.
        clock: a monotonic clock.
    """

    def __init__(
        self,
        flights: Callable[[], Mapping[str, Flight]],
        shares: Shares,
        queued: Callable[[str, str], Awaitable[int]],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._flights = flights
        self._shares = shares
        self._queued = queued
        self._clock = clock
        self._asking: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}

    @asynccontextmanager
    async def turn(self, model: str, version: str, rows: int) -> AsyncIterator[Heard]:
        """Wait until nobody else wants anything of a model, however long that takes; then ask it once.

        Args:
            model, version: whom.
            rows: of the request.
        """
        while not await self._free(model, version):  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(_LOOK)
        share = self._shares[model]
        self._asking[model] += 1
        share.jobs += 1
        share.rows += rows
        try:
            yield lambda backlog: self._heard(model, backlog)
        finally:
            self._asking[model] -= 1
            share.jobs -= 1
            share.rows -= rows

    def _heard(self, model: str, backlog: int) -> None:
        if backlog >= self._asking[model]:  # what was answered is among them no more: others' are
            self._not_before[model] = self._clock() + _YIELD

    async def _free(self, model: str, version: str) -> bool:
        if not self._idle(model):
            return False
        if self._asking[model]:
            return True
        try:
            unused = not await self._queued(model, version)
        except QInferError:
            return False
        return unused and self._idle(model)

    def _idle(self, model: str) -> bool:
        """Whether this gateway knows of nobody else."""
        own = self._asking[model]
        if own >= MOST:
            return False
        flight = self._flights().get(model, _NO_FLIGHT)
        waited = self._clock() >= self._not_before.get(model, 0.0)
        return waited and flight.count <= own and flight.known_backlog <= own
