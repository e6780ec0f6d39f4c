"""Spans as a real OTLP receiver sees them: parents, links, times, status."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tests.telemetry.otlp import Collector, attributes_of

from qinfer.errors import DeadlineExceeded, InvalidRequest, ModelFailed, SetupError
from qinfer.message import BatchInfo
from qinfer.telemetry.batch_spans import TracedBatch, TracedMember
from qinfer.telemetry.tracing import Tracing, tracing_from_env
from qinfer.telemetry.w3c import format_traceparent, is_sampled

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "POST /v2/models/{model}/infer"
T = 1_800_000_000_000_000_000
MS = 1_000_000


def batch(**changes: Any) -> TracedBatch:
    fields: dict[str, Any] = {
        "model": "mlp",
        "version": "3",
        "instance": "mlp_0",
        "rows": 5,
        "requests": 3,
        "close_reason": "window",
        "started_ns": T + 10 * MS,
        "input_end_ns": T + 11 * MS,
        "infer_end_ns": T + 15 * MS,
        "output_end_ns": T + 16 * MS,
        "replied_ns": T + 17 * MS,
        "destination": "qinfer.default.infer.mlp.latest",
        "consumer": "latest",
    }
    return TracedBatch(**{**fields, **changes})


def link_ids(span: Span) -> set[tuple[bytes, bytes]]:
    return {(link.trace_id, link.span_id) for link in span.links}


def span_id(span: Span) -> tuple[bytes, bytes]:
    return span.trace_id, span.span_id


def test_one_request_through_gateway_and_worker_is_one_trace(
    collector: Collector, gateway: Tracing, worker: Tracing
) -> None:
    request = gateway.start_request(
        NAME,
        model="mlp",
        protocol="http",
        destination="qinfer.default.infer.mlp.latest",
        request_id="r-1",
        attributes={"http.request.method": "POST"},
        start_ns=T,
    )
    assert is_sampled(request.traceparent)
    request.published(T + 2 * MS)
    member = TracedMember(
        traceparent=request.traceparent,
        request_id="r-1",
        rows=2,
        attempt=2,
        sent_ns=T + 2 * MS,
        received_ns=T + 5 * MS,
    )
    worker.record_batch(batch(), [member])
    info = BatchInfo(rows=5, requests=3, compute_infer_ns=4 * MS)
    request.finish(batch=info, worker="wk-1", model_version="3", queue_us=8000, end_ns=T + 20 * MS)
    assert worker.close()
    assert gateway.close()

    server, publish = collector.one(NAME), collector.one("publish mlp")
    process, whole = collector.one("process mlp"), collector.one("batch mlp")
    assert server.parent_span_id == b""
    assert publish.parent_span_id == server.span_id
    assert process.parent_span_id == publish.span_id
    assert {span.trace_id.hex() for span in collector.spans} == {request.trace_id}
    assert (server.kind, publish.kind, process.kind) == (
        Span.SPAN_KIND_SERVER,
        Span.SPAN_KIND_PRODUCER,
        Span.SPAN_KIND_CONSUMER,
    )

    waits = collector.children(process)
    assert set(waits) == {"queue wait", "batch wait", "batch mlp", "reply"}
    phases = collector.children(whole)
    assert set(phases) == {"compute input", "backend infer", "compute output"}
    times = {
        name: ((span.start_time_unix_nano - T) // MS, (span.end_time_unix_nano - T) // MS)
        for name, span in {"server": server, "process": process, **waits, **phases}.items()
    }
    assert times == {
        "server": (0, 20),
        "process": (2, 17),
        "queue wait": (2, 5),
        "batch wait": (5, 10),
        "batch mlp": (10, 16),
        "compute input": (10, 11),
        "backend infer": (11, 15),
        "compute output": (15, 16),
        "reply": (16, 17),
    }
    assert publish.end_time_unix_nano == T + 2 * MS
    assert {span.status.code for span in collector.spans} == {Status.STATUS_CODE_UNSET}


def test_attributes_follow_the_conventions(collector: Collector, gateway: Tracing, worker: Tracing) -> None:
    request = gateway.start_request(
        NAME, model="mlp", protocol="http", destination="subject", request_id="r-1"
    )
    request.published()
    request.finish(batch=BatchInfo(rows=5, requests=3, compute_infer_ns=4 * MS), worker="wk-1", queue_us=7)
    worker.record_batch(
        batch(), [TracedMember(traceparent=request.traceparent, request_id="r-1", rows=2, received_ns=T)]
    )
    gateway.close()
    worker.close()

    server = attributes_of(collector.one(NAME).attributes)
    assert server == {
        "triton.model_name": "mlp",
        "triton.request_id": "r-1",
        "qinfer.protocol": "http",
        "qinfer.worker": "wk-1",
        "qinfer.batch.rows": 5,
        "qinfer.batch.requests": 3,
        "qinfer.batch.compute_infer_us": 4000,
        "qinfer.request.queue_us": 7,
        "http.response.status_code": 200,
    }
    publish = attributes_of(collector.one("publish mlp").attributes)
    assert publish["messaging.system"] == "nats"
    assert publish["messaging.operation.type"] == "send"
    assert publish["messaging.destination.name"] == "subject"
    assert publish["messaging.client.id"] == "gw-1"
    process = attributes_of(collector.one("process mlp").attributes)
    assert process["messaging.operation.type"] == "process"
    assert process["messaging.consumer.group.name"] == "latest"
    assert process["messaging.message.id"] == "r-1"
    assert process["triton.model_version"] == "3"
    assert (process["qinfer.request.rows"], process["qinfer.request.attempt"]) == (2, 1)
    whole = attributes_of(collector.one("batch mlp").attributes)
    assert whole["messaging.batch.message_count"] == 3
    assert whole["qinfer.batch.rows"] == 5
    assert whole["qinfer.batch.close_reason"] == "window"
    assert whole["qinfer.instance"] == "mlp_0"
    services = {resource["service.name"]: resource["service.instance.id"] for resource in collector.resources}
    assert services == {"qinfer-gateway": "gw-1", "qinfer-worker": "wk-1"}
    assert collector.content_types == {"application/x-protobuf"}


def test_a_batch_links_its_sampled_members_and_they_link_back(collector: Collector, worker: Tracing) -> None:
    parents = [format_traceparent(trace, 77, 1) for trace in (1001, 1002, 1003)]
    members = [TracedMember(traceparent=parent, received_ns=T, sent_ns=T) for parent in parents]
    unsampled = TracedMember(traceparent=format_traceparent(1004, 77, 0), received_ns=T)
    broken = TracedMember(traceparent="00-nonsense-01", received_ns=T)
    worker.record_batch(batch(requests=5), [*members, unsampled, broken])
    worker.close()

    processes = collector.named("process mlp")
    assert {int.from_bytes(span.trace_id) for span in processes} == {1001, 1002, 1003}
    assert {span.parent_span_id for span in processes} == {(77).to_bytes(8)}
    whole = collector.one("batch mlp")
    assert link_ids(whole) == {span_id(span) for span in processes}
    assert all(link_ids(span) == {span_id(whole)} for span in processes)
    first = next(span for span in processes if int.from_bytes(span.trace_id) == 1001)
    assert (whole.trace_id, whole.parent_span_id) == span_id(first)
    assert len(collector.named("backend infer")) == 1
    assert len(collector.named("queue wait")) == 3


def test_no_member_of_a_large_batch_is_left_unlinked(collector: Collector, worker: Tracing) -> None:
    count = 300
    members = [
        TracedMember(traceparent=format_traceparent(trace, 1, 1), received_ns=T)
        for trace in range(1, count + 1)
    ]
    worker.record_batch(batch(requests=count), members)
    worker.close()
    assert len(collector.one("batch mlp").links) == count


def test_a_batch_without_sampled_members_makes_no_span(collector: Collector, worker: Tracing) -> None:
    worker.record_batch(batch(), [TracedMember(traceparent=format_traceparent(9, 9, 0), received_ns=T)])
    worker.close()
    assert collector.spans == []


def test_a_failed_batch_shows_its_error_and_the_phases_it_reached(
    collector: Collector, worker: Tracing
) -> None:
    error = ModelFailed("shape mismatch in layer 2")
    failed = batch(infer_end_ns=0, output_end_ns=0, error=error)
    worker.record_batch(
        failed, [TracedMember(traceparent=format_traceparent(5, 5, 1), received_ns=T, error=error)]
    )
    worker.close()
    whole = collector.one("batch mlp")
    assert set(collector.children(whole)) == {"compute input"}
    for span in (whole, collector.one("process mlp")):
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert span.status.message == "shape mismatch in layer 2"
        assert attributes_of(span.attributes)["error.type"] == "model_failed"


def test_a_request_that_expired_in_the_queue_has_no_batch(collector: Collector, worker: Tracing) -> None:
    member = TracedMember(
        traceparent=format_traceparent(6, 6, 1),
        sent_ns=T,
        received_ns=T + MS,
        error=DeadlineExceeded("deadline passed in the queue"),
    )
    worker.record_unexecuted(member, model="mlp", version="3", end_ns=T + 3 * MS)
    worker.close()
    process = collector.one("process mlp")
    assert set(collector.children(process)) == {"queue wait", "batch wait"}
    assert attributes_of(process.attributes)["error.type"] == "deadline_exceeded"
    assert (process.start_time_unix_nano, process.end_time_unix_nano) == (T, T + 3 * MS)


def test_clocks_that_differ_never_give_a_span_that_ends_before_it_starts(
    collector: Collector, worker: Tracing
) -> None:
    ahead = TracedMember(
        traceparent=format_traceparent(7, 7, 1), sent_ns=T + 10_000 * MS, received_ns=T + 5 * MS
    )
    worker.record_batch(batch(), [ahead])
    worker.close()
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in collector.spans)
    assert collector.one("process mlp").start_time_unix_nano == T + 5 * MS


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest("no input"), Status.STATUS_CODE_UNSET, 400),
        (DeadlineExceeded("too late"), Status.STATUS_CODE_ERROR, 504),
    ],
)
def test_a_server_span_is_an_error_only_for_faults_of_the_server(
    collector: Collector,
    gateway: Tracing,
    error: InvalidRequest | DeadlineExceeded,
    status: Status.StatusCode.ValueType,
    code: int,
) -> None:
    gateway.start_request(NAME, model="mlp", protocol="http").finish(error)
    gateway.close()
    server = collector.one(NAME)
    assert server.status.code == status
    attributes = attributes_of(server.attributes)
    assert attributes["error.type"] == error.reason
    assert attributes["http.response.status_code"] == code
    # Nothing was published, so there is no span of a publication.
    assert [span.name for span in collector.spans] == [NAME]


def test_grpc_answers_carry_the_grpc_status(collector: Collector, gateway: Tracing) -> None:
    gateway.start_request("infer", model="mlp", protocol="grpc").finish(DeadlineExceeded("too late"))
    gateway.close()
    attributes = attributes_of(collector.one("infer").attributes)
    assert attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"


def test_a_callers_trace_is_continued_with_its_state(collector: Collector, gateway: Tracing) -> None:
    caller = format_traceparent(0xABC, 0xDEF, 1)
    request = gateway.start_request(
        NAME, model="mlp", protocol="http", traceparent=caller, tracestate="vendor=1,other=2"
    )
    request.published()
    request.finish()
    gateway.close()
    server = collector.one(NAME)
    assert int.from_bytes(server.trace_id) == 0xABC
    assert int.from_bytes(server.parent_span_id) == 0xDEF
    assert server.trace_state == "vendor=1,other=2"
    assert request.tracestate == "vendor=1,other=2"
    assert request.trace_id == f"{0xABC:032x}"


def test_new_trace_ids_fit_the_ratio_they_were_sampled_with(
    collector: Collector, clean_environment: pytest.MonkeyPatch
) -> None:
    clean_environment.setenv("OTEL_TRACES_SAMPLER_ARG", "0.001")
    tracing = tracing_from_env("gateway")
    assert tracing is not None
    ids = [
        int(tracing.start_request(NAME, model="mlp", protocol="http").trace_id, 16) & (2**64 - 1)
        for _ in range(50)
    ]
    tracing.close()
    assert max(ids) < 0.001 * 2**64
    assert len(set(ids)) == 50


def test_environment_overrides_the_service_name(
    collector: Collector, clean_environment: pytest.MonkeyPatch
) -> None:
    clean_environment.setenv("OTEL_SERVICE_NAME", "front")
    clean_environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    tracing = tracing_from_env("gateway", "gw-1")
    assert tracing is not None
    tracing.start_request(NAME, model="mlp", protocol="http").finish()
    tracing.close()
    (resource,) = collector.resources
    assert resource["service.name"] == "front"
    assert resource["service.instance.id"] == "gw-1"
    assert resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_tracing_is_off_unless_asked_for(environ: dict[str, str]) -> None:
    assert tracing_from_env("gateway", environ=environ) is None


def test_the_sdk_is_not_imported_when_tracing_is_off() -> None:
    code = (
        "import sys; from qinfer.telemetry.tracing import tracing_from_env; "
        "assert tracing_from_env('gateway', environ={}) is None; "
        "sys.exit('opentelemetry.sdk' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_missing_exporter_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SetupError, match=r"pip install 'qinfer\[otlp\]'"):
        tracing_from_env("gateway", environ={"OTEL_TRACES_EXPORTER": "otlp"})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "no exporter 'zipkin' is installed"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "'http/json' is not supported; expected one of http/protobuf, grpc",
        ),
    ],
)
def test_a_setting_that_cannot_be_met_stops_the_start(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        tracing_from_env("gateway", environ=environ)


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """A collector that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_close_keeps_its_deadline_when_the_collector_hangs(
    clean_environment: pytest.MonkeyPatch, silent_endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    clean_environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent_endpoint)
    clean_environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    tracing = tracing_from_env("gateway")
    assert tracing is not None
    tracing.start_request(NAME, model="mlp", protocol="http").finish()
    assert not tracing.close(0.2)
    assert "could not be exported within 0.2 s" in caplog.text
    # The export itself gives up in the end, and a repeated close sees it.
    assert tracing.close(30)
