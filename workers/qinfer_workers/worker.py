"""A worker: loads models, serves their queues, tells the fleet about itself."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from functools import partial

from qinfer.bus import Bus, QueueSpec
from qinfer.errors import QInferError
from qinfer.proto import ModelConfig
from qinfer.registry import STATISTICS, ModelRecord, Registration, WorkerRecord
from qinfer.repository import ModelEntry, Repository
from qinfer.repository.validate import without_effect
from qinfer.telemetry.statistics import StatisticsReport, encode_report
from qinfer.telemetry.stats import ModelStats
from qinfer.telemetry.tracing import Tracing
from qinfer_workers.instance import Completion
from qinfer_workers.loading import close, load_version, record_of
from qinfer_workers.options import WorkerOptions
from qinfer_workers.queueing import max_deliver, queue_spec
from qinfer_workers.service import ModelService, ServedVersion

logger = logging.getLogger(__name__)


class Worker:
    """Serves the models of its repositories from the bus until it is drained."""

    def __init__(self, options: WorkerOptions, bus: Bus, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self.id = f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{secrets.token_hex(3)}"
        self.services: dict[str, ModelService] = {}
        self.problems: dict[str, str] = {}
        self._queues: dict[str, QueueSpec] = {}
        self._turn = asyncio.Lock()  # of redelivered requests: see `isolation`
        self._options = options
        self._bus = bus
        self._registration: Registration | None = None
        self._drained = False

    async def start(self) -> None:
        """Load everything, then pull and register. A model that cannot be loaded is a problem, not a stop."""
        for entry in await asyncio.to_thread(self._entries):
            await self._load(entry)
        await self._bus.answer(STATISTICS, self._statistics)
        for service in self.services.values():
            await service.start(self._queues[service.model])
        self._registration = Registration(self._bus, self._record(), self._model_records())
        await self._registration.start()
        logger.info("worker %s serves %s", self.id, ", ".join(sorted(self.services)) or "no model")

    async def drain(self) -> None:
        """Take nothing more, finish what is held, give the rest back, leave. Idempotent."""
        if self._drained:
            return
        self._drained = True
        if self._registration is not None and self._bus.connected:
            await self._registration.drain()
        timeout = self._options.drain_timeout
        await asyncio.gather(*(service.drain(timeout) for service in self.services.values()))
        if self._registration is not None:
            await self._registration.close()
        await asyncio.gather(*(close(served.instances, timeout=5.0) for served in self._versions()))

    def stats(self) -> list[ModelStats]:
        """Counters of every served version."""
        return [served.recorder.stats for served in self._versions()]

    def _entries(self) -> list[ModelEntry]:
        entries, problems = Repository(*self._options.repositories).scan()
        wanted = self._options.models
        for problem in problems:
            if not wanted or problem.model in wanted:
                self._problem(problem.model, problem.error)
        if wanted:
            found = {entry.config.name for entry in entries} | {problem.model for problem in problems}
            for name in wanted:
                if name not in found:
                    self.problems[name] = "not in any model repository"
            entries = [entry for entry in entries if entry.config.name in wanted]
        return entries

    async def _load(self, entry: ModelEntry) -> None:
        name = entry.config.name
        ignored = without_effect(ModelConfig.FromString(entry.config.proto))
        if ignored:
            logger.warning("model %s: without effect yet: %s", name, ", ".join(ignored))
        try:
            self._queues[name] = queue_spec(entry.config, self._options)
            deliveries = max_deliver(entry.config, self._options)
        except QInferError as error:
            self._problem(name, error)
            return
        versions: list[ServedVersion] = []
        for version in entry.versions:
            logger.info("loading model %s version %s", name, version)
            try:
                versions.append(
                    await load_version(
                        entry,
                        version,
                        on_done=partial(self._completed, name),
                        tracing=self._tracing,
                        subject=self._bus.names.requests(name),
                    )
                )
            except QInferError as error:
                self._problem(name, error)
        if versions:
            self.services[name] = ModelService(
                self._bus, self.id, name, versions, max_deliver=deliveries, turn=self._turn
            )

    def _problem(self, model: str, error: QInferError) -> None:
        logger.error("model %s is not served: %s", model, error)
        self.problems[model] = str(error)

    def _completed(self, model: str, version: str, completion: Completion) -> None:
        service = self.services[model]
        service.completed(service.versions[version], completion)

    def _versions(self) -> list[ServedVersion]:
        return [served for service in self.services.values() for served in service.versions.values()]

    def _record(self) -> WorkerRecord:
        models = {name: list(service.versions) for name, service in self.services.items()}
        return WorkerRecord(
            id=self.id, host=socket.gethostname(), pid=os.getpid(), models=models, problems=self.problems
        )

    def _model_records(self) -> list[ModelRecord]:
        return [record_of(served) for served in self._versions()]

    async def _statistics(self, _: bytes) -> bytes:
        return encode_report(StatisticsReport([stats.snapshot() for stats in self.stats()]))
