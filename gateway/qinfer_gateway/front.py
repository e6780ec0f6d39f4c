"""What the HTTP and gRPC fronts answer besides inference: health, metadata, configuration, statistics."""

from __future__ import annotations

from typing import Any

from qinfer import __version__
from qinfer.bus import Bus
from qinfer.control import FleetRepository
from qinfer.errors import BusUnavailable, NoWorker, QInferError, ShuttingDown
from qinfer.registry import STATISTICS, Directory, ModelRecord
from qinfer.telemetry.statistics import StatisticsReport, decode_report, merge
from qinfer_gateway.auth import caller
from qinfer_gateway.catalog import Catalog

SERVER_NAME = "qinfer"
SERVER_VERSION = __version__

EXTENSIONS = (
    *("model_configuration", "binary_tensor_data", "parameters", "statistics", "model_repository"),
    "generate",
)
"""Extensions of the protocol this server has, by their protocol names."""

_STATISTICS_TIMEOUT = 2.0


class Front:
    """Answers questions about the server and its models, from the registry and from the workers."""

    def __init__(self, bus: Bus, directory: Directory, catalog: Catalog) -> None:
        self._bus = bus
        self._directory = directory
        self._catalog = catalog
        self.repository = FleetRepository(bus, directory)
        """The workers' model repositories."""
        self.draining = False

    @property
    def live(self) -> bool:
        """Whether this process works at all."""
        return True

    @property
    def ready(self) -> bool:
        """Whether requests for every known model can be answered."""
        return self.obstacle() is None

    def obstacle(self) -> QInferError | None:
        """Why not all requests can be answered; None when they can.

        Everybody may ask this, so it names no models.
        """
        error = self._own_obstacle()
        if error is not None or self._catalog.all_ready():
            return error
        models = self._directory.models
        unserved = [model for model in models if not self._catalog.is_ready(model)]
        if not models:
            return NoWorker("no worker has told of any model yet")
        return NoWorker(
            f"no live worker serves {len(unserved)} of {len(models)} models; /v2/models tells which"
        )

    def model_ready(self, model: str, version: str) -> bool:
        """Whether requests for a model can be answered.

        Raises:
            ModelNotFound: no such model or version.
        """
        return self.model_obstacle(model, version) is None

    def model_obstacle(self, model: str, version: str) -> QInferError | None:
        """Why requests for a model cannot be answered; None when they can.

        Raises:
            ModelNotFound: no such model or version.
        """
        self._catalog.known(model, version)
        error = self._own_obstacle()
        if error is not None or self._catalog.is_ready(model, version):
            return error
        return NoWorker("no live worker serves it")

    def _own_obstacle(self) -> QInferError | None:
        if self.draining:
            return ShuttingDown("this gateway is shutting down")
        if not self._bus.connected:
            return BusUnavailable("the broker cannot be reached")
        return None

    def record(self, model: str, version: str) -> ModelRecord:
        """The registry record of a model.

        Raises:
            ModelNotFound: no such model or version.
        """
        return self._catalog.known(model, version).record

    def versions(self, model: str) -> list[str]:
        """The versions of a model that are served, ascending; all known ones when none is."""
        served = self._directory.serving(model) or self._directory.models[model]
        return sorted(served, key=int)

    def metadata(self, model: str, version: str) -> dict[str, Any]:
        """Model metadata as in the protocol; shapes include the batch dimension.

        Raises:
            ModelNotFound: no such model or version.
        """
        record = self.record(model, version)
        batch = [-1] if record.max_batch_size else []
        return {
            "name": record.name,
            "versions": [version] if version else self.versions(model),
            "platform": record.platform,
            "inputs": [
                {"name": t.name, "datatype": t.datatype, "shape": [*batch, *t.dims]} for t in record.inputs
            ],
            "outputs": [
                {"name": t.name, "datatype": t.datatype, "shape": [*batch, *t.dims]} for t in record.outputs
            ],
        }

    def models(self) -> list[dict[str, Any]]:
        """All known models with their backend, versions, workers, and what could not be loaded.

        Only those that the caller may use, like all that this class tells of more than one model.
        """
        workers = self._directory.workers
        problems = {name: text for worker in workers for name, text in worker.problems.items()}
        rows: list[dict[str, Any]] = []
        for name in sorted(self._directory.models):
            record = self.record(name, "")
            serving = [worker.id for worker in workers if name in worker.models and not worker.draining]
            rows.append(
                {
                    "name": name,
                    "versions": self.versions(name),
                    "backend": record.backend,
                    "state": "READY" if serving else "UNAVAILABLE",
                    "workers": sorted(serving),
                    "reason": problems.get(name, "") if serving else "no live worker",
                }
            )
        known = set(self._directory.models)
        rows.extend(
            {
                "name": name,
                "versions": [],
                "backend": "",
                "state": "UNAVAILABLE",
                "workers": [],
                "reason": problems[name],
            }
            for name in sorted(set(problems) - known)
        )
        allows = caller().allows
        return [row for row in rows if allows(row["name"])]

    async def statistics(self, model: str = "", version: str = "") -> StatisticsReport:
        """Statistics of the whole fleet, for one model and version or for all.

        Raises:
            ModelNotFound: no such model or version.
            BusUnavailable: the workers cannot be asked.
        """
        if model:
            self._catalog.known(model, version)
        answers = await self._bus.ask(
            STATISTICS, b"", answers=len(self._directory.workers), timeout=_STATISTICS_TIMEOUT
        )
        report = merge(decode_report(answer) for answer in answers)
        if model:
            report.model_stats = [
                stats
                for stats in report.model_stats
                if stats.name == model and (not version or stats.version == version)
            ]
        else:
            allows = caller().allows
            report.model_stats = [stats for stats in report.model_stats if allows(stats.name)]
        return report
