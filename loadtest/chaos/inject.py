"""Causes a fault and undoes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from loadtest.chaos.client import Order
from loadtest.chaos.faults import FAULTS, Planned, Way, Window
from loadtest.chaos.models import KEEPS_JOURNAL, MODELS, SLOW
from loadtest.chaos.records import Intent
from loadtest.chaos.system import System

_SLOW_DELAY = 0.03
_SLOW_BYTES_PER_SECOND = 2_000_000
_BURST = 400
_BURST_WAYS = (Way.GRPC, Way.NATS)


class Injector:
    """Does to a system what a plan says.

    Args:
        system: a started one.
        tell: gives an order to the clients of one way in.
        ended: waits until so many more requests of an intent have ended.
    """

    def __init__(
        self,
        system: System,
        tell: Callable[[Way, Order], None],
        ended: Callable[[Intent, int], Awaitable[None]],
    ) -> None:
        self._system = system
        self._tell = tell
        self._ended = ended
        self._verbs = {
            "kill": self._kill,
            "restart": self._restart,
            "pause": self._pause,
            "cut": self._cut,
            "stall": self._stall,
            "slow": self._slow,
            "swap": self._swap,
            "poison": self._poison,
            "burst": self._burst,
        }

    async def cause(self, planned: Planned) -> Window:
        """Cause one fault, undo it, and wait until all processes are ready again.

        Raises:
            Unavailable: a process did not come back.
        """
        fault = FAULTS[planned.fault]
        began = time.monotonic()
        verb = planned.fault.rpartition("-")[2]
        await self._verbs[verb](f"{fault.role} {planned.target}", planned)
        undone = time.monotonic()
        await self._all_back(planned, verb)
        return Window(
            fault=planned.fault,
            target=planned.target,
            began=began,
            undone=undone,
            until=time.monotonic() + fault.after,
            model=self._swapped(planned),
            version=self._system.versions.get(self._swapped(planned), 0),
        )

    @staticmethod
    def _swapped(planned: Planned) -> str:
        return MODELS[planned.target] if planned.fault == "swap" else ""

    async def _all_back(self, planned: Planned, verb: str) -> None:
        roles = self._system.roles
        if verb in ("kill", "restart"):
            await roles[f"{FAULTS[planned.fault].role} {planned.target}"].ready()
        elif verb == "poison":
            await asyncio.gather(*(role.ready() for name, role in roles.items() if name.startswith("worker")))

    async def _kill(self, name: str, planned: Planned) -> None:
        role = self._system.roles[name]
        await role.kill()
        await asyncio.sleep(planned.lasts)
        await role.start()

    async def _restart(self, name: str, planned: Planned) -> None:
        role = self._system.roles[name]
        await role.stop()
        await asyncio.sleep(planned.lasts)
        await role.start()

    async def _pause(self, name: str, planned: Planned) -> None:
        role = self._system.roles[name]
        role.pause()
        await asyncio.sleep(planned.lasts)
        role.resume()

    async def _cut(self, name: str, planned: Planned) -> None:
        link = self._system.links[name]
        link.cut()
        await asyncio.sleep(planned.lasts)
        link.restore()

    async def _stall(self, name: str, planned: Planned) -> None:
        link = self._system.links[name]
        link.stall()
        await asyncio.sleep(planned.lasts)
        link.restore()

    async def _slow(self, name: str, planned: Planned) -> None:
        link = self._system.links[name]
        link.slow(delay=_SLOW_DELAY, bytes_per_second=_SLOW_BYTES_PER_SECOND)
        await asyncio.sleep(planned.lasts)
        link.restore()

    async def _swap(self, _name: str, planned: Planned) -> None:
        await self._system.swap(MODELS[planned.target])

    async def _poison(self, _name: str, planned: Planned) -> None:
        ended = self._ended(Intent.POISON, 1)
        self._tell(Way.HTTP, Order(do="poison", model=KEEPS_JOURNAL[planned.target]))
        await ended

    async def _burst(self, _name: str, _planned: Planned) -> None:
        ended = self._ended(Intent.BURST, _BURST * len(_BURST_WAYS))
        for way in _BURST_WAYS:
            self._tell(way, Order(do="burst", model=SLOW, count=_BURST))
        await ended
