"""One request, two processes, one trace."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from loadtest.mlp import build_mlp, config_pbtxt
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.helpers.system import System, serving
from tests.helpers.waiting import eventually
from tests.telemetry.otlp import Collector

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def infer(address: str, traceparent: str) -> None:
    body = {
        "id": "traced",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}],
    }
    request = Request(f"http://{address}/v2/models/mlp/infer", json.dumps(body).encode())
    request.add_header("traceparent", traceparent)
    with urlopen(request) as answer:
        assert answer.status == 200


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "mlp/1").mkdir(parents=True)
    build_mlp(tmp_path / "mlp/1/model.onnx")
    (tmp_path / "mlp/config.pbtxt").write_text(config_pbtxt("onnxruntime"))
    return tmp_path


def test_a_traceparent_yields_one_trace_with_spans_of_both_processes(
    collector: Collector, repository: Path
) -> None:
    with serving(repository) as system:
        infer(system.http, f"00-{TRACE}-{PARENT}-01")
        infer(system.http, "00-11111111111111111111111111111111-2222222222222222-00")  # not sampled: no span
    # Stopping the server has flushed its spans.
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert {resource["service.name"] for resource in collector.resources} == {
        "qinfer-gateway",
        "qinfer-worker",
    }

    server = collector.one("POST /v2/models/{model}/infer")
    publish = collector.one("publish mlp")
    process = collector.one("process mlp")
    batch = collector.one("batch mlp")
    assert server.parent_span_id.hex() == PARENT
    assert publish.parent_span_id == server.span_id
    assert process.parent_span_id == publish.span_id
    assert batch.parent_span_id == process.span_id
    assert set(collector.children(process)) == {"queue wait", "batch wait", "batch mlp", "reply"}
    assert "backend infer" in collector.children(batch)
    assert [link.span_id for link in batch.links] == [process.span_id]
    assert [link.span_id for link in process.links] == [batch.span_id]
    assert server.start_time_unix_nano <= process.start_time_unix_nano
    assert batch.end_time_unix_nano <= server.end_time_unix_nano


def exemplars(system: System) -> dict[str, str]:
    """Trace ids of the exemplars, by the name of their metric."""
    request = Request(system.metrics, headers={"Accept": "application/openmetrics-text"})
    with urlopen(request) as answer:
        text = answer.read().decode()
    return {
        sample.name: sample.exemplar.labels["trace_id"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar
    }


@pytest.mark.usefixtures("collector")
def test_buckets_of_both_processes_lead_to_the_trace(repository: Path) -> None:
    expected = {
        "qinfer_request_duration_seconds_bucket",
        "qinfer_queue_wait_seconds_bucket",
        "qinfer_batch_wait_seconds_bucket",
        "qinfer_compute_infer_seconds_bucket",
        "qinfer_batch_size_bucket",
    }
    with serving(repository) as system:
        infer(system.http, f"00-{TRACE}-{PARENT}-01")
        asyncio.run(eventually(lambda: set(exemplars(system)) >= expected, "the batch is counted"))
        assert set(exemplars(system).values()) == {TRACE}


def test_a_batch_links_to_every_sampled_member(collector: Collector, repository: Path) -> None:
    traces = [f"{number:032x}" for number in range(1, 33)]
    with serving(repository) as system, ThreadPoolExecutor(len(traces)) as pool:
        list(pool.map(lambda trace: infer(system.http, f"00-{trace}-{PARENT}-01"), traces))
    processes = {span.span_id: span for span in collector.named("process mlp")}
    assert {span.trace_id.hex() for span in processes.values()} == set(traces)
    batches = collector.named("batch mlp")
    linked = [link.span_id for batch in batches for link in batch.links]
    assert sorted(linked) == sorted(processes)  # each member in one batch
    assert len(batches) < len(traces)  # and some of them together
