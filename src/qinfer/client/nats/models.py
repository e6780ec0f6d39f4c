"""Which models there are, as the workers write it into the registry."""

from __future__ import annotations

from qinfer.bus import Bus
from qinfer.client.base import ModelInfo
from qinfer.errors import ModelNotFound, NoWorker
from qinfer.proto import ModelConfig
from qinfer.registry import Directory, ModelRecord
from qinfer.signature import Signature


class Target:
    """A model as a caller names it, with or without a version.

    Attributes:
        model: its name.
        version: as it was named; empty for the newest.
        info: what is known of it.
        signature: checks requests for it.
        max_rows: rows a frame may have.
    """

    __slots__ = ("info", "max_rows", "model", "signature", "version")

    def __init__(self, version: str, record: ModelRecord, info: ModelInfo) -> None:
        self.model = record.name
        self.version = version
        self.info = info
        self.max_rows = max(1, record.max_batch_size)
        self.signature = Signature(record.inputs, record.outputs, record.max_batch_size)


class Models:
    """The registry, watched.

    Args:
        bus: a started bus.
    """

    def __init__(self, bus: Bus) -> None:
        self._directory = Directory(bus)
        self._targets: dict[tuple[str, str], Target] = {}
        self._directory.on_change(self._targets.clear)

    async def start(self) -> None:
        """Read what is there, and watch it."""
        await self._directory.start()

    async def close(self) -> None:
        """Stop watching. Idempotent."""
        await self._directory.close()

    def find(self, model: str, version: str = "") -> Target:
        """Where to send a request.

        Raises:
            ModelNotFound: no such model or version.
            NoWorker: known, but no live worker serves it.
        """
        target = self._targets.get((model, version))
        if target is None:
            record = self._record(model, version)
            target = Target(version, record, self._info(record, version))
            self._targets[model, version] = target
        if not target.info.ready:
            raise NoWorker(
                f"no live worker serves model {model!r} version {version or target.info.versions[-1]}",
                retry_after=1.0,
            )
        return target

    def info(self, model: str, version: str = "") -> ModelInfo:
        """What is known of a model.

        Raises:
            ModelNotFound: no such model or version.
        """
        return self._info(self._record(model, version), version)

    def signature(self, info: ModelInfo) -> Signature:
        """What checks requests for a model."""
        return Signature(info.inputs, info.outputs, info.max_batch_size or 0)

    def all(self) -> list[ModelInfo]:
        """All known models."""
        return [self.info(name) for name in sorted(self._directory.models)]

    @property
    def all_ready(self) -> bool:
        """Whether there are models, and each has a live worker."""
        models = self._directory.models
        return bool(models) and all(self._directory.serving(model) for model in models)

    def _record(self, model: str, version: str) -> ModelRecord:
        record = self._directory.record(model, version)
        if record is None:
            what = f"version {version} of model {model!r}" if version else f"model {model!r}"
            known = ", ".join(sorted(self._directory.models)) or "none"
            raise ModelNotFound(f"no {what}; the fleet has: {known}")
        return record

    def _info(self, record: ModelRecord, version: str) -> ModelInfo:
        serving = self._directory.serving(record.name)
        versions = [version] if version else sorted(serving or self._directory.models[record.name], key=int)
        return ModelInfo(
            name=record.name,
            versions=tuple(versions),
            platform=record.platform,
            ready=version in serving if version else bool(serving),
            inputs=record.inputs,
            outputs=record.outputs,
            max_batch_size=record.max_batch_size,
            decoupled=ModelConfig.FromString(record.config).model_transaction_policy.decoupled,
        )
