"""The versions a worker serves, as services that tools of the broker can list."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import msgspec

from qinfer.bus.services import Service, ServiceCounters
from qinfer.message import PROTOCOL_VERSION
from qinfer.naming import Names
from qinfer.repository import TensorSpec
from qinfer.telemetry.stats import ModelStats
from qinfer_workers.served import ServedVersion

PROTOCOL = f"qinfer/{PROTOCOL_VERSION}"
"""Tells services that take this protocol's frames from all others."""


class Offering:
    """One service for each version that a worker serves.

    Args:
        names: of the fleet.
        worker: this worker's id.
    """

    def __init__(self, names: Names, worker: str) -> None:
        self._names = names
        self._worker = worker
        self._offered: dict[tuple[str, str], Service] = {}
        self._count = 0

    def of(self, versions: Iterable[ServedVersion]) -> Sequence[Service]:
        """The services of these versions. One that was there before goes on, loaded again or not."""
        self._offered = {(served.config.name, served.version): self._service(served) for served in versions}
        return list(self._offered.values())

    def _service(self, served: ServedVersion) -> Service:
        config, version = served.config, served.version
        metadata, counters = self._metadata(served), partial(counters_of, served.recorder.stats)
        before = self._offered.get((config.name, version))
        if before is not None:
            return replace(before, metadata=metadata, counters=counters)
        self._count += 1
        return Service(
            name=self._names.service(config.name),
            id=f"{self._worker}-{self._count}",
            version=f"{int(version)}.0.0",
            subject=self._names.requests(config.name, version),
            queue=self._names.consumer(version),
            description=f"{config.name}, version {version}",
            metadata=metadata,
            started=datetime.now(UTC),
            counters=counters,
        )

    def _metadata(self, served: ServedVersion) -> dict[str, str]:
        config = served.config
        return {
            "protocol": PROTOCOL,
            "namespace": self._names.namespace,
            "model": config.name,
            "model_version": served.version,
            "backend": config.backend,
            "platform": config.platform,
            "max_batch_size": str(config.max_batch_size),
            "decoupled": json.dumps(config.decoupled),
            "inputs": _signature(config.inputs),
            "outputs": _signature(config.outputs),
            "worker": self._worker,
        }


def _signature(tensors: Iterable[TensorSpec]) -> str:
    told = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "dims": list(tensor.dims),
            **({"optional": True} if tensor.optional else {}),
        }
        for tensor in tensors
    ]
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


def counters_of(stats: ModelStats) -> ServiceCounters:
    """A version's counters in the form of the services API, with all that is counted beside it.

    Messages of errors are not among them: they may show what somebody else has sent.
    """
    whole = stats.snapshot()
    success, fail = whole.inference_stats.success, whole.inference_stats.fail
    return ServiceCounters(
        requests=success.count + fail.count,
        errors=fail.count,
        last_error=stats.last_failure,
        processing_ns=success.ns + fail.ns,
        data=msgspec.to_builtins(whole),
    )
