"""From a repository entry to loaded instances."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

from qinfer.errors import ConfigError, QInferError
from qinfer.registry import ModelRecord, TensorRecord
from qinfer.repository import InstanceGroup, ModelConfig, ModelEntry, TensorSpec
from qinfer.signature import Signature
from qinfer.telemetry.stats import ModelStats
from qinfer.telemetry.tracing import Tracing
from qinfer_workers.backends import find
from qinfer_workers.backends.base import Backend, Instance, InstanceSpec, StreamingInstance
from qinfer_workers.batch import Member
from qinfer_workers.execution import Executor
from qinfer_workers.instance import Completion, InstanceThread
from qinfer_workers.record import BatchRecorder
from qinfer_workers.served import ServedVersion
from qinfer_workers.streams import StreamingExecutor, StreamingThread, StreamMember, StreamSignature

logger = logging.getLogger(__name__)

_MAX_INSTANCES = 256


def gpu_count() -> int:
    """GPUs this process can see."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def placements(group: InstanceGroup, gpus: int) -> list[tuple[str, int]]:
    """(kind, device) of each instance of a group; AUTO means the GPUs if there are any."""
    kind = group.kind
    if kind == "AUTO":
        kind = "GPU" if gpus else "CPU"
    if kind == "GPU":
        devices = group.gpus or tuple(range(max(1, gpus)))
        return [("GPU", device) for device in devices for _ in range(group.count)]
    return [("CPU", 0)] * group.count


async def load_version(
    entry: ModelEntry,
    version: int,
    *,
    on_done: Callable[[str, Completion], None],
    tracing: Tracing | None,
    subject: str,
    stats: ModelStats | None = None,
) -> ServedVersion:
    """Load every instance of one version of a model.

    Args:
        entry, version: what to load.
        on_done: called on the event loop with the version and each batch its instances are done with.
        tracing: makes spans; None when tracing is off.
        subject: where the model's requests are published.
        stats: counters to go on with; None for new ones.

    Raises:
        QInferError: it cannot be loaded; instances loaded before are closed again.
    """
    backend = find(entry.config.backend)
    await asyncio.to_thread(backend.check)
    config = await asyncio.to_thread(_complete, backend, entry, version)
    places = [place for group in config.instance_groups for place in placements(group, gpu_count())]
    if not 1 <= len(places) <= _MAX_INSTANCES:
        raise ConfigError(
            f"{entry.directory}: instance_group: {len(places)} instances; expected 1 to {_MAX_INSTANCES}"
        )
    streams = _streams(backend, config)
    instances: list[InstanceThread] = []
    try:
        for number, (kind, device) in enumerate(places):
            name = f"{config.name}_{number}"
            spec = InstanceSpec(
                config=config,
                directory=entry.directory,
                version=version,
                name=name,
                kind=kind,
                device=device,
            )
            instance = _thread(backend, spec, partial(on_done, str(version)))
            await instance.start()
            instances.append(instance)
    except BaseException:
        await close(instances, timeout=5.0)
        raise
    return ServedVersion(
        version=str(version),
        config=config,
        instances=instances,
        signature=(StreamSignature if streams else Signature)(
            config.inputs, config.outputs, config.max_batch_size
        ),
        member=StreamMember if streams else Member,
        recorder=BatchRecorder(stats or ModelStats(config.name, str(version)), tracing, subject),
    )


async def close(instances: Sequence[InstanceThread], timeout: float) -> None:
    """Close instances, all at the same time."""
    await asyncio.gather(*(instance.close(timeout) for instance in instances))


def _complete(backend: Backend, entry: ModelEntry, version: int) -> ModelConfig:
    with _as_config_error(entry.config.name, entry.directory / str(version)):
        config = backend.complete(entry.config, entry.directory, version)
    if not config.outputs:
        raise ConfigError(f"{entry.directory}: output: none configured and the model file does not tell")
    return config


def _streams(backend: Backend, config: ModelConfig) -> bool:
    """Whether a model's instances are `StreamingInstance`s."""
    return config.decoupled and bool(getattr(backend, "streams", False))


def _thread(backend: Backend, spec: InstanceSpec, on_done: Callable[[Completion], None]) -> InstanceThread:
    if _streams(backend, spec.config):
        return StreamingThread(spec.name, partial(_load_streaming, backend, spec), on_done)
    return InstanceThread(spec.name, partial(_load, backend, spec), on_done)


def _load(backend: Backend, spec: InstanceSpec) -> Executor:
    with _as_config_error(spec.config.name, spec.version_directory):
        return Executor(spec.config, cast(Instance, backend.load(spec)))


def _load_streaming(backend: Backend, spec: InstanceSpec) -> StreamingExecutor:
    with _as_config_error(spec.config.name, spec.version_directory):
        return StreamingExecutor(spec.config, cast(StreamingInstance, backend.load(spec)))


@contextmanager
def _as_config_error(model: str, directory: Path) -> Iterator[None]:
    """Whatever a backend or model code raises while loading is that model's problem only."""
    try:
        yield
    except QInferError:
        raise
    except Exception as error:
        logger.exception("model %s failed to load", model)
        raise ConfigError(f"{directory}: {type(error).__name__}: {error}") from error


def record_of(served: ServedVersion, override: str = "", *, queue_bytes: int = 0) -> ModelRecord:
    """The registry record of a loaded version.

    Args:
        served: the version.
        override: the configuration that came with the request to load it.
        queue_bytes: the limit of its queue; 0 for none.
    """
    config = served.config
    return ModelRecord(
        name=config.name,
        version=served.version,
        backend=config.backend,
        platform=config.platform,
        max_batch_size=config.max_batch_size,
        inputs=tuple(_tensor(spec) for spec in config.inputs),
        outputs=tuple(_tensor(spec) for spec in config.outputs),
        config=config.proto,
        override=override,
        queue_bytes=queue_bytes,
    )


def _tensor(spec: TensorSpec) -> TensorRecord:
    return TensorRecord(name=spec.name, datatype=spec.datatype, dims=spec.dims, optional=spec.optional)
