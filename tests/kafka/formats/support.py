"""Pipelines of a few lines, and models that need no backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qinfer.client.base import ModelInfo
from qinfer.datatypes import Array
from qinfer.registry import TensorRecord
from qinfer_workers.kafka import pipeline
from qinfer_workers.kafka.codec import RecordCodec
from qinfer_workers.kafka.contract import BadRecord, Decoded, Rows

HERE = Path(__file__).parent

Model = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Record:
    value: bytes | None
    topic: str = "in"
    partition: int = 0
    offset: int = 0
    timestamp: int = 0
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


def tensor(
    name: str, datatype: str = "FP32", dims: Sequence[int] = (2,), *, optional: bool = False
) -> TensorRecord:
    return TensorRecord(name, datatype, tuple(dims), optional)


def info(
    name: str,
    inputs: Sequence[TensorRecord] = (tensor("x"),),
    outputs: Sequence[TensorRecord] = (tensor("y"),),
    *,
    rows: int | None = 8,
) -> ModelInfo:
    return ModelInfo(
        name=name,
        versions=["1"],
        platform="",
        ready=True,
        inputs=inputs,
        outputs=outputs,
        max_batch_size=rows,
    )


def settings_of(
    source: Any = "json", output: Any = "json", *models: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The values of a pipeline's file."""
    written = {name: more.pop(name) for name in ("keep", "into") if name in more}
    return {
        "group": "g",
        "source": {"topics": "in", "format": source},
        "output": {"topic": "out", "format": output, **written},
        "dead_letters": {"topic": "dead"},
        "kafka": {"bootstrap": "localhost:9092"},
        "repositories": ["models"],
        "models": [*models] or [{"name": "m"}],
        **more,
    }


def pipeline_of(values: Mapping[str, Any], folder: Path = HERE) -> pipeline.ScoringPipeline:
    return pipeline.parse(yaml.safe_dump(dict(values), sort_keys=False), folder=folder, environment={})


def codec_of(
    source: Any = "json",
    output: Any = "json",
    *models: Mapping[str, Any],
    infos: Mapping[str, ModelInfo] | None = None,
    folder: Path = HERE,
    **more: Any,
) -> RecordCodec:
    read = pipeline_of(settings_of(source, output, *models, **more), folder)
    known = infos or {use.label: info(use.name) for use in read.models}
    made = read.codec(known)
    assert isinstance(made, RecordCodec)
    return made


def double(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
    return {"y": tensors["x"] * 2}


def scored(decoded: Decoded, models: Mapping[str, Model]) -> dict[str, list[Rows]]:
    """What models make of decoded records."""
    return {
        label: [Rows(part.places, models[label](part.tensors), part.counts) for part in parts]
        for label, parts in decoded.inputs.items()
    }


def run(
    codec: RecordCodec, values: Sequence[bytes], models: Mapping[str, Model] | Model = double
) -> list[bytes | BadRecord]:
    """What becomes of each value."""
    records = [Record(value) for value in values]
    decoded = codec.decode(records)
    check(decoded, len(values))
    known = dict.fromkeys(decoded.inputs, models) if callable(models) else models
    good = [place for place in range(len(values)) if place not in decoded.bad]
    written = iter(codec.encode(records, decoded, scored(decoded, known), good))
    return [decoded.bad[place] if place in decoded.bad else next(written) for place in range(len(values))]


def check(decoded: Decoded, count: int) -> None:
    """A record is either bad, or in exactly one `Rows` of each model, whose arrays have its rows."""
    good = [place for place in range(count) if place not in decoded.bad]
    for parts in decoded.inputs.values():
        assert sorted(place for part in parts for place in part.places) == good
        for part in parts:
            assert list(part.places) == sorted(part.places)
            assert part.counts is None or len(part.counts) == len(part.places)


def bad(outcome: bytes | BadRecord) -> BadRecord:
    assert isinstance(outcome, BadRecord), outcome
    return outcome


def good(outcome: bytes | BadRecord) -> bytes:
    assert isinstance(outcome, bytes), outcome
    return outcome


def floats(*values: float) -> Array:
    return np.array(values, dtype="<f4")
