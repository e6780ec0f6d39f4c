"""Trace context of records, in and out."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from qinfer.telemetry.sampling import sampler_from_env
from qinfer.telemetry.tracing import Tracing
from qinfer.telemetry.w3c import parse
from tests.kafka.support import new_pipeline, producer, read, row, running

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-01", f"00-{TRACE}-b7ad6b7169203331-00"


@pytest.mark.parametrize("on", [True, False])
async def test_a_trace_goes_on_behind_the_scorer(kafka: str, doubling: Path, on: bool) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider, sampler_from_env({})) if on else None
    pipeline = await new_pipeline(kafka, doubling, partitions=1)
    source = pipeline.topics.sources[0]
    values = {b"sampled": (row(1), SAMPLED), b"not": (row(2), UNSAMPLED), b"bad": (b"short", SAMPLED)}
    async with producer(kafka) as sender:
        for key, (value, traceparent) in values.items():
            headers = [("a", b"b"), ("traceparent", traceparent.encode()), ("tracestate", b"x=y")]
            await sender.send(source, value, key=key, headers=headers)
        await sender.send(source, row(3), key=b"none")
        await sender.flush()
    async with running(pipeline, tracing):
        found = {record.key: dict(record.headers) for record in await read(kafka, pipeline.topics.output, 3)}
        (letter,) = await read(kafka, pipeline.topics.dead, 1)
    assert found[b"none"] == {}
    assert found[b"not"]["traceparent"] == UNSAMPLED.encode()
    assert found[b"sampled"]["a"] == b"b"
    assert found[b"sampled"]["tracestate"] == b"x=y"
    spans = {span.status.is_ok or span.status.is_unset: span for span in exporter.get_finished_spans()}
    if not on:
        assert found[b"sampled"]["traceparent"] == SAMPLED.encode()
        assert spans == {}
        return
    good, bad = spans[True], spans[False]
    assert len(exporter.get_finished_spans()) == 2
    for span in (good, bad):
        assert span.name == f"score {source}"
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        assert span.attributes is not None
        assert span.attributes["messaging.consumer.group.name"] == pipeline.group
    context = parse(found[b"sampled"]["traceparent"].decode())
    assert context is not None
    assert (f"{context.trace_id:032x}", context.span_id) == (TRACE, good.context.span_id)
    assert bad.attributes is not None
    assert bad.attributes["error.type"] == "malformed"
    assert dict(letter.headers)["traceparent"] == SAMPLED.encode()
