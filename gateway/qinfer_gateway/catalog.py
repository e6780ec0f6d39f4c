"""What this gateway can route to: a cached view of the registry, made for the hot path."""

from __future__ import annotations

import sys
from collections.abc import Hashable

from qinfer.datatypes import DATATYPES
from qinfer.errors import ModelNotFound, NoWorker
from qinfer.naming import Names
from qinfer.proto import ModelConfig
from qinfer.registry import QUEUE_ROWS, Directory, ModelRecord
from qinfer.signature import Signature


class Target:
    """One model as a client names it, with or without a version.

    Attributes:
        model: its name.
        wanted_version: the version in the request; empty for the newest.
        record: the registry record of the version whose signature applies.
        signature: checks requests against the record.
        max_rows: rows a frame may have.
        max_queue_rows: rows a gateway may have in flight for it by its configuration; 0 for the gateway's own
            limit.
        max_queue_bytes: bytes the broker queues for it.
        max_queue_size: requests that may wait for it by its configuration; 0 for no such limit.
        decoupled: whether it gives any number of responses to a request.
        served: whether a live worker serves it.
        subject: where its requests are published.
        element: the type of all inputs' elements in JSON; None when they differ.
        json_parts: constant parts of responses, kept by the HTTP codec.
    """

    __slots__ = (
        "decoupled", "element", "json_parts", "max_queue_bytes", "max_queue_rows", "max_queue_size",
        "max_rows", "model", "record", "served", "signature", "subject", "wanted_version",
    )  # fmt: skip

    def __init__(self, wanted_version: str, record: ModelRecord, *, served: bool, subject: str) -> None:
        self.subject = subject
        self.model = record.name
        self.wanted_version = wanted_version
        self.record = record
        self.served = served
        self.max_rows = max(1, record.max_batch_size)
        config = ModelConfig.FromString(record.config)
        self.max_queue_size = config.dynamic_batching.default_queue_policy.max_queue_size
        self.max_queue_rows = int(config.parameters[QUEUE_ROWS].string_value or 0)  # checked by the worker
        self.max_queue_bytes = record.queue_bytes or sys.maxsize
        self.decoupled = config.model_transaction_policy.decoupled
        elements = {DATATYPES[tensor.datatype].element for tensor in record.inputs}
        self.element = elements.pop() if len(elements) == 1 else None
        self.json_parts: dict[Hashable, bytes] = {}
        self.signature = Signature(record.inputs, record.outputs, record.max_batch_size)


class Catalog:
    """Targets by name and version; forgotten whenever the registry changes."""

    def __init__(self, directory: Directory, names: Names) -> None:
        self.directory = directory
        self._names = names
        self._targets: dict[tuple[str, str], Target] = {}
        directory.on_change(self._targets.clear)

    def find(self, model: str, version: str = "") -> Target:
        """Where to send a request.

        Raises:
            ModelNotFound: no such model or version.
            NoWorker: known, but no live worker serves it.
        """
        target = self._targets.get((model, version)) or self._make(model, version)
        if not target.served:
            raise NoWorker(f"no live worker serves {_describe(model, version)}", retry_after=1.0)
        return target

    def known(self, model: str, version: str = "") -> Target:
        """Like `find`, but also for models that no worker serves at the moment.

        Raises:
            ModelNotFound: no such model or version.
        """
        return self._targets.get((model, version)) or self._make(model, version)

    def is_ready(self, model: str, version: str = "") -> bool:
        """Whether a live worker serves it."""
        serving = self.directory.serving(model)
        return version in serving if version else bool(serving)

    def all_ready(self) -> bool:
        """Whether every known model has a live worker, and there is at least one model."""
        models = self.directory.models
        return bool(models) and all(self.directory.serving(model) for model in models)

    def _make(self, model: str, version: str) -> Target:
        record = self.directory.record(model, version)
        if record is None:
            raise ModelNotFound(f"{_describe(model, version)} does not exist")
        served = self.is_ready(model, version)
        # Only what exists is remembered: names made up by clients take no memory.
        subject = self._names.requests(model, version)
        target = self._targets[model, version] = Target(version, record, served=served, subject=subject)
        return target


def _describe(model: str, version: str) -> str:
    return f"model {model!r} version {version}" if version else f"model {model!r}"
