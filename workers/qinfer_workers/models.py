"""The models that a worker has loaded, and how they change while it serves.

What is new is loaded beside what is there, and only when all of it is ready do requests go to it; a load
that fails changes nothing. What is replaced or gone leaves in its time (see `leaving`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qinfer.bus import Bus
from qinfer.claims import Claims
from qinfer.control import ModelState, State
from qinfer.errors import ConfigError, ModelNotFound, QInferError
from qinfer.proto import ModelConfig
from qinfer.registry import Directory, ModelRecord
from qinfer.repository import ModelEntry, fingerprints
from qinfer.repository.validate import without_effect
from qinfer.telemetry.stats import ModelStats
from qinfer.telemetry.tracing import Tracing
from qinfer_workers.instance import Completion
from qinfer_workers.leaving import CLOSE_TIMEOUT, Leaving
from qinfer_workers.loading import close, load_version, record_of
from qinfer_workers.options import WorkerOptions
from qinfer_workers.queueing import max_deliver, queue_spec
from qinfer_workers.served import ServedVersion
from qinfer_workers.service import ModelService

logger = logging.getLogger(__name__)

Announce = Callable[[Mapping[str, Sequence[str]]], Awaitable[None]]


class _Completions:
    """Brings what the instances of a loaded version are done with to whoever serves it."""

    def __init__(self) -> None:
        self.service: ModelService | None = None
        self.served: ServedVersion | None = None

    def __call__(self, _: str, completion: Completion) -> None:
        if self.service is None or self.served is None:  # nobody gives batches to what is not served
            raise AssertionError("a batch was run before its version was served")
        self.service.completed(self.served, completion)


@dataclass(slots=True)
class _Loaded:
    """A model as it is served.

    Attributes:
        service: serves it.
        prints: fingerprint of each version, ascending.
        override: the configuration that was given with the load.
        queue_bytes: limit of its queue.
    """

    service: ModelService
    prints: dict[str, str]
    override: str = ""
    queue_bytes: int = 0


class Models:
    """Loads, replaces and unloads.

    Args:
        bus: a started bus.
        directory: a started directory: who else serves what.
        worker: this worker's id.
        options: how queues are kept, and how long finishing may take.
        tracing: makes spans; None when tracing is off.
        announce: tells the fleet what `serving` and `problems` say, and has it forget versions of models.
    """

    def __init__(
        self,
        bus: Bus,
        directory: Directory,
        *,
        worker: str,
        options: WorkerOptions,
        tracing: Tracing | None,
        announce: Announce,
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._options = options
        self._tracing = tracing
        self._announce = announce
        self._turn = asyncio.Lock()  # of redelivered requests: see `isolation`
        self._claims = Claims(bus, max_bytes=options.max_claim_bytes)
        self._changing = asyncio.Lock()
        self._loaded: dict[str, _Loaded] = {}
        self._loading: dict[str, Sequence[str]] = {}
        self._failed: dict[str, dict[str, str]] = {}  # fingerprints of what could not be loaded
        self._leaving = Leaving(
            bus,
            directory,
            worker=worker,
            timeout=options.drain_timeout,
            serves=lambda model, version: (
                version in self._loaded[model].prints or not version if model in self._loaded else False
            ),
        )
        self._completions: dict[ServedVersion, _Completions] = {}
        bus.on_disconnect(self._cut_off)
        self.problems: dict[str, str] = {}
        """What could not be loaded, and why, by model."""

    @property
    def services(self) -> dict[str, ModelService]:
        """What serves each model."""
        return {name: loaded.service for name, loaded in self._loaded.items()}

    @property
    def serving(self) -> dict[str, list[str]]:
        """The versions of each model, ascending."""
        return {name: list(loaded.prints) for name, loaded in self._loaded.items()}

    def override(self, model: str) -> str:
        """The configuration that a model was loaded with instead of its file; empty for none."""
        loaded = self._loaded.get(model)
        return loaded.override if loaded is not None else ""

    def records(self) -> list[ModelRecord]:
        """A record for every version that is served."""
        return [
            record_of(loaded.service.versions[version], loaded.override, queue_bytes=loaded.queue_bytes)
            for loaded in self._loaded.values()
            for version in loaded.prints
        ]

    def stats(self) -> list[ModelStats]:
        """Counters of every version, those that finish included; a version that was replaced goes on."""
        found = {
            (served.recorder.stats.model, served.version): served.recorder.stats for served in self.versions()
        }
        return list(found.values())

    def states(self) -> list[ModelState]:
        """What the repository index says of the models this worker has to do with."""
        states: dict[tuple[str, str], ModelState] = {}

        def tell(name: str, version: str, state: State, reason: str = "") -> None:
            states[name, version] = ModelState(name, version, state, reason)

        for served, name in self._leaving.versions.items():
            tell(name, served.version, "UNLOADING")
        for name, problem in self.problems.items():
            for version in self._failed.get(name) or ([""] if name not in self._loaded else []):
                tell(name, version, "UNAVAILABLE", problem)
        for name, versions in self._loading.items():
            for version in versions:
                tell(name, version, "LOADING")
        for name, loaded in self._loaded.items():
            for version in loaded.prints:
                # Where a version could not be replaced, the old one goes on.
                wrong = version in self._failed.get(name, [version])
                tell(name, version, "READY", self.problems.get(name, "") if wrong else "")
        return list(states.values())

    def _cut_off(self) -> None:
        for service in {*self.services.values(), *self._leaving.services}:
            service.cut_off()

    # Changes

    async def put(self, entry: ModelEntry, override: str = "", *, again: bool = True) -> None:
        """Serve a model as an entry of the repository says; what has not changed is left as it is.

        Args:
            entry: the model.
            override: the configuration that was given with the load, which the entry was read with.
            again: try what could not be loaded before even if it has not changed.

        Raises:
            QInferError: a version cannot be loaded. A model that is served goes on as it was; of one that is
                not, the versions that could be loaded are served.
        """
        async with self._changing:
            name = entry.config.name
            try:
                prints = await asyncio.to_thread(_prints, entry)
                if again or prints != self._failed.get(name):
                    await self._put(entry, prints, override)
            except QInferError as error:
                self.complain(name, error.message)
                await self._announce({})
                raise
            finally:
                self._loading.pop(name, None)

    async def remove(self, model: str, *, everywhere: bool = False) -> None:
        """Serve a model no longer. Returns when the fleet has been told; what is held is finished.

        Args:
            model: its name.
            everywhere: all workers were told to, and who told them has the fleet forget the model.

        Raises:
            ModelNotFound: it is not loaded here.
        """
        async with self._changing:
            loaded = self._loaded.pop(model, None)
            self._failed.pop(model, None)
            told = self.problems.pop(model, None)
            if loaded is None:
                if told is not None:
                    await self._announce({})
                raise ModelNotFound(f"model {model!r} is not loaded")
            logger.info("unloading model %s", model)
            versions = list(loaded.prints)
            # In this order: requests go from answers to "no such model".
            alone = self._leaving.unshared(model, versions)
            await self._announce({model: alone})
            self._leaving.unload(loaded.service, versions)
            if not everywhere:
                self._leaving.forget_later(model, [version for version in versions if version not in alone])

    async def tell(self) -> None:
        """Tell the fleet of what was complained of."""
        await self._announce({})

    def complain(self, model: str, problem: str) -> None:
        """Note what is wrong with a model."""
        if self.problems.get(model) != problem:
            logger.error("model %s cannot be loaded: %s", model, problem)
        self.problems[model] = problem

    async def drain(self, timeout: float) -> None:
        """Take nothing more, finish what is held, give back what does not finish, free all instances."""
        serving = self.services.values()
        await asyncio.gather(self._leaving.close(), *(service.drain(timeout) for service in serving))

    async def close(self) -> None:
        """Free all instances."""
        everything = list(self.versions())
        await asyncio.gather(*(close(served.instances, CLOSE_TIMEOUT) for served in everything))

    async def _put(self, entry: ModelEntry, prints: dict[str, str], override: str) -> None:
        name = entry.config.name
        loaded = self._loaded.get(name)
        before = loaded.prints if loaded is not None else {}
        wanted = [version for version in prints if before.get(version) != prints[version]]
        gone = [version for version in before if version not in prints]
        if wanted:
            self._tell_ignored(entry)
        self._loading[name] = wanted
        fresh, errors = await self._load_all(entry, wanted)
        if errors:
            self._failed[name] = prints
        else:
            self._failed.pop(name, None)
        if errors and (loaded is not None or not fresh):
            await self._discard(fresh)
            raise errors[0]
        if loaded is None:
            await self._serve(entry, fresh, prints, override)
        else:
            await self._replace(loaded, fresh, gone, prints, override)
        if errors:
            raise errors[0]
        if self.problems.pop(name, None) is not None or wanted or gone:
            alone = self._leaving.unshared(name, gone)
            await self._announce({name: alone})
            self._leaving.forget_later(name, [version for version in gone if version not in alone])
        if loaded is not None:
            for version in gone:
                self._leaving.gone(loaded.service, loaded.service.versions[version])

    async def _load_all(
        self, entry: ModelEntry, versions: Iterable[str]
    ) -> tuple[list[ServedVersion], list[QInferError]]:
        fresh: list[ServedVersion] = []
        errors: list[QInferError] = []
        try:
            for version in versions:
                try:
                    fresh.append(await self._load(entry, version))
                except QInferError as error:
                    errors.append(error)
        except BaseException:  # cancelled: the worker drains
            await self._discard(fresh)
            raise
        return fresh, errors

    async def _load(self, entry: ModelEntry, version: str) -> ServedVersion:
        name = entry.config.name
        logger.info("loading model %s version %s", name, version)
        loaded = self._loaded.get(name)
        old = loaded.service.versions.get(version) if loaded is not None else None
        completions = _Completions()
        served = await load_version(
            entry,
            int(version),
            on_done=completions,
            tracing=self._tracing,
            subject=self._bus.names.requests(name),
            stats=old.recorder.stats if old is not None else None,
        )
        completions.served = served
        self._completions[served] = completions
        return served

    async def _serve(
        self, entry: ModelEntry, fresh: Sequence[ServedVersion], prints: dict[str, str], override: str
    ) -> None:
        """Serve a model that was not served before."""
        name = entry.config.name
        try:
            spec, deliver = queue_spec(entry.config, self._options), max_deliver(entry.config, self._options)
            service = ModelService(
                self._bus,
                self._worker,
                name,
                fresh,
                max_deliver=deliver,
                turn=self._turn,
                claims=self._claims,
            )
            self._attach(service, fresh)
            await service.start(spec)
        except QInferError:
            await self._discard(fresh)
            raise
        there = {version: text for version, text in prints.items() if version in service.versions}
        self._loaded[name] = _Loaded(service, there, override, max(0, spec.max_bytes))

    async def _replace(
        self,
        loaded: _Loaded,
        fresh: Sequence[ServedVersion],
        gone: Sequence[str],
        prints: dict[str, str],
        override: str,
    ) -> None:
        service = loaded.service
        self._attach(service, fresh)
        try:
            replaced = await service.replace(fresh, gone)
        except QInferError:
            await self._discard(fresh)
            raise
        loaded.prints, loaded.override = prints, override
        for served in replaced:
            self._leaving.replaced(service, served)

    def _attach(self, service: ModelService, fresh: Iterable[ServedVersion]) -> None:
        for served in fresh:
            self._completions[served].service = service

    async def _discard(self, loaded: Iterable[ServedVersion]) -> None:
        """Free what was loaded and will not be served."""
        for served in loaded:
            self._completions.pop(served, None)
            await close(served.instances, CLOSE_TIMEOUT)

    def _tell_ignored(self, entry: ModelEntry) -> None:
        ignored = without_effect(ModelConfig.FromString(entry.config.proto))
        if ignored:
            logger.warning("model %s: without effect yet: %s", entry.config.name, ", ".join(ignored))

    def versions(self) -> Iterator[ServedVersion]:
        yield from self._leaving.versions
        for loaded in self._loaded.values():
            for served in loaded.service.versions.values():
                if served not in self._leaving.versions:
                    yield served


def _prints(entry: ModelEntry) -> dict[str, str]:
    try:
        return fingerprints(entry)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or entry.directory}: cannot be read: {error.strerror}; expected readable files"
        ) from None
