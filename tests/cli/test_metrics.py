"""Metrics of several processes added up."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from qinfer.cli.serve.metrics import FleetCollector, Target, add_up
from qinfer.cli.serve.ports import free_port


def target(role: str, instance: int) -> Target:
    return Target(role=role, instance=str(instance), port=None, pid=1, restarts=0)


def scrape(registry: CollectorRegistry) -> list[Metric]:
    return list(text_string_to_metric_families(generate_latest(registry).decode()))  # type: ignore[no-untyped-call]


def process(requests: int, latency: float, trace: str) -> list[Metric]:
    """The metrics of one process."""
    registry = CollectorRegistry()
    Counter("requests", "Requests", ["model"], registry=registry).labels("mlp").inc(requests)
    Gauge("in_flight", "In flight", registry=registry).set(requests)
    Gauge("process_resident_memory_bytes", "Memory", registry=registry).set(100 * requests)
    Info("build", "Version", registry=registry).info({"version": "1"})
    histogram = Histogram("latency", "Latency", registry=registry, buckets=(1.0, 2.0))
    histogram.observe(latency, {"trace_id": trace})
    return scrape(registry)


def values(families: Sequence[Metric]) -> dict[str, float]:
    found = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_counters_gauges_and_buckets_are_added_and_processes_kept_apart() -> None:
    merged = add_up(
        [(target("worker", 0), process(1, 0.5, "a")), (target("worker", 1), process(2, 1.5, "b"))]
    )
    assert values(merged) == {
        "requests_total{model=mlp}": 3.0,
        "in_flight{}": 3.0,
        "process_resident_memory_bytes{instance=0,role=worker}": 100.0,
        "process_resident_memory_bytes{instance=1,role=worker}": 200.0,
        "build_info{version=1}": 1.0,
        "latency_bucket{le=1.0}": 1.0,
        "latency_bucket{le=2.0}": 2.0,
        "latency_bucket{le=+Inf}": 2.0,
        "latency_count{}": 2.0,
        "latency_sum{}": 2.0,
    }


def test_the_sum_can_be_scraped_again_with_its_exemplars() -> None:
    class Sums:
        def collect(self) -> list[Metric]:
            return add_up(
                [(target("worker", 0), process(1, 0.5, "old")), (target("worker", 1), process(2, 0.7, "new"))]
            )

    registry = CollectorRegistry()
    registry.register(Sums())
    again = scrape(registry)
    assert values(again) == values(Sums().collect())
    (latency,) = [family for family in again if family.name == "latency"]
    exemplars = [sample.exemplar for sample in latency.samples if sample.exemplar is not None]
    assert [exemplar.labels for exemplar in exemplars] == [{"trace_id": "new"}]


def test_a_child_that_does_not_answer_is_down_and_the_others_are_shown() -> None:
    silent = Target(role="worker", instance="0", port=free_port(), pid=1, restarts=4)
    found = values(list(FleetCollector(lambda: [silent, target("broker", 0)]).collect()))
    assert found == {
        "qinfer_up{instance=0,role=worker}": 0.0,
        "qinfer_up{instance=0,role=broker}": 1.0,
        "qinfer_process_restarts_total{instance=0,role=worker}": 4.0,
        "qinfer_process_restarts_total{instance=0,role=broker}": 0.0,
    }
