"""What the fleet knows of itself: which models exist, and which live workers serve them.

Workers write two kinds of records to the broker: one a model version, which stays, and one a worker, which
it renews; a worker that stops renewing is gone. Gateways and clients watch both and need no other source.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

import msgspec

from qinfer.bus import Bus, Watcher
from qinfer.errors import QInferError
from qinfer.lifecycle import cancelled
from qinfer.naming import WORKER_LIFETIME, escape, is_version, unescape

HEARTBEAT = 2.0
"""Seconds between two renewals of a worker's record."""

QUEUE_ROWS = "queue.max_rows"
"""Parameter of a model's configuration: rows that each gateway may have in flight for it."""

STATISTICS = "statistics"
"""Topic of `Bus.ask` on which every worker answers with its statistics."""

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TensorRecord(msgspec.Struct, frozen=True):
    """Signature of one tensor; `dims` without the batch dimension, -1 for a variable one."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


class ModelRecord(msgspec.Struct, frozen=True):
    """One version of one model.

    Attributes:
        name, version: which one; the version is a decimal number.
        backend, platform: as in its configuration.
        max_batch_size: rows a request may have; 0 when the model has no batch dimension.
        inputs, outputs: its signature.
        config: the serialised `inference.ModelConfig`.
        override: the configuration, as JSON, it was loaded with instead of its repository's; a worker that
            joins the fleet loads it with the same.
        queue_bytes: what the broker queues for it before it refuses more; 0 for no limit that is known.
    """

    name: str
    version: str
    backend: str
    platform: str
    max_batch_size: int
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    config: bytes
    override: str = ""
    queue_bytes: int = 0


class WorkerRecord(msgspec.Struct, frozen=True):
    """One live worker process.

    Attributes:
        id: its unique id.
        host, pid: where it runs.
        models: the versions of each model it serves, ascending.
        problems: models of its repository that could not be loaded, with the reason.
        draining: it finishes what it holds and takes no more.
        control: its model control mode: "none", "poll", or "explicit", in which others may have it load and
            unload models.
    """

    id: str
    host: str
    pid: int
    models: dict[str, list[str]]
    problems: dict[str, str] = {}
    draining: bool = False
    control: str = "none"


_model_decoder = msgspec.msgpack.Decoder(ModelRecord)
_worker_decoder = msgspec.msgpack.Decoder(WorkerRecord)


def model_key(name: str, version: str) -> str:
    """Key of a model's record in its bucket."""
    return f"{escape(name)}.{version}"


async def forget_models(bus: Bus, models: Mapping[str, Iterable[str]]) -> None:
    """Remove the records of these versions of models; live workers write theirs again when they start."""
    for name, versions in models.items():
        for version in list(versions):
            await bus.delete(bus.names.models_bucket, model_key(name, version))


