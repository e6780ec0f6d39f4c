"""One `/metrics` for all processes of a host: the children are scraped and their samples added up.

Only the supervisor's port is known outside; the children's are of this host only and change with each start.
"""

from __future__ import annotations

import http.client
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from qinfer.cli.serve.ports import LOOPBACK

logger = logging.getLogger(__name__)

_ACCEPT = "application/openmetrics-text; version=1.0.0"
_TIMEOUT = 2.0
_SCRAPERS = 8

_OWN_PREFIXES = ("process_", "python_")
"""Families about one process: added up they mean nothing, so each keeps its own, labelled."""

_NOT_ADDED = frozenset({"info", "stateset"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A child process.

    Attributes:
        role, instance: its labels, for instance "gateway" and "0".
        port: its metrics port on loopback; None while it has none.
        pid: its process id; None while it is down.
        restarts: how often it was started again.
    """

    role: str
    instance: str
    port: int | None
    pid: int | None
    restarts: int


class FleetCollector(Collector):
    """Scrapes the children when it is scraped itself. Runs in the thread that renders the answer.

    Args:
        targets: the children as they are now.
    """

    def __init__(self, targets: Callable[[], Sequence[Target]]) -> None:
        self._targets = targets

    def collect(self) -> Iterator[Metric]:
        """The sums, and what the supervisor itself knows."""
        targets = self._targets()
        scraped = [target for target in targets if target.port is not None and target.pid is not None]
        with ThreadPoolExecutor(max_workers=_SCRAPERS, thread_name_prefix="scrape") as pool:
            results = list(pool.map(_scrape, scraped))
        answered = {
            (target.role, target.instance)
            for target, families in zip(scraped, results, strict=True)
            if families is not None
        }
        yield from self._supervision(targets, answered)
        yield from add_up(
            (target, families)
            for target, families in zip(scraped, results, strict=True)
            if families is not None
        )

    @staticmethod
    def _supervision(targets: Sequence[Target], answered: set[tuple[str, str]]) -> Iterator[Metric]:
        labels = ("role", "instance")
        up = GaugeMetricFamily("qinfer_up", "Whether the process runs and answered its scrape", labels=labels)
        restarts = CounterMetricFamily(
            "qinfer_process_restarts", "How often the process was started again", labels=labels
        )
        for target in targets:
            key = (target.role, target.instance)
            alive = target.pid is not None and (target.port is None or key in answered)
            up.add_metric(key, float(alive))
            restarts.add_metric(key, target.restarts)
        yield up
        yield restarts


def add_up(scrapes: Iterable[tuple[Target, Sequence[Metric]]]) -> list[Metric]:
    """Merge families of several processes: samples of the same name and labels are added."""
    families: dict[str, Metric] = {}
    samples: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], Sample]] = {}
    for target, scraped in scrapes:
        for family in scraped:
            merged = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type, family.unit)
            )
            if merged.type != family.type:
                logger.warning("metric %s of %s is a %s; skipped", family.name, target.role, family.type)
                continue
            sums = samples.setdefault(family.name, {})
            for sample in _own(family, target):
                key = (sample.name, tuple(sorted(sample.labels.items())))
                before = sums.get(key)
                sums[key] = sample if before is None else _add(family.type, before, sample)
    for name, family in families.items():
        family.samples = list(samples.get(name, {}).values())
    return list(families.values())


def _own(family: Metric, target: Target) -> Iterator[Sample]:
    own = family.name.startswith(_OWN_PREFIXES)
    for sample in family.samples:
        if sample.name.endswith("_created") and family.type in ("counter", "histogram", "summary"):
            continue  # the moments at which several processes began have no sum
        labels = dict(sample.labels)
        if own:
            labels.update(role=target.role, instance=target.instance)
        yield Sample(sample.name, labels, sample.value, None, sample.exemplar)


def _add(kind: str, one: Sample, other: Sample) -> Sample:
    value = max(one.value, other.value) if kind in _NOT_ADDED else one.value + other.value
    exemplars = [sample.exemplar for sample in (one, other) if sample.exemplar is not None]
    newest = max(exemplars, key=lambda exemplar: float(exemplar.timestamp or 0), default=None)
    return Sample(one.name, one.labels, value, None, newest)


def _scrape(target: Target) -> list[Metric] | None:
    """A child's families; None when it does not answer or answers nonsense."""
    assert target.port is not None
    connection = http.client.HTTPConnection(LOOPBACK, target.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/metrics", headers={"Accept": _ACCEPT})
        response = connection.getresponse()
        body = response.read()
        if response.status != http.HTTPStatus.OK:
            raise ValueError(f"status {response.status}")
        return list(text_string_to_metric_families(body.decode()))  # type: ignore[no-untyped-call]
    except (OSError, http.client.HTTPException, ValueError) as error:
        logger.warning("metrics of %s %s cannot be read: %s", target.role, target.instance, error)
        return None
    finally:
        connection.close()
