from __future__ import annotations

import pytest

from qinfer.repository import pbtxt
from qinfer.repository.validate import MAX_QUEUE_DELAY_US, check, without_effect

HEAD = 'name: "m" backend: "python" max_batch_size: 8 '


def faults(text: str, *, batch_size_known: bool = True) -> list[str]:
    message = pbtxt.read(text, "FILE").message
    return [f"{fault.field}: {fault.text}" for fault in check(message, batch_size_known=batch_size_known)]


def tensor(rest: str) -> str:
    return HEAD + f'input {{ name: "x" data_type: TYPE_FP32 {rest} }}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD.replace("8", "-1"), "max_batch_size: found -1; expected 1 or more, or 0 for"),
        (HEAD + "input { data_type: TYPE_FP32 dims: 1 }", "input[0].name: found nothing; expected"),
        (HEAD + 'output { name: "y" dims: 1 }', "output[0].data_type: found none; expected one"),
        (HEAD + 'input { name: "x" data_type: 99 dims: 1 }', "input[0].data_type: found 99; expected one of"),
        (tensor(""), "input[0].dims: found none; expected one or more"),
        (tensor("dims: 0"), "input[0].dims[0]: found 0; expected 1 or more, or -1"),
        (tensor("dims: [ 3, -2 ]"), "input[0].dims[1]: found -2; expected 1 or more, or -1"),
        (tensor("dims: 4 reshape { shape: [ 2, 3 ] }"), "input[0].reshape.shape: found [2, 3]; expected as"),
        (tensor("dims: 4 reshape { shape: [ 4, 0 ] }"), "input[0].reshape.shape[1]: found 0; expected 1 or"),
        (tensor("dims: 4 reshape { shape: [] }"), "input[0].reshape.shape: found []; expected as many"),
        (tensor("dims: [ 2, -1 ] reshape { shape: [ -1, 2 ] }"), "input[0].reshape.shape: found [-1, 2]"),
        (
            tensor("dims: [ 2, 3 ] format: FORMAT_NHWC"),
            "input[0].format: FORMAT_NHWC with 2 dims; expected 3",
        ),
        (
            tensor("dims: 1") + ' input { name: "x" data_type: TYPE_FP32 dims: 1 }',
            "input[1].name: found 'x', the name of input[0] too; expected each once",
        ),
        (
            HEAD + "dynamic_batching { preferred_batch_size: 0 }",
            "preferred_batch_size[0]: found 0; expected 1 to",
        ),
        (HEAD + "dynamic_batching { preferred_batch_size: [ 8, 9 ] }", "preferred_batch_size[1]: found 9"),
        (
            'backend: "python" dynamic_batching { preferred_batch_size: 1 }',
            "preferred_batch_size[0]: found 1; expected none, because max_batch_size is 0",
        ),
        (
            HEAD + f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US + 1} }}",
            "dynamic_batching.max_queue_delay_microseconds: found 60000001; expected at most 60000000",
        ),
        (
            HEAD + "dynamic_batching { priority_levels: 2 }",
            "dynamic_batching.default_priority_level: found 0; expected 1 to priority_levels, which is 2",
        ),
        (
            HEAD + "dynamic_batching { default_priority_level: 1 }",
            "dynamic_batching.default_priority_level: found 1; expected priority_levels beside it",
        ),
        (
            HEAD
            + "dynamic_batching { priority_levels: 1 default_priority_level: 1 "
            + "priority_queue_policy { key: 2 value {} } }",
            "dynamic_batching.priority_queue_policy: found level 2; expected levels from 1",
        ),
        (
            HEAD
            + "dynamic_batching { priority_levels: 1 default_priority_level: 1 "
            + "priority_queue_policy { key: 1 value { timeout_action: 5 } } }",
            "dynamic_batching.priority_queue_policy[1].timeout_action: found 5; expected one of REJECT",
        ),
        (HEAD + "instance_group { count: -1 }", "instance_group[0].count: found -1; expected 1 to"),
        (HEAD + "instance_group { count: 5000 }", "instance_group[0].count: found 5000; expected 1 to"),
        (HEAD + "instance_group { kind: 7 }", "instance_group[0].kind: found 7; expected one of KIND_AUTO"),
        (HEAD + "instance_group { kind: KIND_CPU gpus: 0 }", "instance_group[0].gpus: given for KIND_CPU"),
        (
            HEAD + "instance_group { kind: KIND_MODEL gpus: 0 }",
            "instance_group[0].gpus: given for KIND_MODEL",
        ),
        (HEAD + "instance_group { gpus: -1 }", "instance_group[0].gpus[0]: found -1; expected the index"),
        (
            HEAD + "instance_group { gpus: [ 1, 1 ] }",
            "instance_group[0].gpus[1]: found 1 again; expected each",
        ),
        (
            HEAD + 'instance_group [ { name: "a" }, { name: "a" } ]',
            "instance_group[1].name: found 'a', the name of instance_group[0] too",
        ),
        (HEAD + "version_policy { latest {} }", "version_policy.latest.num_versions: found 0; expected 1 or"),
        (HEAD + "version_policy { specific {} }", "version_policy.specific.versions: found none; expected"),
        (
            HEAD + "version_policy { specific { versions: [ 1, 0 ] } }",
            "version_policy.specific.versions[1]: found 0; expected 1 or more",
        ),
    ],
)
def test_faults(text: str, expected: str) -> None:
    (found,) = faults(text)
    assert expected in found


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("sequence_batching {}", "sequence_batching"),
        ("ensemble_scheduling {}", "ensemble_scheduling"),
        ('model_operations { op_library_filename: "a.so" }', "model_operations"),
        ('model_repository_agents { agents { name: "checksum" } }', "model_repository_agents"),
        ("batch_input {}", "batch_input"),
        ("batch_output {}", "batch_output"),
        ('cc_model_filenames { key: "8.0" value: "a.onnx" }', "cc_model_filenames"),
        ('runtime: "model.py"', "runtime"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }',
            "input[0].allow_ragged",
        ),
        (
            'output { name: "y" data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }',
            "output[0].is_shape_tensor",
        ),
        ("instance_group { passive: true }", "instance_group[0].passive"),
        ("instance_group { secondary_devices {} }", "instance_group[0].secondary_devices"),
    ],
)
def test_what_would_change_answers_is_refused(text: str, field: str) -> None:
    (found,) = faults(HEAD + text)
    assert found.startswith(field)
    assert "not supported yet; expected it to be left out" in found


