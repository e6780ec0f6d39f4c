"""From outputs of models to fields of the records that are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from qinfer.datatypes import Array, to_bf16
from qinfer_workers.kafka.contract import Rows
from tests.kafka.formats.support import Record, bad, codec_of, double, good, info, run, tensor

encode, decode = msgspec.json.encode, msgspec.json.decode


def answers(array: Array, outputs: Any, spec: Any, *documents: Any, **more: Any) -> list[Any]:
    """What is written where a model answers with this array."""
    model = {"name": "m", **({} if outputs is None else {"outputs": outputs})}
    codec = codec_of("json", "json", model, infos={"m": info("m", outputs=[spec])}, **more)
    values = [encode(document) for document in documents or [{"x": [0, 0]}] * len(array)]
    return [
        decode(outcome) if isinstance(outcome, bytes) else outcome
        for outcome in run(codec, values, lambda _: {spec.name: array})
    ]


SCORES = np.array([[0.25, 0.5, 0.125], [1, 0, 0]], dtype="<f4")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("y", [[0.25, 0.5, 0.125], [1, 0, 0]]),
        ("y[1]", [0.5, 0]),
        ({"output": "y", "index": 2}, [0.125, 0]),
        ({"output": "y", "select": "argmax"}, [1, 0]),
        ({"output": "y", "select": "max"}, [0.5, 1]),
        ({"output": "y", "select": "label", "labels": ["a", "b", "ü"]}, ["b", "a"]),
    ],
)
def test_selections(output: Any, expected: list[Any]) -> None:
    rows = answers(SCORES, {"s": output}, tensor("y", dims=(3,)))
    assert rows == [{"s": value} for value in expected]


def test_labels_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    output = {"output": "y", "select": "label", "labels_file": "labels.txt"}
    assert answers(SCORES, {"s": output}, tensor("y", dims=(3,)), folder=tmp_path) == [{"s": "b"}, {"s": "a"}]


def test_an_output_of_one_element_is_a_single_value() -> None:
    assert answers(SCORES[:, :1], None, tensor("y", dims=(1,))) == [{"y": 0.25}, {"y": 1}]
    # One that may have more elements is a list, also when it has one.
    assert answers(SCORES[:, :1], None, tensor("y", dims=(-1,))) == [{"y": [0.25]}, {"y": [1]}]


def test_fields_are_nested_by_dots_and_put_into_one() -> None:
    outputs = {"a.b": "y[0]", "a['c.d']": "y[1]"}
    row = {"a": {"b": 0.25, "c.d": 0.5}}
    assert answers(SCORES[:1], outputs, tensor("y", dims=(3,))) == [row]
    assert answers(SCORES[:1], outputs, tensor("y", dims=(3,)), into="p.q") == [{"p": {"q": row}}]


@pytest.mark.parametrize(
    ("keep", "kept"), [("all", {"x": [0, 0], "i": 7}), (["i", "j"], {"i": 7}), ("none", {})]
)
@pytest.mark.parametrize("formats", [("json", "json"), ("json", "msgpack"), ("msgpack", "json")])
def test_fields_of_the_input_are_kept(keep: Any, kept: Any, formats: tuple[str, str]) -> None:
    codec = codec_of(*formats, keep=keep)
    sides = {"json": msgspec.json, "msgpack": msgspec.msgpack}
    value = sides[formats[0]].encode({"x": [0, 0], "i": 7})
    (outcome,) = run(codec, [value])
    assert sides[formats[1]].decode(good(outcome)) == {**kept, "y": [0, 0]}


def test_what_is_kept_stays_as_it_was_written() -> None:
    value = b'{"x":[1,2], "n":1.10, "big":123456789012345678901234567890, "t":"\xc3\xbc", "e":1e999}'
    (outcome,) = run(codec_of(keep="all"), [value])
    assert outcome == (
        b'{"x":[1,2],"n":1.10,"big":123456789012345678901234567890,"t":"\xc3\xbc","e":1e999,"y":[2.0,4.0]}'
    )


def test_outputs_take_the_place_of_fields_and_join_those_they_share_a_name_with() -> None:
    document = {"x": [1, 2], "y": "old", "a": {"b": 1, "c": 2}, "d": 5}
    model = {"name": "m", "outputs": {"y": "y[0]", "a.b": "y[1]", "d.e": "y[1]"}}
    (outcome,) = run(codec_of("json", "json", model, keep="all"), [encode(document)])
    assert decode(good(outcome)) == {"x": [1, 2], "y": 2, "a": {"b": 4, "c": 2}, "d": {"e": 4}}


def test_a_record_without_fields_has_none_to_keep() -> None:
    models = [{"name": "m", "inputs": {"x": "$"}}]
    (outcome,) = run(codec_of("json", "json", *models, keep="all"), [b"[1,2]"])
    assert bad(outcome).reason == "mapping"
    assert run(codec_of("json", "json", *models), [b"[1,2]"]) == [b'{"y":[2.0,4.0]}']


def test_outputs_of_several_models_are_joined() -> None:
    models = [{"name": "m", "version": 1, "label": "old"}, {"name": "m", "version": 2, "label": "new"}]
    functions = {"old": double, "new": lambda tensors: {"y": tensors["x"] * 3}}
    (outcome,) = run(codec_of("json", "json", *models), [encode({"x": [1, 2]})], functions)
    assert decode(good(outcome)) == {"old": {"y": [2, 4]}, "new": {"y": [3, 6]}}
    models[0]["outputs"], models[1]["outputs"] = {"a": "y"}, {"b": "y[0]"}
    (outcome,) = run(codec_of("json", "json", *models), [encode({"x": [1, 2]})], functions)
    assert decode(good(outcome)) == {"a": [2, 4], "b": 3}


def test_nothing_and_infinity_become_null_in_json() -> None:
    array = np.array([[np.nan, np.inf]], dtype="<f4")
    assert answers(array, None, tensor("y")) == [{"y": [None, None]}]


@pytest.mark.parametrize("select", ["argmax", "label"])
def test_nan_has_no_largest(select: str) -> None:
    array = np.array([[1, 0], [np.nan, 0], [0, 1]], dtype="<f4")
    output = {"output": "y", "select": select, **({"labels": ["a", "b"]} if select == "label" else {})}
    first, second, third = answers(array, {"s": output}, tensor("y"))
    assert (first, third) == (
        {"s": 0 if select == "argmax" else "a"},
        {"s": 1 if select == "argmax" else "b"},
    )
    assert bad(second).reason == "encode"
    assert "NaN" in second.message


@pytest.mark.parametrize(
    ("output", "part"),
    [
        ("y[5]", "2 elements; expected more"),
        ({"output": "y", "select": "label", "labels": ["a", "b", "c"]}, "expected 3, one for each label"),
    ],
)
def test_an_output_that_turns_out_too_short_is_bad(output: Any, part: str) -> None:
    outcomes = answers(SCORES[:, :2], {"s": output}, tensor("y", dims=(-1,)))
    assert all(bad(outcome).reason == "encode" and part in outcome.message for outcome in outcomes)
    (outcome,) = answers(SCORES[:1, :0], {"s": {"output": "y", "select": "max"}}, tensor("y", dims=(-1,)))
    assert "is empty" in bad(outcome).message


def test_bytes_are_text_or_base64() -> None:
    array = np.array([[b"ab"], [b"\xff"]], dtype=object)
    spec = tensor("y", "BYTES", (1,))
    text, broken = answers(array, None, spec)
    assert text == {"y": "ab"}
    assert bad(broken).reason == "encode"
    assert "binary: true" in broken.message
    assert answers(array, {"y": {"output": "y", "binary": True}}, spec) == [{"y": "YWI="}, {"y": "/w=="}]


def test_bf16_are_numbers() -> None:
    array = to_bf16(np.array([[1.5, -2.0]], dtype="<f4"))
    spec = tensor("y", "BF16")
    assert answers(array, None, spec) == [{"y": [1.5, -2.0]}]
    assert answers(array, {"s": {"output": "y", "select": "argmax"}}, spec) == [{"s": 0}]


def test_an_output_above_the_limit_is_bad() -> None:
    (outcome,) = answers(
        np.zeros((1, 100), "<f4"), None, tensor("y", dims=(100,)), limits={"max_record_bytes": 99}
    )
    assert bad(outcome).reason == "too_large"


@pytest.mark.parametrize("cut", [[[0, 1, 2]], [[0], [1, 2]], [[1], [0, 2]], [[2], [1], [0]]])
def test_outputs_need_not_be_cut_as_inputs_were(cut: list[list[int]]) -> None:
    codec = codec_of()
    records = [Record(encode({"x": [place, 0]})) for place in range(3)]
    decoded = codec.decode(records)
    (part,) = decoded.inputs["m"]
    parts = [Rows(places, {"y": part.tensors["x"][places]}) for places in cut]
    written = codec.encode(records, decoded, {"m": parts}, [0, 1, 2])
    assert [decode(good(value)) for value in written] == [{"y": [place, 0]} for place in range(3)]
    only = codec.encode(records, decoded, {"m": parts}, [0, 2])
    assert list(only) == [written[0], written[2]]


def test_outputs_of_different_shapes_find_their_records() -> None:
    spec = tensor("x", dims=(-1,))
    codec = codec_of(keep=["i"], infos={"m": info("m", [spec], [tensor("y", dims=(-1,))])})
    values = [encode({"x": [1] * size, "i": size}) for size in (1, 2, 1, 3)]
    assert [decode(good(outcome)) for outcome in run(codec, values)] == [
        {"i": size, "y": [2] * size} for size in (1, 2, 1, 3)
    ]


def test_a_model_without_batch_dimension_answers_one_by_one() -> None:
    codec = codec_of(infos={"m": info("m", rows=0)})
    values = [encode({"x": [place, 0]}) for place in range(3)]
    assert [decode(good(outcome)) for outcome in run(codec, values)] == [{"y": [2 * i, 0]} for i in range(3)]
