"""Metrics as Prometheus reads them: over HTTP, through its own parsers."""

from __future__ import annotations

import asyncio
import gzip
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from qinfer import __version__
from qinfer.errors import SetupError
from qinfer.telemetry.gateway import GatewayStats
from qinfer.telemetry.metrics import GatewayCollector, WorkerCollector, new_registry
from qinfer.telemetry.server import MetricsServer
from qinfer.telemetry.stats import ModelStats
from qinfer_gateway.jobs.stats import JobsCollector, JobStats

MS = 1_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.1"}


async def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    def fetch() -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(url, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    return await asyncio.to_thread(fetch)


def samples(text: str, parse: Callable[..., object] = parse_openmetrics) -> dict[tuple[str, ...], float]:
    """Every sample by its name and sorted label values."""
    families: list[Metric] = list(parse(text))  # type: ignore[call-overload]
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def worker_stats() -> ModelStats:
    stats = ModelStats("mlp", "3", pending=lambda: 7)
    stats.record_batch(
        rows=6,
        queue_ns=[2 * MS, 4 * MS],
        batch_wait_ns=[1 * MS, 3 * MS],
        compute_input_ns=10_000,
        compute_infer_ns=100_000,
        compute_output_ns=1_000,
        reason="window",
        now_ms=1,
        trace_ids={1: TRACE},
    )
    stats.record_failures("queue_full", 2)
    stats.record_failures("no_worker")
    return stats


@pytest.fixture
def worker_registry() -> CollectorRegistry:
    stats = worker_stats()
    return new_registry("worker", WorkerCollector(lambda: [stats]))


@pytest.mark.parametrize(("headers", "parse"), [(OPENMETRICS, parse_openmetrics), ({}, parse_text)])
async def test_a_workers_metrics_in_both_formats(
    worker_registry: CollectorRegistry, headers: dict[str, str], parse: Callable[..., object]
) -> None:
    async with MetricsServer("127.0.0.1", 0, worker_registry) as server:
        status, answer, body = await get(f"http://127.0.0.1:{server.port}/metrics", headers)
    assert status == 200
    expected = "application/openmetrics-text; version=1.0.0" if headers else "text/plain; version=0.0.4"
    assert answer["content-type"].startswith(expected)
    found = samples(body.decode(), parse)
    model = ("model=mlp", "version=3")
    assert {name: found[f"nv_inference_{name}", *model] for name in (
        "request_success", "count", "exec_count", "pending_request_count", "request_duration_us",
        "queue_duration_us", "compute_input_duration_us", "compute_infer_duration_us",
        "compute_output_duration_us",
    )} == {
        "request_success": 2,
        "count": 6,
        "exec_count": 1,
        "pending_request_count": 7,
        "request_duration_us": 10_222,
        "queue_duration_us": 10_000,
        "compute_input_duration_us": 20,
        "compute_infer_duration_us": 200,
        "compute_output_duration_us": 2,
    }  # fmt: skip
    failures = {
        reason: found["nv_inference_request_failure", "model=mlp", f"reason={reason}", "version=3"]
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }
    assert failures == {"REJECTED": 2, "CANCELED": 0, "BACKEND": 0, "OTHER": 1}
    assert found["qinfer_batches_total", "model=mlp", "reason=window", "version=3"] == 1
    assert found["qinfer_request_failures_total", "model=mlp", "reason=queue_full", "version=3"] == 2
    assert found["qinfer_queue_wait_seconds_count", *model] == 2
    assert found["qinfer_queue_wait_seconds_sum", *model] == pytest.approx(0.006)
    assert found["qinfer_queue_wait_seconds_bucket", "le=0.0025", *model] == 1
    assert found["qinfer_queue_wait_seconds_bucket", "le=0.005", *model] == 2
    assert found["qinfer_batch_wait_seconds_sum", *model] == pytest.approx(0.004)
    assert found["qinfer_compute_infer_seconds_sum", *model] == pytest.approx(0.0001)
    assert found["qinfer_batch_size_bucket", "le=8.0", *model] == 1
    assert found["qinfer_batch_size_bucket", "le=4.0", *model] == 0
    assert found["qinfer_build_info", "role=worker", f"version={__version__}"] == 1
    assert found["process_resident_memory_bytes",] > 0


async def test_exemplars_lead_from_a_bucket_to_its_trace(worker_registry: CollectorRegistry) -> None:
    async with MetricsServer("127.0.0.1", 0, worker_registry) as server:
        _, _, body = await get(f"http://127.0.0.1:{server.port}/metrics", OPENMETRICS)
    exemplars = {
        (sample.name, sample.labels["le"]): (sample.exemplar.labels, sample.exemplar.value)
        for family in parse_openmetrics(body.decode())
        for sample in family.samples
        if sample.exemplar
    }
    assert exemplars["qinfer_queue_wait_seconds_bucket", "0.005"] == ({"trace_id": TRACE}, 0.004)
    assert exemplars["qinfer_batch_wait_seconds_bucket", "0.005"] == ({"trace_id": TRACE}, 0.003)
    assert exemplars["qinfer_compute_infer_seconds_bucket", "0.0001"][0] == {"trace_id": TRACE}
    assert exemplars["qinfer_batch_size_bucket", "8.0"][0] == {"trace_id": TRACE}


@dataclass(frozen=True)
class Queue:
    """What a gateway knows of a model's queue."""

    count: int
    known_backlog: int
    drain_rate: float


def gateway_registry() -> CollectorRegistry:
    queue = Queue(count=4, known_backlog=70, drain_rate=12.5)
    stats = GatewayStats({"mlp"}.__contains__, queues=lambda: {"mlp": queue})
    stats.dropped, stats.resent = 5, 6
    stats.record("mlp", "http", "ok", 0.002, TRACE)
    stats.record("mlp", "grpc", "queue_full", 0.0001)
    stats.record('no"such\nmodel', "http", "model_not_found", 0.0001)
    stats.record_frame("mlp", requests=3, rows=12)
    return new_registry("gateway", GatewayCollector(stats))


async def test_a_gateways_metrics() -> None:
    async with MetricsServer("127.0.0.1", 0, gateway_registry()) as server:
        _, _, body = await get(f"http://127.0.0.1:{server.port}/metrics", OPENMETRICS)
    found = samples(body.decode())
    assert found["qinfer_requests_total", "model=mlp", "outcome=ok", "protocol=http"] == 1
    assert found["qinfer_requests_total", "model=mlp", "outcome=queue_full", "protocol=grpc"] == 1
    assert found["qinfer_requests_total", "model=", "outcome=model_not_found", "protocol=http"] == 1
    series = ("model=mlp", "outcome=ok", "protocol=http")
    assert found["qinfer_request_duration_seconds_bucket", "le=0.0025", *series] == 1
    assert found["qinfer_request_duration_seconds_sum", *series] == pytest.approx(0.002)
    assert found["qinfer_frames_published_total", "model=mlp"] == 1
    assert found["qinfer_frame_rows_sum", "model=mlp"] == 12
    assert found["qinfer_frame_requests_sum", "model=mlp"] == 3
    assert found["qinfer_requests_in_flight", "model=mlp"] == 4
    assert found["qinfer_backlog_requests", "model=mlp"] == 70
    assert found["qinfer_drain_rate_rows", "model=mlp"] == 12.5
    assert found["qinfer_answers_dropped_total",] == 5
    assert found["qinfer_requests_resent_total",] == 6
    assert TRACE in body.decode()


async def test_a_scrape_is_compressed_when_it_may_be(worker_registry: CollectorRegistry) -> None:
    async with MetricsServer("127.0.0.1", 0, worker_registry) as server:
        url = f"http://127.0.0.1:{server.port}/metrics"
        _, headers, body = await get(url, {**OPENMETRICS, "Accept-Encoding": "gzip"})
    assert headers["content-encoding"] == "gzip"
    assert gzip.decompress(body).endswith(b"# EOF\n")


async def test_concurrent_scrapes_are_all_answered(worker_registry: CollectorRegistry) -> None:
    async with MetricsServer("127.0.0.1", 0, worker_registry) as server:
        url = f"http://127.0.0.1:{server.port}/metrics"
        answers = await asyncio.gather(*(get(url) for _ in range(8)))
    assert [status for status, _, _ in answers] == [200] * 8


async def test_other_routes_share_the_port_and_the_rest_is_404(worker_registry: CollectorRegistry) -> None:
    async def ready(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ready")

    routes = [Route("/ready", ready)]
    async with MetricsServer("127.0.0.1", 0, worker_registry, routes=routes) as server:
        base = f"http://127.0.0.1:{server.port}"
        assert (await get(f"{base}/ready"))[2] == b"ready"
        assert (await get(f"{base}/"))[0] == 404


async def test_the_port_is_free_again_and_signals_are_untouched(worker_registry: CollectorRegistry) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    async with MetricsServer("127.0.0.1", 0, worker_registry) as server:
        await get(f"http://127.0.0.1:{server.port}/metrics")
        assert {number: signal.getsignal(number) for number in before} == before
    async with MetricsServer("127.0.0.1", server.port, worker_registry) as again:
        assert (await get(f"http://127.0.0.1:{again.port}/metrics"))[0] == 200


async def test_a_taken_port_is_a_setup_error(worker_registry: CollectorRegistry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"127.0.0.1:{port} cannot be bound.*--metrics-port"):
            await MetricsServer("127.0.0.1", port, worker_registry).__aenter__()


async def test_a_host_of_nowhere_is_a_setup_error(worker_registry: CollectorRegistry) -> None:
    with pytest.raises(SetupError, match="expected an address of this machine"):
        await MetricsServer("no.such.host.invalid", 0, worker_registry).__aenter__()


def test_two_roles_in_one_process_keep_their_metrics_apart() -> None:
    worker = new_registry("worker", WorkerCollector(lambda: [worker_stats()]))
    gateway = gateway_registry()
    names: list[set[str]] = [{metric.name for metric in registry.collect()} for registry in (worker, gateway)]
    assert "qinfer_batch_size" in names[0] - names[1]
    assert "qinfer_requests" in names[1] - names[0]


def test_the_documentation_lists_every_metric_and_no_other() -> None:
    document = (Path(__file__).parents[2] / "docs" / "observability.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `((?:nv|qinfer)_\w+)` \|", document, re.MULTILINE)
    assert len(listed) == len(set(listed))
    stats = GatewayStats(lambda _: True)
    collectors = (WorkerCollector(list), GatewayCollector(stats), JobsCollector(JobStats()))
    exposed = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for collector in collectors
        for metric in collector.collect()
    }
    assert set(listed) == exposed
