"""From fields of records to inputs of models."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import numpy as np
import pytest

from qinfer.errors import ConfigError
from qinfer_workers.kafka.contract import Decoded
from tests.kafka.formats.support import Record, check, codec_of, info, run, tensor

encode = msgspec.json.encode


def decoded(inputs: Any, *documents: Any, spec: Any = None, rows: int | None = 8, **more: Any) -> Decoded:
    """What a model of one input `x` gets of documents."""
    models = {"m": info("m", [spec or tensor("x")], rows=rows)}
    codec = codec_of("json", "json", {"name": "m", "inputs": inputs}, infos=models, **more)
    found = codec.decode([Record(encode(document)) for document in documents])
    check(found, len(documents))
    return found


def inputs_of(found: Decoded, name: str = "x") -> Any:
    (part,) = found.inputs["m"]
    return part.tensors[name].tolist()


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("a", {"a": [1, 2]}),
        ("a.b", {"a": {"b": [1, 2]}}),
        ("a.b[*]", {"a": {"b": [1, 2]}}),
        ("a[*].b", {"a": [{"b": 1}, {"b": 2}]}),
        ("a[1]", {"a": [0, [1, 2]]}),
        ("['a.b']", {"a.b": [1, 2]}),
        ('a["b c"].d', {"a": {"b c": {"d": [1, 2]}}}),
        ("$", [1, 2]),
        ("$.a", {"a": [1, 2]}),
        ("$[0]", [[1, 2]]),
    ],
)
@pytest.mark.parametrize("keep", ["none", "all"])
def test_paths_lead_to_fields(path: str, document: Any, keep: str) -> None:
    if keep == "all" and not isinstance(document, dict):
        document = {"whole": document}
        path = path.replace("$", "whole", 1)
    found = decoded({"x": path}, document, document, keep=keep)
    assert inputs_of(found) == [[1, 2], [1, 2]]
    (part,) = found.inputs["m"]
    assert part.tensors["x"].dtype == np.dtype("<f4")
    assert part.counts is None


@pytest.mark.parametrize(
    "path", ["", "a..b", "a[", "a[-1]", ".a", "a b[", "a.", "[x]", "$a", ".".join("a" * 40)]
)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"models\[0\]\.inputs\.x.*expected"):
        codec_of("json", "json", {"name": "m", "inputs": {"x": {"field": path or " "}}})


def test_an_input_left_out_is_the_field_of_its_name() -> None:
    assert inputs_of(decoded({}, {"x": [1, 2]})) == [[1, 2]]


def test_fields_with_a_value_each_make_a_vector() -> None:
    found = decoded({"x": {"fields": ["a", "b.c"]}}, {"a": 1, "b": {"c": 2}}, {"a": 3, "b": {"c": 4}})
    assert inputs_of(found) == [[1, 2], [3, 4]]
    missing = decoded({"x": {"fields": ["a", "b"]}}, {"a": 1}, {"a": 1, "b": 2})
    assert inputs_of(missing) == [[1, 2]]
    assert "'a, b'" in missing.bad[0].message


def test_a_default_stands_in_for_what_is_missing_or_null() -> None:
    found = decoded({"x": {"field": "a", "default": [7, 8]}}, {"a": [1, 2]}, {}, {"a": None})
    assert inputs_of(found) == [[1, 2], [7, 8], [7, 8]]
    vector = decoded({"x": {"fields": ["a", "b"], "default": 9}}, {"a": 1}, {"a": None, "b": 2})
    assert inputs_of(vector) == [[1, 9], [9, 2]]


def test_a_constant_is_there_for_all() -> None:
    models = {"m": info("m", [tensor("x"), tensor("k", "INT64", (1,))])}
    codec = codec_of("json", "json", {"name": "m", "inputs": {"k": {"value": 5}}}, infos=models)
    found = codec.decode([Record(encode({"x": [1, 2]})), Record(encode({"x": [3, 4]}))])
    assert inputs_of(found, "k") == [[5], [5]]


def test_base64_is_decoded() -> None:
    spec = tensor("x", "BYTES", (1,))
    text = base64.b64encode(b"\x00\xff").decode()
    found = decoded({"x": {"field": "a", "base64": True}}, {"a": text}, {"a": "no base64!"}, spec=spec)
    assert inputs_of(found) == [[b"\x00\xff"]]
    assert "not base64" in found.bad[1].message


def test_records_with_other_shapes_are_rows_of_their_own() -> None:
    found = decoded({}, {"x": [1]}, {"x": [1, 2]}, {"x": [3]}, spec=tensor("x", dims=(-1,)))
    shapes = {tuple(part.places): part.tensors["x"].tolist() for part in found.inputs["m"]}
    assert shapes == {(0, 2): [[1], [3]], (1,): [[1, 2]]}


def test_a_model_without_batch_dimension_gets_records_one_by_one() -> None:
    found = decoded({}, {"x": [1, 2]}, {"x": [3, 4]}, rows=0)
    assert [(list(part.places), part.tensors["x"].tolist()) for part in found.inputs["m"]] == [
        ([0], [1, 2]),
        ([1], [3, 4]),
    ]


def test_an_optional_input_may_be_missing() -> None:
    models = {"m": info("m", [tensor("x"), tensor("o", dims=(1,), optional=True)])}
    codec = codec_of(infos=models)
    found = codec.decode([Record(encode({"x": [1, 2]})), Record(encode({"x": [1, 2], "o": 3}))])
    check(found, 2)
    assert [(list(part.places), sorted(part.tensors)) for part in found.inputs["m"]] == [
        ([0], ["x"]),
        ([1], ["o", "x"]),
    ]


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ({}, "found nothing"),
        ({"x": None}, "found null"),
        ({"x": [1]}, r"shape \[1\]"),
        ({"x": [1, "2"]}, "expected FP32"),
        ({"x": [1, True]}, "expected FP32"),
        ({"x": [1, None]}, "expected FP32"),
        ({"x": [[1, 2]]}, r"shape \[1, 2\]"),
        ({"x": 1}, "single value"),
        ({"x": [1, 1e300]}, "largest number"),
        ({"x": {"a": 1}}, "expected FP32"),
    ],
)
def test_what_does_not_fit_is_bad_and_its_neighbours_are_not(document: Any, part: str) -> None:
    found = decoded({}, {"x": [1, 2]}, document, {"x": [3, 4]})
    assert inputs_of(found) == [[1, 2], [3, 4]]
    assert found.bad[1].reason == "mapping"
    with pytest.raises(AssertionError, match=part):
        raise AssertionError(found.bad[1].message)
    assert found.bad[1].message.startswith("input 'x' of model 'm': field 'x': ")


def test_a_record_that_is_bad_for_one_model_is_in_the_rows_of_none() -> None:
    models = [{"name": "m"}, {"name": "n", "inputs": {"x": "z"}}]
    codec = codec_of("json", "json", *models)
    found = codec.decode(
        [Record(encode({"x": [1, 2], "z": [1]})), Record(encode({"x": [3, 4], "z": [5, 6]}))]
    )
    check(found, 2)
    assert list(found.bad) == [0]
    assert inputs_of(found) == [[3, 4]]
    assert "'n'" in found.bad[0].message


def test_a_value_above_the_limit_is_not_decoded() -> None:
    values = [encode({"x": [1, 2]}), encode({"x": [1, 2], "pad": "p" * 100})]
    codec = codec_of(limits={"max_record_bytes": 60})
    outcome = run(codec, values)
    assert outcome[0] == b'{"y":[2.0,4.0]}'
    found = codec.decode([Record(value) for value in values])
    assert found.bad[1].reason == "too_large"
    assert "limits.max_record_bytes" in found.bad[1].message


@pytest.mark.parametrize(
    ("model", "field", "part"),
    [
        ({"inputs": {"q": "a"}}, r"models\[0\].inputs.q", "no such input of m; expected one of x"),
        ({"inputs": {"x": {"field": "a", "value": 1}}}, r"models\[0\].inputs.x", "field and value"),
        ({"inputs": {"x": {"default": 1}}}, r"models\[0\].inputs.x", "none of field"),
        ({"inputs": {"x": {"value": [1, 2, 3]}}}, r"models\[0\].inputs.x.value", "shape"),
        (
            {"inputs": {"x": {"field": "a", "default": "no"}}},
            r"models\[0\].inputs.x.default",
            "expected FP32",
        ),
        ({"outputs": {"s": "q"}}, r"models\[0\].outputs.s", "no output 'q' of m; expected one of y"),
        ({"outputs": {"s": "y[2]"}}, r"models\[0\].outputs.s", "expected 0 to 1"),
        ({"outputs": {"s": {"output": "y", "select": "label"}}}, r"models\[0\].outputs.s", "no labels"),
        (
            {"outputs": {"s": {"output": "y", "select": "label", "labels": ["a"]}}},
            r"models\[0\].outputs.s",
            "1 labels; expected 2",
        ),
        (
            {"outputs": {"s": {"output": "y", "labels": ["a", "b"]}}},
            r"models\[0\].outputs.s",
            "select: label",
        ),
        ({"outputs": {"s": {"output": "y", "select": "max", "index": 1}}}, r"models\[0\].outputs.s", "both"),
        (
            {"outputs": {"s": {"output": "y", "labels_file": "none.txt"}}},
            r"models\[0\].outputs.s.labels_file",
            "none.txt",
        ),
        ({"outputs": {"s": "y", "s.t": "y"}}, "models", "s.t beside s"),
        ({"outputs": {"a[0]": "y"}}, r"models\[0\].outputs", "names with dots"),
        ({"outputs": {}}, "models", "no outputs"),
    ],
)
def test_a_mapping_that_does_not_fit_the_model_is_refused(model: Any, field: str, part: str) -> None:
    with pytest.raises(ConfigError, match=rf"pipeline\.yaml: (\d+:\d+: )?{field}.*: .*{part}"):
        codec_of("json", "json", {"name": "m", **model})
