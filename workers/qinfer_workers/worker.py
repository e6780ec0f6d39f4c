"""A worker: loads models, serves their queues, tells the fleet about itself."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterable, Mapping

from qinfer.bus import Bus
from qinfer.errors import QInferError
from qinfer.registry import STATISTICS, Directory, Registration, WorkerRecord
from qinfer.telemetry.statistics import StatisticsReport, encode_report
from qinfer.telemetry.stats import ModelStats
from qinfer.telemetry.tracing import Tracing
from qinfer_workers.control import Control
from qinfer_workers.discovery import Offering
from qinfer_workers.models import Models
from qinfer_workers.options import WorkerOptions
from qinfer_workers.service import ModelService
from qinfer_workers.watchdog import Watchdog

logger = logging.getLogger(__name__)


class Worker:
    """Serves the models of its repositories from the bus until it is drained."""

    def __init__(self, options: WorkerOptions, bus: Bus, tracing: Tracing | None = None) -> None:
        self.id = f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{secrets.token_hex(3)}"
        self._options = options
        self._bus = bus
        self._directory = Directory(bus)
        self._models = Models(
            bus,
            self._directory,
            worker=self.id,
            options=options,
            tracing=tracing,
            announce=self._announce,
        )
        self._control = Control(bus, self._directory, self._models, worker=self.id, options=options)
        self._registration: Registration | None = None
        self._offering = Offering(bus.names, self.id)
        self._drained = False

    @property
    def services(self) -> dict[str, ModelService]:
        """What serves each model."""
        return self._models.services

    @property
    def problems(self) -> dict[str, str]:
        """What could not be loaded, and why, by model."""
        return self._models.problems

    async def start(self) -> None:
        """Load what is to be served, pull, and register.

        Raises:
            BusUnavailable: the broker does not answer.
            SetupError: a model repository cannot be read.
        """
        await self._directory.start()
        await self._control.start()
        await self._bus.answer(STATISTICS, self._statistics)
        self._registration = Registration(self._bus, self._record(), self._models.records(), self._directory)
        await self._registration.start()
        await self._advertise()
        await self._control.listen()
        logger.info("worker %s serves %s", self.id, ", ".join(sorted(self.services)) or "no model")

    async def hung(self) -> str:
        """Return the name of an instance that hangs, as soon as there is one."""
        watchdog = Watchdog(self._models.versions, timeout=self._options.hang_timeout)
        return await watchdog.hung()

    def look(self) -> None:
        """Look at the model repositories again: load what is new or changed, unload what is gone."""
        self._control.look()

    async def drain(self) -> None:
        """Take nothing more, finish what is held, give the rest back, leave. Idempotent."""
        if self._drained:
            return
        self._drained = True
        await self._control.close()
        if self._registration is not None and self._bus.connected:
            await self._registration.drain()
            await self._advertise()
        await self._models.drain(self._options.drain_timeout)
        if self._registration is not None:
            await self._registration.close()
        await self._directory.close()
        await self._models.close()

    def stats(self) -> list[ModelStats]:
        """Counters of every served version."""
        return self._models.stats()

    async def _announce(self, forget: Mapping[str, Iterable[str]]) -> None:
        """Tell the fleet what has changed; before the worker is registered there is nothing to tell."""
        if self._registration is not None:
            await self._registration.update(
                models=self._models.serving,
                problems=dict(self.problems),
                records=self._models.records(),
                forget=forget,
            )
            await self._advertise()

    async def _advertise(self) -> None:
        """Show what is served to tools of the broker, who do without where that fails."""
        serving = {} if self._drained else self._models.serving
        services = self.services
        versions = [services[name].versions[version] for name in serving for version in serving[name]]
        try:
            await self._bus.advertise(self._offering.of(versions))
        except QInferError as error:
            logger.warning("models are not shown as services of the broker: %s", error)

    def _record(self) -> WorkerRecord:
        return WorkerRecord(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            models=self._models.serving,
            problems=dict(self.problems),
            control=self._options.model_control_mode,
        )

    async def _statistics(self, _: bytes) -> bytes:
        return encode_report(StatisticsReport([stats.snapshot() for stats in self.stats()]))
