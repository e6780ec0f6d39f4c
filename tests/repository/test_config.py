from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinfer.datatypes import DATATYPES
from qinfer.errors import ConfigError
from qinfer.proto import ModelConfig as Message
from qinfer.repository import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    QueuePolicy,
    TensorSpec,
    VersionPolicy,
    complete,
    from_message,
    pbtxt,
    to_message,
)

NAMES = st.text(min_size=1, max_size=6)
SIZES = st.lists(st.integers(1, 9) | st.just(-1), min_size=1, max_size=3).map(tuple)
POLICIES = st.builds(
    QueuePolicy,
    timeout_action=st.sampled_from(["REJECT", "DELAY"]),
    default_timeout_us=st.integers(0, 2**64 - 1),
    allow_timeout_override=st.booleans(),
    max_queue_size=st.integers(0, 2**32 - 1),
)


def tensors(optional: st.SearchStrategy[bool]) -> st.SearchStrategy[tuple[TensorSpec, ...]]:
    spec = st.builds(
        TensorSpec,
        name=NAMES,
        datatype=st.sampled_from([*DATATYPES]),
        dims=SIZES,
        reshape=st.none() | SIZES | st.just(()),
        optional=optional,
    )
    return st.lists(spec, max_size=3, unique_by=lambda tensor: tensor.name).map(tuple)


CONFIGS = st.builds(
    ModelConfig,
    name=NAMES,
    backend=st.sampled_from(["onnxruntime", "torch", "python", "of_mine"]),
    platform=st.sampled_from(["onnxruntime_onnx", "somewhere"]),
    max_batch_size=st.integers(0, 64),
    inputs=tensors(st.booleans()),
    outputs=tensors(st.just(False)),
    dynamic_batching=st.none()
    | st.builds(
        DynamicBatching,
        max_queue_delay_us=st.integers(0, 10**6),
        preferred_batch_sizes=st.sets(st.integers(1, 64), max_size=3).map(lambda sizes: tuple(sorted(sizes))),
        preserve_ordering=st.booleans(),
        priority_levels=st.integers(0, 3),
        default_priority_level=st.integers(0, 3),
        default_queue_policy=POLICIES,
        queue_policies=st.dictionaries(st.integers(1, 3), POLICIES, max_size=2),
    ),
    instance_groups=st.lists(
        st.builds(
            InstanceGroup,
            name=NAMES,
            kind=st.sampled_from(["GPU", "CPU", "MODEL"]),
            count=st.integers(1, 9),
            gpus=st.lists(st.integers(0, 7), unique=True).map(tuple),
        ),
        min_size=1,
        max_size=2,
    ).map(tuple),
    version_policy=st.sampled_from(
        [VersionPolicy(), VersionPolicy(latest=None), VersionPolicy(latest=None, specific=(1, 3))]
    ),
    parameters=st.dictionaries(NAMES, NAMES, max_size=2),
    default_model_filename=st.sampled_from(["", "model.bin"]),
    decoupled=st.booleans(),
)


@given(CONFIGS)
@settings(max_examples=150, deadline=None)
def test_the_message_says_all_that_the_view_says(config: ModelConfig) -> None:
    again = from_message(to_message(config))
    assert replace(again, proto=b"") == config
    assert from_message(to_message(again)) == again


@given(CONFIGS, CONFIGS)
@settings(max_examples=100, deadline=None)
def test_the_view_wins_over_an_older_message(old: ModelConfig, new: ModelConfig) -> None:
    config = replace(new, proto=to_message(old).SerializeToString())
    assert replace(from_message(to_message(config)), proto=b"") == new


def written(text: str) -> ModelConfig:
    document = pbtxt.read(text, "FILE")
    return from_message(
        document.message,
        source="FILE",
        max_batch_size_given="max_batch_size" in document.positions,
        labels={"y": ("a", "b")},
    )


def test_defaults_are_written_down() -> None:
    config = written('name: "m" backend: "pytorch" instance_group [ {}, { name: "g" gpus: 1 count: 2 } ]')
    assert config.backend == "torch"
    assert config.platform == "torch"  # settled from the backend when a repository is scanned
    assert config.instance_groups == (
        InstanceGroup(name="m_0"),
        InstanceGroup(name="g", kind="GPU", count=2, gpus=(1,)),
    )
    message = Message.FromString(config.proto)
    assert message.version_policy.latest.num_versions == 1
    assert [group.count for group in message.instance_group] == [1, 2]


TEXT = """
name: "m" backend: "onnxruntime" platform: "onnxruntime_onnx"
input { name: "x" data_type: TYPE_FP32 dims: [ 3, 4, 5 ] format: FORMAT_NCHW }
output { name: "y" data_type: TYPE_FP32 dims: 2 label_filename: "labels.txt" }
optimization { graph { level: 1 } }
metric_tags { key: "team" value: "vision" }
dynamic_batching { preferred_batch_size: 4 }
"""


def test_completing_keeps_what_the_view_does_not_show() -> None:
    config = complete(
        written(TEXT),
        inputs=[
            TensorSpec(name="x", datatype="FP16", dims=(3, 4, -1)),
            TensorSpec(name="seed", datatype="INT64", dims=()),
        ],
        max_batch_size=8,
    )
    assert config.max_batch_size == 8
    assert config.max_batch_size_given
    assert config.inputs[1] == TensorSpec(name="seed", datatype="INT64", dims=(1,), reshape=())
    assert config.outputs[0].labels == ("a", "b")
    message = Message.FromString(config.proto)
    assert message.input[0].format == message.input[0].FORMAT_NCHW
    assert list(message.input[0].dims) == [3, 4, -1]
    assert message.output[0].label_filename == "labels.txt"
    assert message.optimization.graph.level == 1
    assert message.metric_tags["team"] == "vision"
    assert message.max_batch_size == 8
    assert complete(config) == config


def test_new_labels_win() -> None:
    spec = TensorSpec(name="y", datatype="FP32", dims=(2,), labels=("c", "d"))
    assert complete(written(TEXT), outputs=[spec]).outputs == (spec,)


def test_completing_the_backend() -> None:
    config = complete(written(TEXT), backend="torch")
    assert (config.backend, config.platform) == ("torch", "pytorch_libtorch")
    assert Message.FromString(config.proto).backend == "pytorch"
    config = complete(config, backend="of_mine")
    assert (config.backend, config.platform) == ("of_mine", "of_mine")


def test_a_configuration_made_by_hand_is_completed_too() -> None:
    config = complete(ModelConfig(name="m", backend="python"), max_batch_size=2)
    assert Message.FromString(config.proto).max_batch_size == 2
    assert config.instance_groups == (InstanceGroup(name="m_0"),)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"max_batch_size": 2},
            "FILE: dynamic_batching.preferred_batch_size[0]: found 4; expected 1 to max_",
        ),
        ({"inputs": [TensorSpec(name="", datatype="FP32", dims=(1,))]}, "FILE: input[0].name: found nothing"),
        ({"outputs": [TensorSpec(name="y", datatype="FP32", dims=(0,))]}, "FILE: output[0].dims[0]: found 0"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        complete(written(TEXT), **arguments)  # type: ignore[arg-type]
    assert caught.value.message.startswith(expected)
