"""Histograms, a worker's counters, and the statistics object they become."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from qinfer.errors import MalformedMessage, SetupError
from qinfer.telemetry.gateway import OK, UNKNOWN_MODEL, GatewayStats
from qinfer.telemetry.histogram import DURATION_SECONDS, Histogram
from qinfer.telemetry.statistics import (
    MemoryUsage,
    StatisticsReport,
    decode_report,
    encode_report,
    merge,
)
from qinfer.telemetry.stats import ModelStats

MS = 1_000_000


def record(stats: ModelStats, **changes: Any) -> None:
    fields: dict[str, Any] = {
        "rows": 6,
        "queue_ns": [2 * MS, 4 * MS],
        "batch_wait_ns": [1 * MS, 3 * MS],
        "compute_input_ns": 10,
        "compute_infer_ns": 100,
        "compute_output_ns": 1,
        "reason": "full",
        "now_ms": 1_700_000_000_000,
    }
    stats.record_batch(**{**fields, **changes})


class TestHistogram:
    def test_a_bound_belongs_to_its_bucket(self) -> None:
        histogram = Histogram((1, 2, 5))
        for value in (0, 1, 1.5, 2, 5, 6):
            histogram.observe(value)
        assert histogram.counts == [2, 2, 1, 1]
        assert (histogram.count, histogram.total) == (6, 15.5)

    @pytest.mark.parametrize("bound", DURATION_SECONDS)
    def test_nanoseconds_meet_bounds_in_seconds_exactly(self, bound: float) -> None:
        histogram = Histogram(DURATION_SECONDS, unit=1e-9)
        nanoseconds = round(bound * 1e9)
        histogram.observe_many([nanoseconds, nanoseconds + 1])
        bucket = DURATION_SECONDS.index(bound)
        assert histogram.counts[bucket : bucket + 2] == [1, 1]

    @given(st.lists(st.integers(0, 10**11)))
    def test_many_values_count_like_each_alone(self, values: list[int]) -> None:
        together, alone = (Histogram(DURATION_SECONDS, unit=1e-9) for _ in range(2))
        together.observe_many(values)
        for value in values:
            alone.observe(value)
        assert together.counts == alone.counts
        assert together.total == pytest.approx(alone.total)

    def test_the_last_traced_value_of_a_bucket_is_its_exemplar(self) -> None:
        histogram = Histogram((1.0, 2.0), unit=0.5)
        histogram.observe(1, "a")
        histogram.observe_many([2, 1, 9], {1: "b", 2: "c"})
        histogram.observe(2)
        found = {
            bucket: (exemplar.trace_id, exemplar.value) for bucket, exemplar in histogram.exemplars.items()
        }
        assert found == {0: ("b", 0.5), 2: ("c", 4.5)}

    @pytest.mark.parametrize("bounds", [(), (1, 1), (2, 1)])
    def test_bounds_must_increase(self, bounds: tuple[float, ...]) -> None:
        with pytest.raises(SetupError, match="not increasing"):
            Histogram(bounds)


class TestModelStats:
    def test_a_batch_counts_once_and_its_compute_time_for_each_request(self) -> None:
        stats = ModelStats("mlp", "3")
        record(stats)
        found = stats.snapshot()
        assert (found.name, found.version, found.last_inference) == ("mlp", "3", 1_700_000_000_000)
        assert (found.inference_count, found.execution_count) == (6, 1)
        inference = msgspec.to_builtins(found.inference_stats)
        assert inference == {
            "success": {"count": 2, "ns": 10 * MS + 2 * 111},
            "fail": {"count": 0, "ns": 0},
            "queue": {"count": 2, "ns": 10 * MS},
            "compute_input": {"count": 2, "ns": 20},
            "compute_infer": {"count": 2, "ns": 200},
            "compute_output": {"count": 2, "ns": 2},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        }
        (batch,) = found.batch_stats
        assert (batch.batch_size, batch.compute_infer.count, batch.compute_infer.ns) == (6, 1, 100)

    def test_failed_requests_count_neither_as_rows_nor_as_success(self) -> None:
        stats = ModelStats("mlp", "3")
        record(stats, rows=6, failed_rows=4, queue_ns=[MS], batch_wait_ns=[MS])
        stats.record_failures("model_failed", 2, total_ns=50)
        stats.record_failures("deadline_exceeded", total_ns=-3)
        found = stats.snapshot()
        assert found.inference_count == 2
        assert found.inference_stats.success.count == 1
        assert (found.inference_stats.fail.count, found.inference_stats.fail.ns) == (3, 50)
        assert found.batch_stats[0].batch_size == 6
        assert stats.failed == {"model_failed": 2, "deadline_exceeded": 1}

    def test_a_sender_with_a_fast_clock_waits_zero_not_less(self) -> None:
        stats = ModelStats("mlp", "3")
        record(stats, queue_ns=[-5 * MS, 2], batch_wait_ns=[0, 0])
        assert stats.snapshot().inference_stats.queue.ns == 2
        assert stats.queue_wait.total == pytest.approx(2e-9)

    def test_a_batch_that_answered_nobody_was_executed(self) -> None:
        stats = ModelStats("mlp", "3")
        record(stats, failed_rows=6, queue_ns=[], batch_wait_ns=[])
        found = stats.snapshot()
        assert (found.inference_count, found.execution_count) == (0, 1)
        assert stats.batch_rows.count == 1

    def test_responses_of_a_decoupled_model(self) -> None:
        stats = ModelStats("talk", "1")
        stats.record_response(0, "success", compute_infer_ns=5, compute_output_ns=2)
        stats.record_response(1, "empty_response", compute_infer_ns=3)
        stats.record_response(1, "cancel", compute_infer_ns=4)
        first, second = (stats.snapshot().response_stats[position] for position in ("0", "1"))
        assert (first.success.ns, first.compute_infer.ns, first.compute_output.count) == (7, 5, 1)
        assert (second.empty_response.ns, second.cancel.ns) == (3, 4)
        assert (second.compute_infer.count, second.compute_output.count) == (1, 0)

    def test_a_snapshot_stays_as_it_was(self) -> None:
        stats = ModelStats("talk", "1")
        stats.record_response(0, "fail", compute_infer_ns=5)
        before = stats.snapshot()
        stats.record_response(0, "fail", compute_infer_ns=5)
        record(stats)
        assert before.response_stats["0"].fail.count == 1
        assert before.execution_count == 0


class TestReport:
    def test_the_json_is_tritons_message_field_by_field(self) -> None:
        stats = ModelStats("mlp", "3")
        record(stats)
        stats.record_failures("cancelled", total_ns=9)
        stats.record_response(0, "success", compute_infer_ns=5, compute_output_ns=2)
        stats.memory_usage.append(MemoryUsage("GPU", 0, 1024))
        text = msgspec.json.encode(StatisticsReport([stats.snapshot()]))
        parsed = json_format.Parse(text, service_pb2.ModelStatisticsResponse())
        (model,) = parsed.model_stats
        # Parse refuses a field Triton does not have; this finds one that we do not have.
        ours = msgspec.json.decode(text)["model_stats"][0]
        assert set(ours) == {field.name for field in model.DESCRIPTOR.fields}
        for name in ("inference_stats", "batch_stats", "memory_usage"):
            value = ours[name][0] if isinstance(ours[name], list) else ours[name]
            assert set(value) == {
                field.name for field in model.DESCRIPTOR.fields_by_name[name].message_type.fields
            }
        assert model.inference_stats.fail.ns == 9
        assert model.response_stats["0"].success.ns == 7

    def test_workers_add_up(self) -> None:
        one, two, other = ModelStats("mlp", "10"), ModelStats("mlp", "10"), ModelStats("mlp", "9")
        record(one)
        record(two, now_ms=1_800_000_000_000)
        record(two, rows=1)
        record(other)
        for stats in (one, two):
            stats.record_response(0, "success", compute_infer_ns=1)
            stats.memory_usage.append(MemoryUsage("CPU", 0, 100))
        reports = [StatisticsReport([one.snapshot(), other.snapshot()]), StatisticsReport([two.snapshot()])]
        whole = merge(decode_report(encode_report(report)) for report in reports)
        assert [model.version for model in whole.model_stats] == ["9", "10"]
        merged = whole.model_stats[1]
        assert merged.last_inference == 1_800_000_000_000
        assert (merged.inference_count, merged.execution_count) == (13, 3)
        assert merged.inference_stats.success.count == 6
        assert [(batch.batch_size, batch.compute_infer.count) for batch in merged.batch_stats] == [
            (1, 1),
            (6, 2),
        ]
        assert merged.response_stats["0"].success.count == 2
        assert merged.memory_usage == [MemoryUsage("CPU", 0, 200)]

    def test_merging_leaves_its_parts_alone(self) -> None:
        stats = ModelStats("mlp", "1")
        record(stats)
        report = StatisticsReport([stats.snapshot()])
        merge([report, report])
        assert report == StatisticsReport([stats.snapshot()])

    @pytest.mark.parametrize(
        "data", [b"", b"\xc1", b"\x81\xa5model", msgspec.msgpack.encode({"model_stats": 3})]
    )
    def test_garbage_from_the_bus_is_refused(self, data: bytes) -> None:
        with pytest.raises(MalformedMessage, match="not a statistics report"):
            decode_report(data)


class TestGatewayStats:
    def test_requests_by_model_protocol_and_outcome(self) -> None:
        stats = GatewayStats({"mlp"}.__contains__)
        stats.record("mlp", "http", OK, 0.002)
        stats.record_many("mlp", "http", OK, [0.001, 0.003])
        stats.record("mlp", "grpc", "queue_full", 0.0001)
        counts = {key: histogram.count for key, histogram in stats.requests.items()}
        assert counts == {("mlp", "http", OK): 3, ("mlp", "grpc", "queue_full"): 1}
        assert stats.requests["mlp", "http", OK].total == pytest.approx(0.006)

    def test_names_clients_make_up_share_one_series(self) -> None:
        stats = GatewayStats({"mlp"}.__contains__)
        for number in range(1000):
            stats.record(f"made-up-{number}", "http", "model_not_found", 0.001)
            stats.record_many(f"made-up-{number}", "http", "invalid_request", [0.001])
        assert set(stats.requests) == {
            (UNKNOWN_MODEL, "http", "model_not_found"),
            (UNKNOWN_MODEL, "http", "invalid_request"),
        }
        assert stats.requests[UNKNOWN_MODEL, "http", "model_not_found"].count == 1000

    def test_a_model_loaded_later_gets_its_own_series(self) -> None:
        known: set[str] = set()
        stats = GatewayStats(known.__contains__)
        stats.record("late", "http", "model_not_found", 0.001)
        known.add("late")
        stats.record("late", "http", OK, 0.001)
        assert ("late", "http", OK) in stats.requests

    def test_a_removed_model_is_forgotten(self) -> None:
        stats = GatewayStats(lambda _: True)
        for model in ("old", "new"):
            stats.record(model, "http", OK, 0.001)
            stats.record_frame(model, requests=2, rows=5)
        stats.forget("old")
        assert {key[0] for key in stats.requests} == {"new"}
        assert set(stats.frames) == {"new"}
        assert stats.frames["new"].rows.total == 5
