"""Versions on their way out.

What is replaced finishes what it holds. What is gone has been taken off the registry, and its queue is served
until it is empty: gateways that have not heard yet lose nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable, Coroutine, Sequence

from qinfer.bus import Bus
from qinfer.errors import BusUnavailable
from qinfer.lifecycle import cancelled
from qinfer.naming import WORKER_LIFETIME
from qinfer.registry import Directory, forget_models
from qinfer_workers.loading import close
from qinfer_workers.served import ServedVersion
from qinfer_workers.service import ModelService

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 5.0
"""Seconds an instance may take to end."""

_GRACE = 1.0  # seconds in which everybody hears that a version is gone, with a margin
_LOOK = 0.2


class Leaving:
    """Ends what is not to be served any longer, in tasks of its own.

    Args:
        bus: a started bus.
        directory: who else serves what.
        worker: this worker's id.
        timeout: seconds that finishing may take; what is left then goes back to the queue.
        serves: whether this worker serves a version ("" for any) of a model, because it was loaded again.
    """

    def __init__(
        self,
        bus: Bus,
        directory: Directory,
        *,
        worker: str,
        timeout: float,
        serves: Callable[[str, str], bool],
    ) -> None:
        self._bus = bus
        self._directory = directory
        self._worker = worker
        self._timeout = timeout
        self._serves = serves
        self._tasks: set[asyncio.Task[None]] = set()
        self._hurry = asyncio.Event()
        self._changed = asyncio.Event()
        directory.on_change(self._changed.set)
        self.versions: dict[ServedVersion, str] = {}
        """What is still loaded, to the name of its model."""
        self.services: set[ModelService] = set()
        """Of models that are gone as a whole."""

    def unshared(self, model: str, versions: Sequence[str]) -> list[str]:
        """Those of the versions that nobody serves once this worker does not: they are to be forgotten."""
        return [version for version in versions if not self._served(model, version)]

    def replaced(self, service: ModelService, served: ServedVersion) -> None:
        """Another has taken a version's place."""
        if served in self.versions:
            return  # it was on its way already
        self.versions[served] = service.model
        self._spawn(self._retire(service, served), f"retiring {service.model}")

    def gone(self, service: ModelService, served: ServedVersion) -> None:
        """A version is no longer served; the fleet has been, or is about to be, told."""
        self.versions[served] = service.model
        self._spawn(self._retire_gone(service, served), f"retiring {service.model}")

    def unload(self, service: ModelService, versions: Sequence[str]) -> None:
        """A model is no longer served; the fleet has been told."""
        self.services.add(service)
        for served in service.versions.values():
            self.versions.setdefault(served, service.model)
        self._spawn(self._unload(service, versions), f"unloading {service.model}")

    def forget_later(self, model: str, versions: Sequence[str]) -> None:
        """Look again at versions that others seemed to serve when this worker let go of them.

        Two that let go at once may each have thought so of the other. A record that stays is that of a
        version which others serve; if they die later, it is they who are missing, and not the model.
        """
        if versions:
            self._spawn(self._forget_later(model, versions), f"forgetting {model}")

    async def close(self) -> None:
        """End everything now: others serve what is queued."""
        self._hurry.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._timeout + CLOSE_TIMEOUT)
        await cancelled(*self._tasks)

    async def _retire(self, service: ModelService, served: ServedVersion) -> None:
        await service.retire(served, self._timeout)
        await self._free(served)

    async def _retire_gone(self, service: ModelService, served: ServedVersion) -> None:
        await self._until_quiet(service.model, [served.version])
        await self._retire(service, served)

    async def _unload(self, service: ModelService, versions: Sequence[str]) -> None:
        await self._until_quiet(service.model, ["", *versions])
        await service.drain(self._timeout)
        self.services.discard(service)
        for served in list(service.versions.values()):
            await self._free(served)

    async def _until_quiet(self, model: str, versions: Sequence[str]) -> None:
        """Wait until everybody has heard, and what they sent before that is answered."""
        loop = asyncio.get_running_loop()
        await self._pause(self._hurry, _GRACE)
        give_up = loop.time() + self._timeout
        for version in versions:
            while not (self._hurry.is_set() or loop.time() > give_up or self._served(model, version)):
                try:
                    if not await self._bus.queued(model, version):
                        break
                except BusUnavailable as error:
                    logger.warning("model %s: what is queued for it is not known: %s", model, error)
                await self._pause(self._hurry, _LOOK)

    async def _forget_later(self, model: str, versions: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + WORKER_LIFETIME
        left = list(versions)
        while left and loop.time() < give_up and not self._hurry.is_set():
            self._changed.clear()
            await self._pause(self._changed, _LOOK)
            left = [version for version in left if not self._serves(model, version)]
            alone = self.unshared(model, left)
            try:
                await forget_models(self._bus, {model: alone})
            except BusUnavailable as error:
                logger.warning("model %s: its record stays for now: %s", model, error)
            else:
                left = [version for version in left if version not in alone]

    async def _free(self, served: ServedVersion) -> None:
        await close(served.instances, CLOSE_TIMEOUT)
        self.versions.pop(served, None)
        if gc.get_freeze_count():
            # What was there at the start was put out of the collector's sight, and models are full of cycles.
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    async def _pause(self, event: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)

    def _served(self, model: str, version: str) -> bool:
        others = self._directory.served_by_others(model, version, self._worker)
        return others or self._serves(model, version)

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)
