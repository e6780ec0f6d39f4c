"""What becomes of a file's values: exactly what was meant, or an error that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qinfer.datatypes import from_bf16
from qinfer.errors import InvalidRequest
from qinfer.registry import TensorRecord
from qinfer.scoring import Columns, Settings, make_plan
from qinfer.scoring.columns import MISSING, ArrayColumn, Column, ListColumn
from qinfer.scoring.convert import to_array, to_rows
from qinfer.scoring.formats.parquet import ArrowColumn
from tests.scoring.models import DOUBLE, Server, model, score, spec


def text(*cells: Any) -> Column:
    return ListColumn(list(cells), textual=True)


def values(*values: Any) -> Column:
    return ListColumn(list(values))


def array(values: Any, dtype: Any) -> Column:
    return ArrayColumn(np.array(values, dtype=dtype))


def arrow(values: Any, kind: Any) -> Column:
    return ArrowColumn(pa.array(values, kind))


GOOD: list[tuple[str, Sequence[int], Column, Any]] = [
    ("INT64", (), values(1, -(2**63)), [1, -(2**63)]),
    ("UINT64", (), values(2**64 - 1, 0), [2**64 - 1, 0]),
    ("UINT8", (2,), values([0, 255]), [[0, 255]]),
    ("INT8", (), array([-128, 127], np.int64), [-128, 127]),
    ("FP32", (), values(1, 2.5), [1.0, 2.5]),
    ("FP32", (1,), values(1, 2.5), [[1.0], [2.5]]),
    ("FP32", (-1,), values([1.0, 2.0], [3.0, 4.0]), [[1.0, 2.0], [3.0, 4.0]]),
    ("FP32", (), array([2**24, -7], np.int64), [2.0**24, -7.0]),
    ("FP32", (), array([2**24 + 2], np.int64), [2.0**24 + 2]),
    ("FP32", (), array([0.5, np.nan, np.inf], ">f8"), [0.5, np.nan, np.inf]),
    ("FP16", (), array([0.5], np.float32), [0.5]),
    ("BOOL", (2,), values([True, False]), [[True, False]]),
    ("BOOL", (), array([True], np.bool_), [True]),
    ("BYTES", (), values("a", b"\xff", "ü"), [b"a", b"\xff", "ü".encode()]),
    ("BYTES", (1,), values("a"), [[b"a"]]),
    ("BYTES", (2,), values(["a", "b"]), [[b"a", b"b"]]),
    ("BYTES", (), array(["ab", "c"], "U2"), [b"ab", b"c"]),
    ("BYTES", (), arrow(["a", "ü"], pa.large_string()), [b"a", "ü".encode()]),
    ("INT32", (), arrow([1, 2], pa.int8()), [1, 2]),
    ("FP32", (2,), arrow([[1, 2], [3, 4]], pa.list_(pa.float64())), [[1.0, 2.0], [3.0, 4.0]]),
    ("FP32", (2, 1), arrow([[[1], [2]]], pa.list_(pa.list_(pa.float32(), 1), 2)), [[[1.0], [2.0]]]),
    ("FP32", (2,), array([[1.5, 2.0]], np.float16), [[1.5, 2.0]]),
    ("INT64", (), text("12", " -3 "), [12, -3]),
    ("FP32", (), text("1.5", "1e3", "nan", "-inf"), [1.5, 1000.0, np.nan, -np.inf]),
    ("FP32", (2,), text("[1, 2.5]"), [[1.0, 2.5]]),
    ("BOOL", (), text("True", "0"), [True, False]),
    ("BYTES", (), text("", "7", "[x"), [b"", b"7", b"[x"]),
    ("BYTES", (2,), text('["a", "b"]'), [[b"a", b"b"]]),
]


@pytest.mark.parametrize(("datatype", "dims", "column", "expected"), GOOD)
def test_values_that_fit(datatype: str, dims: Sequence[int], column: Column, expected: Any) -> None:
    """One by one, and all at once where that is possible, give the same."""
    record = TensorRecord("x", datatype, tuple(dims))
    rows = to_rows("f", column, record)
    assert not any(isinstance(row, InvalidRequest) for row in rows), rows
    np.testing.assert_array_equal(np.stack(rows), np.array(expected, dtype=np.stack(rows).dtype))  # type: ignore[arg-type]
    whole = to_array(column, record)
    assert (whole is None) == column.textual
    if whole is not None:
        assert whole.dtype == np.stack(rows).dtype  # type: ignore[arg-type]
        np.testing.assert_array_equal(whole, np.stack(rows))  # type: ignore[arg-type]


BAD: list[tuple[str, Sequence[int], Column, str]] = [
    ("INT64", (), values(1.0), "found 1.0; expected INT64 (Expected int, got float)"),
    ("INT64", (), values(True), "found True; expected INT64 (Expected int, got bool)"),
    ("INT64", (), values("1"), "found '1'; expected INT64 (Expected int, got str)"),
    ("INT64", (), values(2**63), "expected INT64 (it is -9223372036854775808 to 9223372036854775807)"),
    ("UINT8", (), values(-1), "found -1; expected UINT8 (it is 0 to 255)"),
    ("UINT64", (), values(2**64), "expected UINT64"),
    ("INT8", (), array([128], np.int64), "found 128; expected INT8 (it is -128 to 127)"),
    ("INT32", (), array([1.0], np.float32), "found 1.0; expected INT32 (of dtype float32)"),
    ("INT32", (), array([True], np.bool_), "found True; expected INT32 (of dtype bool)"),
    (
        "FP32",
        (),
        array([2**24 + 1], np.int64),
        "expected FP32 (it has no number 16777217; the nearest is 16777216)",
    ),
    ("FP32", (), array([True], np.bool_), "expected FP32 (of dtype bool)"),
    ("FP32", (), array([1e39], np.float64), "found 1e+39; expected FP32 (the largest number is 3.40282e+38)"),
    ("FP16", (), values(1e5), "expected FP16 (the largest number is 65504)"),
    ("FP32", (), values(None), "found null; expected FP32"),
    ("FP32", (), values(MISSING), "found nothing; expected FP32"),
    ("FP32", (), arrow([None], pa.float32()), "found null; expected FP32"),
    ("FP32", (2,), values([1.0]), "found shape [1]; expected FP32 of shape [2]"),
    ("FP32", (2,), values(1.0), "found the single value 1.0; expected FP32 of shape [2]"),
    ("FP32", (2, 2), values([[1.0], [1.0, 2.0]]), "found [[1.0], [1.0, 2.0]]; expected FP32 of shape [2, 2]"),
    ("FP32", (2,), values([1.0, "a"]), "expected FP32 of shape [2] (Expected float, got str - at $[1])"),
    ("FP32", (), array(["2026-01-01"], "M8[D]"), "expected FP32 (of dtype datetime64[D])"),
    ("BOOL", (), values(1), "found 1; expected BOOL (Expected bool, got int)"),
    ("BYTES", (), values(7), "found 7; expected text (7 is no text)"),
    ("BYTES", (), array([7], np.int64), "found 7; expected text (numbers are no text)"),
    ("BYTES", (2,), values(["a", 1]), "expected text of shape [2] (1 is no text)"),
    ("INT64", (), text("1.0"), "found '1.0'; expected INT64"),
    ("INT64", (), text(""), "found null; expected INT64"),
    ("FP32", (), text("1_0"), "found '1_0'; expected FP32"),
    ("FP32", (2,), text("[1, 2"), "found '[1, 2'; expected FP32 of shape [2] in JSON"),
    ("BOOL", (), text("yes"), "found 'yes'; expected BOOL"),
]


@pytest.mark.parametrize(("datatype", "dims", "column", "message"), BAD)
def test_values_that_do_not(datatype: str, dims: Sequence[int], column: Column, message: str) -> None:
    record = TensorRecord("x", datatype, tuple(dims))
    (row,) = to_rows("f", column, record)
    assert isinstance(row, InvalidRequest)
    assert row.message.startswith("field 'f': found ")
    assert message in row.message
    assert to_array(column, record) is None


def test_bfloat16() -> None:
    record = TensorRecord("x", "BF16", ())
    rounded = to_array(array([1.5, 1 / 3, np.nan], np.float32), record)
    assert rounded is not None
    np.testing.assert_array_equal(from_bf16(rounded), np.array([1.5, 0.333984375, np.nan], np.float32))
    bits = to_array(array([0x3FC0], np.uint16), record)
    assert bits is not None
    assert from_bf16(bits).tolist() == [1.5]
    exact = to_array(array([256, -3], np.int32), record)
    assert exact is not None
    assert from_bf16(exact).tolist() == [256.0, -3.0]
    assert to_array(array([257], np.int32), record) is None


# Mapping

TWO = model([spec("a", "FP32"), spec("b", "BYTES", 1)], [spec("c", "FP32"), spec("d", "BYTES", 1)])
PEOPLE = [{"id": n, "age": n, "income": n / 2, "text": str(n), "a": 0.5, "b": "b"} for n in range(3)]


@pytest.fixture
def people(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, PEOPLE)))
    return tmp_path / "in.jsonl"


def echo() -> Server:
    return Server(lambda a, b: {"c": a, "d": b})


async def mapped(people: Path, columns: Columns) -> list[dict[str, Any]]:
    target = people.with_name("out.jsonl")
    await score(people, target, TWO, echo(), Settings(columns=columns))
    return [json.loads(line) for line in target.read_text().splitlines()]


async def test_names_that_are_the_same_need_no_mapping(people: Path) -> None:
    assert await mapped(people, Columns()) == [{"c": 0.5, "d": "b"}] * 3


async def test_columns_are_mapped_and_kept_in_the_order_asked_for(people: Path) -> None:
    found = await mapped(
        people,
        Columns(inputs={"a": ["income"], "b": ["text"]}, outputs={"y": "d", "x": "c"}, keep=("text", "id")),
    )
    assert found == [{"text": str(n), "id": n, "y": str(n), "x": n / 2} for n in range(3)]
    assert list(found[0]) == ["text", "id", "y", "x"]


async def test_only_wanted_outputs_are_asked_for(people: Path) -> None:
    plan = make_plan(people, people.with_name("o.jsonl"), TWO, Settings(columns=Columns(outputs={"y": "d"})))
    assert plan.wanted == ["d"]
    assert plan.columns == ["a", "b"]


@pytest.mark.parametrize("dims", [2, -1])
async def test_several_columns_make_a_vector(people: Path, dims: int) -> None:
    signature = model([spec("x", "FP32", dims)], [spec("y", "FP32", dims)])
    target = people.with_name("out.jsonl")
    vector = Settings(columns=Columns(inputs={"x": ["age", "income"]}))
    await score(people, target, signature, Server(lambda x: {"y": x}), vector)
    found = [json.loads(line)["y"] for line in target.read_text().splitlines()]
    assert found == [[n, n / 2] for n in range(3)]


async def test_a_value_of_a_vector_that_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("age,income\n1,2\n3,much\n")
    signature = model([spec("x", "FP32", 2)], [spec("y", "FP32", 2)])
    vector = Settings(columns=Columns(inputs={"x": ["age", "income"]}))
    with pytest.raises(InvalidRequest, match=r"in\.csv: row 1: field 'income': found 'much'; expected FP32"):
        await score(tmp_path / "in.csv", tmp_path / "out.csv", signature, Server(lambda x: {"y": x}), vector)


async def test_optional_inputs_may_be_left_out(tmp_path: Path) -> None:
    signature = model([spec("x", "FP32", 2), spec("scale", "FP32", optional=True)], DOUBLE.outputs)
    np.save(tmp_path / "in.npy", np.ones((3, 2), np.float32))
    await score(tmp_path / "in.npy", tmp_path / "out.npy", signature, Server(lambda x: {"y": x}))


async def test_fields_of_a_structured_array_are_columns(tmp_path: Path) -> None:
    table = np.array([(1.5, b"one"), (2.5, b"two")], dtype=[("a", "<f8"), ("b", "S3")])
    np.save(tmp_path / "in.npy", table)
    await score(tmp_path / "in.npy", tmp_path / "out.jsonl", TWO, echo())
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == [{"c": 1.5, "d": "one"}, {"c": 2.5, "d": "two"}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(inputs={"z": ["a"]}), "model 'm' has no input 'z'; expected one of a, b"),
        (Columns(inputs={"a": ["z"]}), "has no column 'z'; expected one of id, age, income, text, a, b"),
        (Columns(inputs={"a": ["age", "income"]}), r"input 'a' has dims \[\]; found 2 columns for it"),
        (Columns(outputs={"y": "z"}), "model 'm' has no output 'z'; expected one of c, d"),
        (Columns(keep=("z",)), "has no column 'z'"),
        (Columns(keep=("id",), outputs={"id": "c"}), "'id' is to be kept and is an output, too"),
    ],
)
def test_mappings_that_do_not_fit(people: Path, columns: Columns, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make_plan(people, people.with_name("out.jsonl"), TWO, Settings(columns=columns))


def test_an_input_without_column_is_told(people: Path) -> None:
    people.write_text('{"a": 1, "c": 2}')
    with pytest.raises(
        InvalidRequest, match=r"in\.jsonl: found no column 'b' .* but a, c; expected .*--map b=a"
    ):
        make_plan(people, people.with_name("out.jsonl"), TWO, Settings())


def test_outputs_that_the_format_cannot_hold(people: Path) -> None:
    for name, message in {
        "out.npy": r"\.npy holds one output; found columns c, d",
        "out.tsv": "expected a name without suffix, for a folder, or one of",
    }.items():
        with pytest.raises(InvalidRequest, match=message):
            make_plan(people, people.with_name(name), TWO, Settings())
    one = Settings(columns=Columns(outputs={"d": "d"}))
    with pytest.raises(InvalidRequest, match=r"'d' is BYTES, which \.npy cannot hold"):
        make_plan(people, people.with_name("out.npy"), TWO, one)
    with pytest.raises(InvalidRequest, match="a folder holds outputs only; found columns id"):
        make_plan(people, people.with_name("out"), TWO, Settings(columns=Columns(keep=("id",))))
