"""Capacity that nobody else wants: batch jobs ask a model only while it has nothing else to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from time import monotonic

from qinfer_gateway.admission import Flight

_LOOK = 0.1  # seconds between two looks
_YIELD = 1.0  # seconds without a request after an answer that told of others who wait
_STALE = 5.0  # seconds after which a queue that nothing is heard of is looked at by asking once
_NO_FLIGHT = Flight()

Heard = Callable[[int], None]
"""Told how many requests wait behind an answer, whoever sent them."""


class Spare:
    """Tells when a model has nothing to do.

    Args:
        flights: what is in flight, by model.
        with_model: how many of that are jobs', by model; counted here, too.
        wanted: whether jobs that are no spare ones wait here for a model.
        clock: a monotonic clock.
    """

    def __init__(
        self,
        flights: Callable[[], Mapping[str, Flight]],
        with_model: dict[str, int],
        wanted: Callable[[str], bool] = lambda _: False,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._flights = flights
        self._with_model = with_model
        self._wanted = wanted
        self._clock = clock
        self._not_before: dict[str, float] = {}

    @asynccontextmanager
    async def turn(self, model: str) -> AsyncIterator[Heard]:
        """Wait until nobody else wants anything of a model, however long that takes; then ask it once.

        Only the requests of this gateway are counted by it. Of others' it hears with each answer, and
        holds back for a moment.
        """
        begun = self._clock()
        while not self._free(model, begun):  # noqa: ASYNC110 (nobody tells when others want nothing)
            await asyncio.sleep(_LOOK)
        self._with_model[model] = self._with_model.get(model, 0) + 1

        def heard(backlog: int) -> None:
            if backlog >= self._with_model[model]:  # this one is among them no more
                self._not_before[model] = self._clock() + _YIELD

        try:
            yield heard
        finally:
            self._with_model[model] -= 1

    def _free(self, model: str, since: float) -> bool:
        own = self._with_model.get(model, 0)
        flight = self._flights().get(model, _NO_FLIGHT)
        now = self._clock()
        if flight.count > own or self._wanted(model) or now < self._not_before.get(model, 0.0):
            return False
        return flight.known_backlog <= own or (not flight.count and now - since > _STALE)
