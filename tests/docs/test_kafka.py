"""The page on Kafka: its pipelines are read, its record becomes what it says, no field is missing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

from qinfer.client.base import ModelInfo
from qinfer.registry import TensorRecord
from qinfer_workers.kafka import pipeline, settings
from qinfer_workers.kafka.contract import Rows
from qinfer_workers.kafka.registry import client
from tests.docs.pages import blocks, first_column, read, section

PAGE = read("docs/kafka.md")
PIPELINES = [yaml.safe_load(block) for block in blocks(PAGE, "yaml")]
SCORED = {
    "type": "record",
    "name": "Scored",
    "fields": [
        {"name": "id", "type": ["null", "string"], "default": None},
        {
            "name": "fraud",
            "type": {
                "type": "record",
                "name": "Fraud",
                "fields": [{"name": "probability", "type": "float"}, {"name": "verdict", "type": "string"}],
            },
        },
    ],
}
PROTO = """\
syntax = "proto3";
package shop;
message Card { double age_days = 1; }
message Merchant { double risk = 1; }
message Payment { string id = 1; double amount = 2; Card card = 3; Merchant merchant = 4; }
"""
INFO = ModelInfo(
    name="fraud",
    versions=["1"],
    platform="",
    ready=True,
    inputs=[TensorRecord("x", "FP32", (3,))],
    outputs=[TensorRecord("probabilities", "FP32", (2,))],
    max_batch_size=64,
)


@dataclass
class Record:
    value: bytes
    topic: str = "payments"
    partition: int = 0
    offset: int = 0
    timestamp: int = 0
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the page's pipelines name."""
    (tmp_path / "scored.avsc").write_text(json.dumps(SCORED))
    (tmp_path / "payment.proto").write_text(PROTO)
    (tmp_path / "registry-password").write_text("secret")
    return tmp_path


@pytest.mark.parametrize("place", range(len(PIPELINES)))
def test_its_pipelines_are_read(place: int, folder: Path) -> None:
    """Those that are only parts of one take the rest from the first."""
    whole = {**PIPELINES[0], **PIPELINES[place]}
    made = pipeline.parse(yaml.safe_dump(whole), folder=folder, environment={"KAFKA_PASSWORD": "p"})
    made.codec({use.label: INFO for use in made.models})


def test_its_record_becomes_what_it_says(folder: Path) -> None:
    before, after = (json.loads(block) for block in blocks(PAGE, "json"))
    made = pipeline.parse(yaml.safe_dump(PIPELINES[0]), folder=folder, environment={})
    codec = made.codec({"fraud": INFO})
    records = [Record(json.dumps(before).encode())]
    decoded = codec.decode(records)
    (part,) = decoded.inputs["fraud"]
    assert part.tensors["x"].tolist() == [[12.5, 3, 0.25]]
    outputs = Rows(part.places, {"probabilities": np.array([[0.25, 0.75]], dtype="<f4")})
    (value,) = codec.encode(records, decoded, {"fraud": [outputs]}, [0])
    assert isinstance(value, bytes)
    assert json.loads(value) == after


def fields_of(kind: Any) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


def named(title: str) -> set[str]:
    """What the first cells of a section's tables name."""
    cells = first_column(section(PAGE, title))
    return {name for cell in cells for name in re.findall(r"`([a-z_0-9.]+)`", cell)}


def test_its_table_has_all_fields_of_a_pipeline() -> None:
    listed = {name.split(".")[0] for name in named("The pipeline")}
    assert listed == fields_of(settings.PipelineSettings)
    inner = {
        "source": settings.Source,
        "output": settings.Output,
        "window": settings.WindowSettings,
        "limits": settings.LimitSettings,
        "create_topics": settings.CreateTopics,
    }
    for name, kind in inner.items():
        assert {f"{name}.{field}" for field in fields_of(kind)} <= named("The pipeline")


def test_its_table_has_all_formats_and_their_options() -> None:
    names = set(re.findall(r'"([a-z]+)"', str(msgspec.json.schema(settings.FormatName)).replace("'", '"')))
    listed = named("Formats")
    assert (
        listed
        == names - {"string", "enum"}
        == {kind.__struct_config__.tag for kind in settings.Format.__args__}
    )
    text = section(PAGE, "Formats")
    for kind in (settings.Avro, settings.Protobuf, settings.Raw):
        for option in fields_of(kind):
            assert f"`{option}`" in text, option


@pytest.mark.parametrize(
    "kind",
    [
        *(settings.Kafka, settings.Sasl, settings.Tls, settings.ClientOptions, settings.ConsumerOptions),
        *(settings.ProducerOptions, settings.SchemaRegistry, settings.InputSource, settings.OutputSource),
        settings.Model,
    ],
)
def test_it_names_all_other_fields(kind: Any) -> None:
    for name in fields_of(kind):
        assert re.search(rf"\b{name}\b", PAGE), name


def test_its_numbers_are_those_of_the_code() -> None:
    defaults = pipeline.parse(yaml.safe_dump(PIPELINES[0]), folder=Path(), environment={})
    text = section(PAGE, "The pipeline")
    limits, window = defaults.limits, defaults.window
    for cells in (
        f"| `window.max_rows`, `window.max_delay_ms` | {window.max_rows}, {window.max_delay_ms:g} |",
        f"| `limits.max_record_bytes` | {limits.max_record_bytes} |",
        f"| `limits.max_in_flight` | {limits.max_in_flight} |",
        f"`limits.commit_rows` | {limits.commit_interval_ms:g}, {limits.commit_rows} |",
        f"| `limits.score_timeout` | {limits.score_timeout:g} |",
        f"| `limits.drain_timeout` | {limits.drain_timeout:g} |",
    ):
        assert cells in text
    assert f"asked again after {client.UNKNOWN_FOR:.0f} seconds" in PAGE
