"""Tensors on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinfer.cli.tensors import parse_inputs, parse_output, preview, save, to_json
from qinfer.datatypes import Array
from qinfer.errors import InvalidRequest
from qinfer.message import Tensor
from qinfer.registry import TensorRecord


def parse(value: str, datatype: str) -> Array:
    (tensor,) = parse_inputs([f"x={value}"], [TensorRecord("x", datatype, ())])
    assert tensor.datatype == datatype
    return tensor.numpy()


@pytest.mark.parametrize(
    ("value", "datatype", "expected"),
    [
        ("[[1, 2.5]]", "FP32", np.array([[1, 2.5]], "<f4")),
        ("[1, 2]", "FP64", np.array([1.0, 2.0])),
        ("[1, 0.5]", "FP16", np.array([1, 0.5], "<f2")),
        ("[[1], [-2]]", "INT64", np.array([[1], [-2]])),
        ("[255]", "UINT8", np.array([255], "u1")),
        ("[18446744073709551615]", "UINT64", np.array([2**64 - 1], "<u8")),
        ("[true, false]", "BOOL", np.array([True, False])),
        ("7", "INT32", np.array(7, "<i4")),
        ('{"shape": [2, 1], "data": [3, 4]}', "INT32", np.array([[3], [4]], "<i4")),
        ("[1.0, -2.0]", "BF16", np.array([0x3F80, 0xC000], "<u2")),
        ("[]", "FP32", np.array([], "<f4")),
    ],
)
def test_json(value: str, datatype: str, expected: Array) -> None:
    found = parse(value, datatype)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_strings() -> None:
    found = parse('[["grün", ""]]', "BYTES")
    assert found.tolist() == [["grün".encode(), b""]]


@pytest.mark.parametrize(
    ("value", "datatype", "message"),
    [
        ("[1, 2", "FP32", "is not JSON"),
        ("[[1, 2], [3]]", "FP32", "input 'x' does not fit FP32"),
        ('["a"]', "FP32", "input 'x' does not fit FP32"),
        ("[1.5]", "INT32", "numbers with a fraction"),
        ("[256]", "UINT8", "numbers outside 0 to 255"),
        ("[-1]", "UINT64", "numbers outside 0 to"),
        ("[1]", "BOOL", "input 'x' does not fit BOOL"),
        ("[1]", "BYTES", "expected strings"),
        ('{"shape": [3], "data": [1]}', "FP32", "cannot reshape"),
        ("@missing.npy", "FP32", "missing.npy cannot be read"),
        ("@data.txt", "FP32", r"expected a \.npy or \.json file"),
    ],
)
def test_what_does_not_fit(value: str, datatype: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse(value, datatype)


def test_npy_files(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.arange(6.0).reshape(2, 3))
    found = parse(f"@{file}", "FP32")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(6).reshape(2, 3))
    with pytest.raises(InvalidRequest, match="dtype float64 does not convert"):
        parse(f"@{file}", "INT32")


def test_pickles_in_npy_files_are_not_run(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidRequest, match=r"x\.npy cannot be read"):
        parse(f"@{file}", "BYTES")


def test_names() -> None:
    signature = [TensorRecord("a", "INT32", ()), TensorRecord("b", "INT32", ())]
    tensors = parse_inputs(["b=[2]", "a=[1]"], signature)
    assert [(tensor.name, tensor.numpy().tolist()) for tensor in tensors] == [("b", [2]), ("a", [1])]
    for arguments, message in (
        (["c=[1]"], "no input 'c'; expected one of a, b"),
        (["a=[1]", "a=[1]"], "given twice"),
        (["[1]"], r"expected NAME=@FILE or NAME=JSON"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            parse_inputs(arguments, signature)


def test_the_only_input_needs_no_name() -> None:
    (tensor,) = parse_inputs(['["a=b"]'], [TensorRecord("text", "BYTES", ())])
    assert (tensor.name, tensor.numpy().tolist()) == ("text", [b"a=b"])


@given(st.floats(-(2.0**127), 2.0**127, width=32))
def test_bf16_is_the_nearest(value: float) -> None:
    (bits,) = parse(json.dumps([value]), "BF16").tolist()
    neighbours = [
        np.uint32((bits + step) << 16).view(np.float32) for step in (-1, 0, 1) if 0 <= bits + step <= 0xFFFF
    ]
    distances = [abs(float(near) - value) for near in neighbours if np.isfinite(near)]
    chosen = float(np.uint32(bits << 16).view(np.float32))
    assert abs(chosen - value) == min(distances)


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.arange(4, dtype="<f4").reshape(2, 2), "FP32"),
        (np.array([True, False]), "BOOL"),
        (np.array([0x3F80], "<u2"), "BF16"),
    ],
)
def test_saved_npy_is_read_back(array: Array, datatype: str, tmp_path: Path) -> None:
    save(Tensor.from_numpy("y", array, datatype), tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), array)
    np.testing.assert_array_equal(parse(f"@{tmp_path / 'y.npy'}", datatype), array)


def test_saved_json_is_read_back(tmp_path: Path) -> None:
    texts: Any = np.array([["a", "ü"]], dtype=object)
    save(Tensor.from_numpy("y", texts), tmp_path / "y.json")
    assert parse(f"@{tmp_path / 'y.json'}", "BYTES").tolist() == [[b"a", "ü".encode()]]
    with pytest.raises(InvalidRequest, match=r"save it as \.json"):
        save(Tensor.from_numpy("y", texts), tmp_path / "y.npy")


def test_outputs() -> None:
    assert parse_output("y").file is None
    assert parse_output("y=@a/y.npy").file == Path("a/y.npy")
    for wrong in ("y=y.npy", "y=@y.txt", "y=@"):
        with pytest.raises(InvalidRequest, match="expected NAME, NAME=@FILE"):
            parse_output(wrong)


def test_shown() -> None:
    assert preview(Tensor.from_numpy("y", np.array([[1.5, 2]], "<f4"))) == "[[1.5 2. ]]"
    assert preview(Tensor.from_numpy("y", np.zeros((100, 3)))).count("...") >= 1
    assert preview(Tensor.from_numpy("y", np.array(["é"] * 9, dtype=object))).endswith('"é", …]')
    assert preview(Tensor.from_numpy("y", np.array([0x3F80], "<u2"), "BF16")) == "[1.]"
    assert to_json(Tensor.from_numpy("y", np.array([0x3F80], "<u2"), "BF16"))["data"] == [1.0]
