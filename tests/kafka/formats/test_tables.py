"""Formats whose values are tensors: raw, frame and Arrow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qinfer.datatypes import DATATYPES, encode_bytes, to_raw
from qinfer.errors import ConfigError
from qinfer.message import (
    PROTOCOL_VERSION,
    Request,
    RequestFrame,
    Tensor,
    decode_response_frame,
    encode,
)
from tests.kafka.formats.support import (
    Record,
    bad,
    check,
    codec_of,
    floats,
    good,
    info,
    run,
    tensor,
)

NUMBERS = sorted(name for name, kind in DATATYPES.items() if kind.itemsize)


def same(tensors: Any) -> Any:
    return {"y": tensors["x"]}


# Raw


@given(st.data(), st.sampled_from(NUMBERS))
def test_raw_values_come_back_bit_by_bit(data: st.DataObject, datatype: str) -> None:
    array = data.draw(arrays.arrays(DATATYPES[datatype].dtype, (3, 2, 2)))
    spec = [tensor(name, datatype, (2, 2)) for name in "xy"]
    codec = codec_of("raw", "raw", infos={"m": info("m", spec[:1], spec[1:])})
    values = [bytes(to_raw(datatype, row)) for row in array]
    assert run(codec, values, same) == values


@given(st.lists(st.lists(st.binary(max_size=5), min_size=2, max_size=2), min_size=1, max_size=4))
def test_raw_texts_have_their_lengths_before_them(rows: list[list[bytes]]) -> None:
    spec = [tensor(name, "BYTES", (2,)) for name in "xy"]
    codec = codec_of("raw", "raw", infos={"m": info("m", spec[:1], spec[1:])})
    values = [encode_bytes(row) for row in rows]
    assert run(codec, values, same) == values


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=4))
def test_a_single_raw_text_is_the_value_itself(values: list[bytes]) -> None:
    spec = [tensor(name, "BYTES", (1,)) for name in "xy"]
    codec = codec_of("raw", "raw", infos={"m": info("m", spec[:1], spec[1:])})
    assert run(codec, values, same) == values


def test_a_raw_value_tells_its_variable_dimension_by_its_size() -> None:
    spec = [tensor(name, dims=(-1, 2)) for name in "xy"]
    codec = codec_of("raw", "raw", infos={"m": info("m", spec[:1], spec[1:])})
    values = [floats(*range(size)).tobytes() for size in (2, 4, 2)]
    assert run(codec, values, same) == values
    (outcome,) = run(codec, [b"12345"], same)
    assert "found 5 bytes; expected a multiple of 8" in bad(outcome).message


def test_raw_values_of_another_datatype_are_converted() -> None:
    codec = codec_of({"type": "raw", "datatype": "INT8"})
    assert run(codec, [b"\x01\xff"], same) == [b'{"y":[1.0,-1.0]}']


def test_a_raw_value_of_another_size_is_bad_and_its_neighbours_are_not() -> None:
    value = floats(1, 2).tobytes()
    first, second, third = run(codec_of("raw", "raw"), [value, value[:-1], value], same)
    assert (first, third) == (value, value)
    assert bad(second).reason == "mapping"
    assert "found 7 bytes; expected 8 for FP32 of shape [2]" in second.message


@pytest.mark.parametrize(
    ("source", "output", "more", "part"),
    [
        ("raw", "json", {"keep": "all"}, "source.format: raw values have no fields; expected keep: none"),
        ("json", "raw", {"keep": ["a"]}, "output.format: a raw value holds one tensor"),
        ({"type": "raw", "datatype": "FP31"}, "json", {}, "source.format: found datatype FP31"),
        ("frame", "json", {"models": [{"name": "m", "inputs": {"x": "a.b"}}]}, "names of tensors"),
        ("raw", "json", {"models": [{"name": "m", "inputs": {"x": "a"}}]}, r"expected the path \$"),
        ("json", "frame", {"keep": "all"}, "output.format: frames hold tensors, and the input has none"),
        ("arrow", "json", {"models": [{"name": "m", "inputs": {"x": "$"}}]}, "tables have columns"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(source: Any, output: Any, more: Any, part: str) -> None:
    models = more.pop("models", [])
    with pytest.raises(ConfigError, match=part):
        codec_of(source, output, *models, **more)


# Frames


def frame(*tensors: Tensor, number: int = 7, count: int = 1, **more: Any) -> bytes:
    requests = [Request(number, "", list(tensors), **more)] * count
    return encode(RequestFrame(PROTOCOL_VERSION, "_INBOX.a", "other", "", 0, 0, requests))


def rows_of(*rows: Sequence[float], name: str = "x") -> Tensor:
    return Tensor.from_numpy(name, np.array(rows, dtype="<f4"))


def test_frames_hold_rows_and_answers_are_frames() -> None:
    values = [frame(rows_of([1, 2])), frame(rows_of([3, 4], [5, 6]), number=9)]
    codec = codec_of("frame", "frame")
    decoded = codec.decode([Record(value) for value in values])
    check(decoded, 2)
    (part,) = decoded.inputs["m"]
    assert (list(part.places), part.counts) == ([0, 1], [1, 2])
    assert part.tensors["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
    answers = [decode_response_frame(good(outcome)).responses[0] for outcome in run(codec, values)]
    assert [answer.id for answer in answers] == [7, 9]
    assert [answer.outputs[0].numpy().tolist() for answer in answers] == [[[2, 4]], [[6, 8], [10, 12]]]


@given(st.data(), st.sampled_from([name for name in NUMBERS if name != "BF16"] + ["BYTES"]))
def test_frames_keep_tensors_as_they_are(data: st.DataObject, datatype: str) -> None:
    if datatype == "BYTES":
        array = np.empty((2, 1), dtype=object)
        array[:, 0] = data.draw(st.lists(st.binary(max_size=5), min_size=2, max_size=2))
    else:
        array = data.draw(arrays.arrays(DATATYPES[datatype].dtype, (2, 3)))
    kept = Tensor.from_numpy("k", array)
    (outcome,) = run(codec_of("frame", "frame", keep="all"), [frame(rows_of([1, 2], [3, 4]), kept)])
    (response,) = decode_response_frame(good(outcome)).responses
    found = {tensor.name: tensor for tensor in response.outputs}
    assert set(found) == {"x", "k", "y"}
    assert (found["k"].datatype, found["k"].shape) == (kept.datatype, kept.shape)
    assert bytes(found["k"].data) == bytes(kept.data)


def test_frames_become_documents_with_a_list_of_rows() -> None:
    kept = Tensor.from_numpy("id", np.array([[b"a"], [b"b"]], dtype=object))
    value = frame(rows_of([1, 2], [3, 4]), kept)
    (outcome,) = run(codec_of("frame", "json", keep=["id"]), [value])
    assert msgspec.json.decode(good(outcome)) == {"id": [["a"], ["b"]], "y": [[2, 4], [6, 8]]}


def test_documents_become_frames_of_one_row() -> None:
    (outcome,) = run(codec_of("json", "frame"), [b'{"x":[1,2]}'])
    (response,) = decode_response_frame(good(outcome)).responses
    assert response.outputs[0].numpy().tolist() == [[2, 4]]


def test_a_model_without_batch_dimension_gets_a_frame_s_tensors_whole() -> None:
    codec = codec_of("frame", "frame", infos={"m": info("m", rows=0)})
    one = Tensor.from_numpy("x", floats(1, 2))
    decoded = codec.decode([Record(frame(one)), Record(frame(one))])
    check(decoded, 2)
    assert [(list(part.places), part.tensors["x"].tolist()) for part in decoded.inputs["m"]] == [
        ([0], [1, 2]),
        ([1], [1, 2]),
    ]
    (outcome,) = run(codec, [frame(one)])
    assert decode_response_frame(good(outcome)).responses[0].outputs[0].numpy().tolist() == [2, 4]


@pytest.mark.parametrize(
    ("value", "reason", "part"),
    [
        (b"", "malformed", "not a request frame"),
        (frame(rows_of([1, 2]), count=2), "malformed", "2 requests; expected one"),
        (frame(rows_of([1, 2]), claim="blob"), "mapping", "claim"),
        (frame(rows_of([1, 2], name="z")), "mapping", "found nothing"),
        (frame(rows_of([1, 2, 3])), "mapping", "shape"),
        (frame(Tensor("x", "FP32", [0, 2], b"")), "mapping", "without rows"),
        (frame(Tensor("x", "FP32", [1, 2], b"123")), "mapping", "needs 8 bytes"),
        (frame(Tensor("x", "FP32", [2**40, 2**40], b"")), "mapping", "needs"),
        (frame(rows_of(*[[1, 2]] * 9)), "mapping", "9 rows; expected at most 8"),
        (frame(Tensor.from_numpy("x", np.array([["a", "b"]], dtype=object))), "mapping", "expected FP32"),
    ],
)
def test_a_bad_frame_is_bad_and_its_neighbours_are_not(value: bytes, reason: str, part: str) -> None:
    first, second, third = run(codec_of("frame"), [frame(rows_of([1, 2])), value, frame(rows_of([3, 4]))])
    assert (first, third) == (b'{"y":[[2.0,4.0]]}', b'{"y":[[6.0,8.0]]}')
    assert bad(second).reason == reason
    assert part in second.message


def test_inputs_that_disagree_about_rows_are_bad() -> None:
    """Also where two records make up for each other."""
    models = {"m": info("m", [tensor("x"), tensor("z")])}
    codec = codec_of("frame", infos=models)
    one, two = [[1, 2]], [[1, 2], [3, 4]]
    values = [
        frame(rows_of(*one), rows_of(*two, name="z")),
        frame(rows_of(*two), rows_of(*one, name="z")),
        frame(rows_of(*two), rows_of(*two, name="z")),
    ]
    outcomes = run(codec, values)
    assert "2 rows; expected 1" in bad(outcomes[0]).message
    assert "1 rows; expected 2" in bad(outcomes[1]).message
    assert outcomes[2] == b'{"y":[[2.0,4.0],[6.0,8.0]]}'


# Arrow


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def read(value: Any) -> pa.Table:
    return pa.ipc.open_stream(good(value)).read_all()


FIXED = pa.list_(pa.float32(), 2)


@pytest.mark.parametrize(
    "kind", [FIXED, pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.int8())]
)
def test_rows_of_tables_are_scored(kind: Any) -> None:
    tables = [
        pa.table({"x": pa.array([[1, 2], [3, 4]], kind), "id": ["a", "b"]}),
        pa.table({"x": pa.array([[5, 6]], kind), "id": ["c"]}),
    ]
    codec = codec_of("arrow", "arrow", keep=["id"])
    decoded = codec.decode([Record(stream(table)) for table in tables])
    check(decoded, 2)
    (part,) = decoded.inputs["m"]
    assert part.counts == [2, 1]
    outcomes = [read(outcome) for outcome in run(codec, [stream(table) for table in tables])]
    assert [table.to_pydict() for table in outcomes] == [
        {"id": ["a", "b"], "y": [[2, 4], [6, 8]]},
        {"id": ["c"], "y": [[10, 12]]},
    ]
    assert outcomes[0].schema == outcomes[1].schema
    assert outcomes[0].schema.field("y").type == FIXED


@given(st.data(), st.sampled_from([name for name in NUMBERS if name != "BF16"]))
def test_tables_keep_every_number(data: st.DataObject, datatype: str) -> None:
    array = data.draw(arrays.arrays(DATATYPES[datatype].dtype, (3, 2, 2)))
    spec = [tensor(name, datatype, (2, 2)) for name in "xy"]
    there = codec_of("frame", "arrow", infos={"m": info("m", spec[:1], spec[1:])})
    back = codec_of(
        "arrow", "frame", {"name": "m", "inputs": {"x": "y"}}, infos={"m": info("m", spec[:1], spec[1:])}
    )
    (table,) = run(there, [frame(Tensor.from_numpy("x", array))], same)
    (outcome,) = run(back, [good(table)], same)
    (response,) = decode_response_frame(good(outcome)).responses
    assert bytes(response.outputs[0].data) == bytes(to_raw(datatype, array))


def test_columns_are_found_in_structs_and_put_side_by_side() -> None:
    rows = [{"a": {"b": 1.0}, "c": 2.0}, {"a": {"b": 3.0}, "c": 4.0}]
    model = {"name": "m", "inputs": {"x": {"fields": ["a.b", "c"]}}}
    (outcome,) = run(codec_of("arrow", "json", model), [stream(pa.Table.from_pylist(rows))])
    assert outcome == b'{"y":[[2.0,4.0],[6.0,8.0]]}'


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b"]),
        pa.array(["a", "b"], pa.large_string()),
        pa.array([b"a", b"b"]),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
)
def test_texts_of_tables(column: Any) -> None:
    spec = [tensor(name, "BYTES", (1,)) for name in "xy"]
    codec = codec_of("arrow", "arrow", infos={"m": info("m", spec[:1], spec[1:])})
    (outcome,) = run(codec, [stream(pa.table({"x": column}))], same)
    assert read(outcome).to_pydict() == {"y": ["a", "b"]}


def test_tensors_of_tables() -> None:
    values = np.arange(8, dtype="<f4").reshape(2, 2, 2)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    spec = [tensor(name, dims=(2, 2)) for name in "xy"]
    codec = codec_of("arrow", "json", infos={"m": info("m", spec[:1], spec[1:])})
    (outcome,) = run(codec, [stream(pa.table({"x": column}))], same)
    assert msgspec.json.decode(good(outcome)) == {"y": values.tolist()}


def test_documents_become_tables_of_one_row() -> None:
    (outcome,) = run(codec_of("json", "arrow", keep="all"), [b'{"x":[1,2],"n":{"m":"t"}}'])
    assert read(outcome).to_pylist() == [{"x": [1, 2], "n": {"m": "t"}, "y": [2, 4]}]


def huge_null_table() -> bytes:
    """A table of a few bytes that claims 2**40 rows."""
    value = stream(pa.table({"x": pa.nulls(3)}))
    return value.replace((3).to_bytes(8, "little"), (2**40).to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("value", "reason", "part"),
    [
        (b"", "malformed", "not an Arrow IPC stream"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f", "malformed", "not an Arrow IPC stream"),
        (stream(pa.table({"x": pa.array([], FIXED)})), "mapping", "without rows"),
        (stream(pa.table({"x": pa.array([[1, 2], None], FIXED)})), "mapping", "1 nulls"),
        (stream(pa.table({"x": pa.array([[1, None]], FIXED)})), "mapping", "1 nulls"),
        (stream(pa.table({"x": pa.array([[1, 2], [3]])})), "mapping", "lists of 1 to 2 elements"),
        (stream(pa.table({"z": pa.array([[1, 2]])})), "mapping", "found nothing"),
        (stream(pa.table({"x": pa.array([[1, 2, 3]], pa.list_(pa.float32()))})), "mapping", "shape"),
        (stream(pa.table({"x": pa.array([[1, 2]] * 9, FIXED)})), "mapping", "more than 8 rows"),
        (stream(pa.table({"x": pa.array([1], pa.timestamp("s"))})), "mapping", "of type timestamp"),
        (huge_null_table(), "mapping", "more than 8 rows"),
        (
            stream(
                pa.table({"x": pa.array([[1, 2]], FIXED)}), options=pa.ipc.IpcWriteOptions(compression="zstd")
            ),
            "malformed",
            "compressed",
        ),
    ],
)
def test_a_bad_table_is_bad_and_its_neighbours_are_not(value: bytes, reason: str, part: str) -> None:
    fine = stream(pa.table({"x": pa.array([[1, 2]], FIXED)}))
    first, second, third = run(codec_of("arrow"), [fine, value, fine])
    assert first == third == b'{"y":[[2.0,4.0]]}'
    assert bad(second).reason == reason
    assert part in second.message


def test_a_text_that_is_none_is_bad_in_a_table_too() -> None:
    spec = [tensor(name, "BYTES", (1,)) for name in "xy"]
    codec = codec_of("raw", "arrow", infos={"m": info("m", spec[:1], spec[1:])})
    first, second = run(codec, [b"a", b"\xff"], same)
    assert read(first).to_pydict() == {"y": ["a"]}
    assert bad(second).reason == "encode"
    model = {"name": "m", "outputs": {"y": {"output": "y", "binary": True}}}
    codec = codec_of("raw", "arrow", model, infos={"m": info("m", spec[:1], spec[1:])})
    assert read(run(codec, [b"\xff"], same)[0]).to_pydict() == {"y": [b"\xff"]}
