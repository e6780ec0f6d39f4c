from __future__ import annotations

import json
from typing import Any

import pytest
import yaml as pyyaml
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from qinfer.errors import ConfigError
from qinfer.proto import DataType, ModelConfig, ModelInstanceGroup
from qinfer.repository import yaml
from qinfer.repository.document import MAX_FAULTS, Position


def error(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        yaml.read(text, "FILE")
    return caught.value.message


def test_every_kind_of_field() -> None:
    message = yaml.read(
        """
name: m
max_batch_size: 8
input:
  - name: x
    data_type: TYPE_FP32
    dims: [3, -1]
    optional: true
    reshape: {shape: []}
dynamic_batching:
  priority_levels: 18446744073709551615
  priority_queue_policy:
    1: {timeout_action: DELAY, max_queue_size: 7}
instance_group:
  - {kind: KIND_GPU, gpus: [0, 1]}
parameters:
  threads: {string_value: 4}
metric_tags: {team: on, zip: 01234}
model_metrics:
  metric_control:
    - histogram_options: {buckets: [1, 2.5, 1e3]}
version_policy: {all: {}}
""",
        "FILE",
    ).message
    assert message.name == "m"
    assert (message.input[0].data_type, message.input[0].optional) == (DataType.Value("TYPE_FP32"), True)
    assert list(message.input[0].dims) == [3, -1]
    assert message.input[0].HasField("reshape")
    assert message.dynamic_batching.priority_levels == 2**64 - 1
    assert message.dynamic_batching.priority_queue_policy[1].max_queue_size == 7
    assert message.instance_group[0].kind == ModelInstanceGroup.KIND_GPU
    assert message.parameters["threads"].string_value == "4"
    assert dict(message.metric_tags) == {"team": "on", "zip": "01234"}
    assert list(message.model_metrics.metric_control[0].histogram_options.buckets) == [1, 2.5, 1000]
    assert message.version_policy.HasField("all")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nam: x", "1:1: nam: no such field in ModelConfig; expected name (or another of 25)"),
        ("- name: x", "1:1: found a list; expected a mapping"),
        ("name:", "1:6: name: found nothing; expected a string"),
        ("name: [x]", "1:7: name: found a list; expected a string"),
        ("name: x\nname: y", "2:1: name: given twice; expected once"),
        (
            "dynamic_batching:",
            "1:18: dynamic_batching: found nothing; expected a mapping, {} for one without",
        ),
        ("input:\n  name: x", "2:3: input: found a mapping; expected a list"),
        ("input:\n- x", "2:3: input[0]: found x; expected a mapping"),
        ("max_batch_size: 8.0", "1:17: max_batch_size: found 8.0; expected an integer from -2147483648 to"),
        ("max_batch_size: 2147483648", "max_batch_size: found 2147483648; expected an integer"),
        ("max_batch_size: 0x10", "max_batch_size: found 0x10; expected an integer"),
        ("input: [{dims: [1, ~]}]", "1:20: input[0].dims[1]: found nothing; expected an integer"),
        ("input: [{dims: [[1]]}]", "1:17: input[0].dims[0]: found a list; expected an integer"),
        ("input: [{optional: 1}]", "1:20: input[0].optional: found 1; expected true or false"),
        ("input: [{data_type: FP32}]", "input[0].data_type: FP32 is no value of DataType; expected TYPE_F"),
        ("metric_tags: {a: [b]}", "metric_tags[a]: found a list; expected a string"),
        ("metric_tags: {a: b, a: c}", "1:21: metric_tags[a]: given twice; expected once"),
        ("? [a]\n: b", "1:3: found a list as a key; expected the name of a field"),
        (
            "dynamic_batching: {priority_queue_policy: {x: {}}}",
            "policy[x]: found x; expected an integer from 0",
        ),
        (
            "dynamic_batching: {}\nsequence_batching: {}",
            "2:1: sequence_batching: given beside dynamic_batching; expected one of the two",
        ),
        (
            "version_policy: {all: {}, latest: {num_versions: 2}}",
            "1:27: version_policy.latest: given beside all; expected one of the two",
        ),
        ("name: !!python/object:os.system x\n\t", "expected YAML"),
        ("name: 'x", "expected YAML"),
        ("name: x\n---\nname: y", "2:1: but found another document; expected YAML"),
        ("name: *nowhere", "found undefined alias"),
        ("name: \x00", "expected YAML"),
        ("[" * 5_000, "nested too deeply"),
    ],
)
def test_errors_say_where_what_and_what_was_expected(text: str, expected: str) -> None:
    message = error(text)
    assert message.startswith("FILE: ")
    assert expected in message
    assert "\n" not in message


def test_all_faults_are_told_at_once_but_not_without_end() -> None:
    assert len(error("nam: x\nmax_batch_size: y\ninput: 3").split("\n")) == 3
    many = error("".join(f"f{number}: 1\n" for number in range(100))).split("\n")
    assert len(many) == MAX_FAULTS + 1
    assert many[-1] == f"FILE: and {100 - MAX_FAULTS} more"


def test_values_cannot_break_or_flood_a_message() -> None:
    assert error('max_batch_size: "a\\nb\\e[31m"').startswith(
        r"FILE: 1:17: max_batch_size: found a\nb\x1b[31m; "
    )
    assert len(error(f"max_batch_size: {'9' * 100_000}")) < 2000


def test_tags_make_no_objects() -> None:
    assert "expected a string" in error("name: !!python/object/apply:os.getcwd []")


def test_aliases_are_followed() -> None:
    message = yaml.read("input: [&x {name: a, dims: [1]}]\noutput: [*x]", "FILE").message
    assert message.output[0].name == "a"


def test_aliases_cannot_stand_for_endless_values() -> None:
    ones = f"input: [&i {{dims: &d [{'1, ' * 500}]}}{', *i' * 500}]\noutput: [{{dims: *d}}]"
    assert error(ones) == "FILE: more than 100000 values; expected a model configuration"
    assert "no such field" in error("input: [&i {input: [*i]}]")


def test_positions() -> None:
    document = yaml.read("max_batch_size: 4\ninput:\n  - name: a\n    dims: [1, 2]", "FILE")
    assert document.positions["max_batch_size"] == Position(1, 1)
    assert document.positions["input[0]"] == Position(3, 5)
    assert document.positions["input[0].dims[1]"] == Position(4, 15)


def test_an_empty_file_says_nothing() -> None:
    assert yaml.read("# nothing\n", "FILE").message == ModelConfig()


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "input", "dims", "reshape", "shape", "parameters", "metric_tags"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_any_yaml_is_read_or_refused_in_one_way(value: Any) -> None:
    try:
        yaml.read(pyyaml.safe_dump(value), "FILE")
    except ConfigError as refusal:
        message = refusal.message
        assert message.startswith("FILE: ")


def test_json_is_read_as_protobuf_reads_it() -> None:
    text = json.dumps(
        {
            "name": "m",
            "input": [{"name": "x", "data_type": "TYPE_INT8", "dims": ["1", 2]}],
            "dynamic_batching": {"max_queue_delay_microseconds": "100"},
        }
    )
    assert yaml.read(text, "FILE").message == json_format.Parse(text, ModelConfig())