@pytest.mark.parametrize("spelling", ['platform: "ensemble" backend: "ensemble"', 'backend: "ensemble"'])
def test_ensembles_are_refused_once(spelling: str) -> None:
    (found,) = faults(spelling)
    assert "not supported yet" in found
    (found,) = faults(spelling + " ensemble_scheduling {}")
    assert found.startswith("ensemble_scheduling")


@pytest.mark.parametrize(
    "text",
    [
        "",
        tensor("dims: 1 reshape { shape: [] }"),
        tensor("dims: [ 2, 4, -1, 6 ] reshape { shape: [ 8, -1, 1, 6 ] }"),
        tensor("dims: [ 3, 224, 224 ] format: FORMAT_NCHW optional: true"),
        HEAD + "dynamic_batching { preferred_batch_size: [ 1, 8 ] max_queue_delay_microseconds: 60000000 }",
        'backend: "python" dynamic_batching {}',
        HEAD + "optimization { graph { level: 1 } eager_batching: true priority: PRIORITY_MAX }",
        HEAD + 'model_warmup { name: "w" batch_size: 1 }',
        HEAD + "response_cache { enable: true } model_metrics { metric_control {} }",
        HEAD + 'instance_group { rate_limiter { priority: 2 } host_policy: "numa0" profile: "1" }',
        HEAD + 'runtime: "libtriton_python.so"',
        HEAD + "model_transaction_policy { decoupled: true }",
    ],
)
def test_what_is_right_or_only_tunes_is_accepted(text: str) -> None:
    assert faults(text) == []


def test_preferred_sizes_wait_for_an_unknown_batch_size() -> None:
    text = 'backend: "onnxruntime" dynamic_batching { preferred_batch_size: 4 }'
    assert faults(text, batch_size_known=False) == []
    assert len(faults(text)) == 1
    assert len(faults(text.replace("4", "0"), batch_size_known=False)) == 1


def test_what_has_no_effect_yet_is_named() -> None:
    text = (
        HEAD
        + """
    dynamic_batching {
      max_queue_delay_microseconds: 100 preserve_ordering: true priority_levels: 2 default_priority_level: 1
      default_queue_policy { max_queue_size: 8 }
    }
    instance_group [ { count: 1 }, { host_policy: "numa0" } ]
    model_warmup { name: "w" batch_size: 1 }
    """
    )
    message = pbtxt.read(text, "config.pbtxt").message
    assert check(message) == []
    assert without_effect(message) == [
        "model_warmup",
        "dynamic_batching.preserve_ordering",
        "dynamic_batching.priority_levels",
        "dynamic_batching.default_priority_level",
        "dynamic_batching.default_queue_policy",
        "instance_group[1].host_policy",
    ]
    assert without_effect(pbtxt.read(HEAD, "config.pbtxt").message) == []
