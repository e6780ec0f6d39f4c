from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf import json_format

from qinfer import proto
from qinfer.registry import ModelRecord, TensorRecord
from qinfer.repository import config_json, model_metadata
from tests.proto.messages import fill

from .models import MINIMAL, only, write_model


def test_shapes_include_the_batch_dimension(tmp_path: Path) -> None:
    write_model(tmp_path, config=MINIMAL)
    entry = only(tmp_path)
    assert model_metadata(entry.config, entry.versions) == {
        "name": "m",
        "versions": ["1"],
        "platform": "python",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }


def test_metadata_of_a_registry_record_without_batch_dimension() -> None:
    record = ModelRecord(
        name="m",
        version="1",
        backend="python",
        platform="python",
        max_batch_size=0,
        inputs=(TensorRecord(name="x", datatype="BYTES", dims=(-1, 2)),),
        outputs=(),
        config=b"",
    )
    metadata = model_metadata(record, ["1", "2"])
    assert metadata["versions"] == ["1", "2"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "BYTES", "shape": [-1, 2]}]


def test_configuration_has_every_field_and_numbers(tmp_path: Path) -> None:
    write_model(tmp_path, config=MINIMAL + "dynamic_batching { max_queue_delay_microseconds: 100 }")
    config = config_json(only(tmp_path).config.proto)
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    assert config["dynamic_batching"]["preserve_ordering"] is False
    assert config["input"][0]["dims"] == [3]
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert config["instance_group"][0]["kind"] == "KIND_AUTO"
    assert config["model_warmup"] == []
    assert config["metric_tags"] == {}


def strings(value: Any) -> set[str]:
    """Every string of a JSON value that is all digits."""
    if isinstance(value, dict):
        return set().union(*(strings(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(strings(inner) for inner in value))
    return {value} if isinstance(value, str) and value.lstrip("-").isdigit() else set()


@pytest.mark.parametrize("seed", range(30))
def test_configuration_reads_back(seed: int) -> None:
    message = proto.ModelConfig()
    fill(Random(seed), message)
    config = config_json(message.SerializeToString())
    assert strings(config) == set()
    assert json_format.Parse(json.dumps(config), proto.ModelConfig()) == message
