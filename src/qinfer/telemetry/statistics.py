"""The statistics object of the Open Inference Protocol's statistics extension.

The structs carry exactly the protocol's field names, so one shape serves as the answer of
`GET /v2/models/stats`, as the gRPC message (by its JSON mapping) and as what workers send a gateway that adds
them up. Durations are nanoseconds, summed over requests unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from qinfer.errors import MalformedMessage


class Duration(msgspec.Struct):
    """How often something happened and how long that took in total."""

    count: int = 0
    ns: int = 0


class InferenceStatistics(msgspec.Struct):
    """What requests went through. `count` is requests; `fail` holds the failed ones and nothing else does.

    A batch's compute time is attributed in full to each of its requests, which is what a client of the
    protocol expects: dividing `ns` by `count` gives the compute latency a request saw.
    """

    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    queue: Duration = msgspec.field(default_factory=Duration)
    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)
    cache_hit: Duration = msgspec.field(default_factory=Duration)
    cache_miss: Duration = msgspec.field(default_factory=Duration)


class ResponseStatistics(msgspec.Struct):
    """Responses of one position (the first, the second, ...) of a decoupled model's requests."""

    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)
    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    empty_response: Duration = msgspec.field(default_factory=Duration)
    cancel: Duration = msgspec.field(default_factory=Duration)


class BatchStatistics(msgspec.Struct):
    """Executions of one batch size; here `count` is executions and a batch's time counts once."""

    batch_size: int
    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)


class MemoryUsage(msgspec.Struct):
    """Memory a model holds on one device."""

    type: str
    id: int
    byte_size: int


class ModelStatistics(msgspec.Struct):
    """Statistics of one version of a model.

    Attributes:
        name, version: which one.
        last_inference: when its last batch finished, Unix milliseconds; 0 for never.
        inference_count: rows answered; `inference_count / execution_count` is the mean batch size.
        execution_count: batches executed.
        inference_stats, response_stats, batch_stats, memory_usage: see there; `response_stats` by position.
    """

    name: str
    version: str
    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: InferenceStatistics = msgspec.field(default_factory=InferenceStatistics)
    response_stats: dict[str, ResponseStatistics] = {}
    batch_stats: list[BatchStatistics] = []
    memory_usage: list[MemoryUsage] = []


class StatisticsReport(msgspec.Struct):
    """The body of the statistics endpoints."""

    model_stats: list[ModelStatistics] = []


_report_decoder = msgspec.msgpack.Decoder(StatisticsReport)


def encode_report(report: StatisticsReport) -> bytes:
    """A worker's answer on the bus."""
    return msgspec.msgpack.encode(report)


def decode_report(data: bytes) -> StatisticsReport:
    """Read a worker's answer.

    Raises:
        MalformedMessage: the bytes are no statistics report.
    """
    try:
        return _report_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"not a statistics report: {error}") from None


def merge(reports: Iterable[StatisticsReport]) -> StatisticsReport:
    """Add up what several workers say of the same models; sorted by name and version."""
    merged: dict[tuple[str, str], ModelStatistics] = {}
    for report in reports:
        for part in report.model_stats:
            whole = merged.get((part.name, part.version))
            if whole is None:
                whole = merged[part.name, part.version] = ModelStatistics(part.name, part.version)
            _add_model(whole, part)
    return StatisticsReport(sorted(merged.values(), key=_by_name_and_version))


def _by_name_and_version(statistics: ModelStatistics) -> tuple[str, int, str]:
    version = statistics.version
    return statistics.name, int(version) if version.isdecimal() else 0, version


def _add_model(whole: ModelStatistics, part: ModelStatistics) -> None:
    whole.last_inference = max(whole.last_inference, part.last_inference)
    whole.inference_count += part.inference_count
    whole.execution_count += part.execution_count
    _add_durations(whole.inference_stats, part.inference_stats)
    for position, responses in part.response_stats.items():
        _add_durations(whole.response_stats.setdefault(position, ResponseStatistics()), responses)
    sizes = {batch.batch_size: batch for batch in whole.batch_stats}
    for batch in part.batch_stats:
        _add_durations(sizes.setdefault(batch.batch_size, BatchStatistics(batch.batch_size)), batch)
    whole.batch_stats = [sizes[size] for size in sorted(sizes)]
    whole.memory_usage = _add_memory(whole.memory_usage, part.memory_usage)


_Durations = TypeVar("_Durations", InferenceStatistics, ResponseStatistics, BatchStatistics)


def _add_durations(whole: _Durations, part: _Durations) -> None:
    for name in whole.__struct_fields__:
        mine, theirs = getattr(whole, name), getattr(part, name)
        if isinstance(mine, Duration):
            mine.count += theirs.count
            mine.ns += theirs.ns


def _add_memory(whole: Iterable[MemoryUsage], part: Iterable[MemoryUsage]) -> list[MemoryUsage]:
    sizes: dict[tuple[str, int], int] = {}
    for usage in (*whole, *part):
        sizes[usage.type, usage.id] = sizes.get((usage.type, usage.id), 0) + usage.byte_size
    return [MemoryUsage(kind, device, size) for (kind, device), size in sorted(sizes.items())]