class Registration:
    """A worker's own entries in the registry.

    Args:
        bus: where they are written.
        worker: the worker.
        models: what it serves.
        directory: the registry as the worker sees it. Records of its models that somebody removed, who
            believed that nobody serves them, are written again.
    """

    def __init__(
        self,
        bus: Bus,
        worker: WorkerRecord,
        models: Iterable[ModelRecord],
        directory: Directory | None = None,
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._models = list(models)
        self._directory = directory
        self._written: dict[str, bytes] = {}
        self._known: WorkerRecord | None = None  # as it was written last
        self._missed: set[str] = set()
        self._writing = asyncio.Lock()  # an older state must not overtake a newer one
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Write the records and keep renewing the worker's."""
        await self._write()
        self._bus.on_reconnect(self._soon)
        self._task = asyncio.create_task(self._keep(), name="registration")

    async def update(
        self,
        *,
        models: dict[str, list[str]],
        problems: dict[str, str],
        records: Iterable[ModelRecord],
        forget: Mapping[str, Iterable[str]] = MappingProxyType({}),
    ) -> None:
        """Tell everybody at once that this worker serves other models now.

        Whoever watches sees no moment in which a version is known and nobody serves it: what is new is served
        before it is known, what is gone is forgotten while it is still served. What the broker does not take
        is written when it is back.

        Args:
            models: the versions of each model, ascending.
            problems: what could not be loaded, and why.
            records: a record for each of the versions.
            forget: versions of models that nobody serves from now on.
        """
        before = self._worker.models
        self._worker = msgspec.structs.replace(self._worker, models=models, problems=problems)
        self._models = list(records)
        if self._task is None:
            return
        try:
            async with self._writing:
                await self._put(msgspec.structs.replace(self._worker, models=_union(before, models)))
                await self._write_models()
                await forget_models(self._bus, forget)
                await self._renew()
        except QInferError as error:
            logger.warning("the fleet will hear later of changed models: %s", error)
            self._soon()

    async def drain(self) -> None:
        """Tell everybody that this worker takes no more requests."""
        self._worker = msgspec.structs.replace(self._worker, draining=True)
        async with self._writing:
            await self._renew()

    async def close(self) -> None:
        """Stop renewing and remove the worker's record. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        await cancelled(task)
        if self._bus.connected:
            await self._bus.delete(self._bus.names.workers_bucket, self._worker.id)

    def _soon(self) -> None:
        self._written.clear()  # the broker may have come back without its storage
        self._wake.set()

    async def _keep(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), HEARTBEAT)
            except TimeoutError:
                woken = False
            else:
                woken = True
            self._wake.clear()
            try:
                self._look_for_missing()
                await self._write()
            except Exception as error:  # noqa: BLE001 (whatever fails now is tried again at the next beat)
                logger.warning("could not renew this worker's registration: %s", error)
                if woken:
                    self._wake.set()
                    await asyncio.sleep(0.2)

    def _look_for_missing(self) -> None:
        """Have records written again that have been missing for two beats, so not only on their way."""
        if self._directory is None:
            return
        known = self._directory.models
        missing = {
            model_key(model.name, model.version)
            for model in self._models
            if model.version not in known.get(model.name, ())
        }
        for key in missing & self._missed:
            self._written.pop(key, None)
        self._missed = missing

    async def _write(self) -> None:
        """Write what is not written yet of the models' records, then the worker's."""
        async with self._writing:
            if self._unwritten() and self._known is not None:
                # That may take long, or fail for long. What is known of this worker has to live on meanwhile.
                await self._put(msgspec.structs.replace(self._known, draining=self._worker.draining))
            await self._write_models()
            await self._renew()

    def _records(self) -> dict[str, bytes]:
        return {model_key(each.name, each.version): msgspec.msgpack.encode(each) for each in self._models}

    def _unwritten(self) -> dict[str, bytes]:
        return {key: value for key, value in self._records().items() if self._written.get(key) != value}

    async def _write_models(self) -> None:
        for key, value in self._unwritten().items():
            await self._bus.put(self._bus.names.models_bucket, key, value)
            self._written[key] = value
        # What this worker no longer serves is for others to remove, or to write again.
        served = self._records()
        self._written = {key: value for key, value in self._written.items() if key in served}

    async def _renew(self) -> None:
        await self._put(self._worker)

    async def _put(self, record: WorkerRecord) -> None:
        await self._bus.put(self._bus.names.workers_bucket, record.id, msgspec.msgpack.encode(record))
        self._known = record


def _union(one: Mapping[str, list[str]], other: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: sorted({*one.get(name, ()), *other.get(name, ())}, key=int) for name in {**one, **other}}


class Directory:
    """The registry as a watcher sees it.

    A worker's life is measured by the local clock from when its renewals arrive, so clocks of different
    hosts need not agree.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._models: dict[str, dict[str, ModelRecord]] = {}
        self._workers: dict[str, tuple[WorkerRecord, float]] = {}
        self._serving: dict[str, set[str]] = {}
        self._watchers: list[Watcher] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Watch the registry; returns once everything that is there has been read."""
        names = self._bus.names
        self._watchers = [
            await self._bus.watch(names.models_bucket, self._on_model),
            await self._bus.watch(names.workers_bucket, self._on_worker),
        ]
        self._sweeper = asyncio.create_task(self._sweep(), name="directory")

    async def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._sweeper is not None:
            await cancelled(self._sweeper)
            self._sweeper = None
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            await watcher.close()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever models or live workers changed."""
        self._listeners.append(listener)

    @property
    def models(self) -> dict[str, dict[str, ModelRecord]]:
        """All known models: name to version to record."""
        return self._models

    @property
    def workers(self) -> list[WorkerRecord]:
        """The live workers."""
        return [record for record, _ in self._workers.values()]

    def serving(self, model: str) -> set[str]:
        """Versions of a model that a live worker serves."""
        return self._serving.get(model, set())

    def served_by_others(self, model: str, version: str, worker: str) -> bool:
        """Whether a live worker other than `worker` serves a version, or any for version ""."""
        return any(
            version in record.models.get(model, ()) or (not version and model in record.models)
            for record, _ in self._workers.values()
            if record.id != worker and not record.draining
        )

    def record(self, model: str, version: str = "") -> ModelRecord | None:
        """A version's record; without a version the newest served, or the newest known if none is served."""
        versions = self._models.get(model)
        if not versions:
            return None
        if version:
            return versions.get(version)
        serving = self._serving.get(model)
        candidates = [known for known in versions if known in serving] if serving else []
        return versions[max(candidates or versions, key=int)]

    def _on_model(self, key: str, value: bytes | None) -> None:
        token, _, version = key.rpartition(".")
        if value is None:
            versions = self._models.get(unescape(token), {})
            versions.pop(version, None)
            if not versions:
                self._models.pop(unescape(token), None)
        else:
            record = _decode(_model_decoder, key, value)
            if record is None or self._models.get(record.name, {}).get(record.version) == record:
                return
            if not is_version(record.version):
                logger.warning("registry entry %s has version %r; expected a number", key, record.version)
                return
            self._models.setdefault(record.name, {})[record.version] = record
        self._changed()

    def _on_worker(self, key: str, value: bytes | None) -> None:
        if value is None:
            if self._workers.pop(key, None) is not None:
                self._changed()
            return
        record = _decode(_worker_decoder, key, value)
        if record is None:
            return
        before = self._workers.get(key)
        self._workers[key] = (record, self._loop.time())
        if before is None or before[0] != record:
            self._changed()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT / 2)
            now = self._loop.time()
            if not self._bus.connected:
                # No news is no sign of death while the line is cut, nor right after.
                self._workers = {key: (record, now) for key, (record, _) in self._workers.items()}
                continue
            dead = [key for key, (_, seen) in self._workers.items() if now - seen > WORKER_LIFETIME]
            for key in dead:
                logger.warning("worker %s has not been heard of for %.0f s", key, WORKER_LIFETIME)
                del self._workers[key]
            if dead:
                self._changed()

    def _changed(self) -> None:
        serving: dict[str, set[str]] = {}
        for record, _ in self._workers.values():
            if not record.draining:
                for model, versions in record.models.items():
                    serving.setdefault(model, set()).update(filter(is_version, versions))
        self._serving = serving
        for listener in self._listeners:
            listener()


def _decode(decoder: msgspec.msgpack.Decoder[T], key: str, value: bytes) -> T | None:
    try:
        return decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        logger.warning("registry entry %s is unreadable: %s", key, error)
        return None
