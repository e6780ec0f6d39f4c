"""From what programs hold to a model's input."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from qinfer.client.base import ModelInfo
from qinfer.client.transport import read_inputs
from qinfer.client.values import to_tensor
from qinfer.datatypes import DATATYPES, to_bf16
from qinfer.errors import InvalidRequest
from qinfer.registry import TensorRecord


def spec(datatype: str, *dims: int) -> TensorRecord:
    return TensorRecord("x", datatype, dims or (-1,))


def converted(value: Any, datatype: str) -> list[Any]:
    tensor = to_tensor(value, spec(datatype), batched=True)
    assert (tensor.name, tensor.datatype) == ("x", datatype)
    found: list[Any] = tensor.numpy().tolist()
    return found


@pytest.mark.parametrize(
    ("value", "datatype", "found"),
    [
        # Python's own values, of the input's datatype
        ([[1, 2]], "FP32", [[1.0, 2.0]]),
        ([[0.1]], "FP32", [[float(np.float32(0.1))]]),
        ([[0.1]], "BF16", [[int(to_bf16(np.array([0.1]))[0])]]),
        ([[2**16 - 1]], "UINT16", [[2**16 - 1]]),
        ([[True]], "BOOL", [[True]]),
        ([["a", b"\xff"]], "BYTES", [[b"a", b"\xff"]]),
        ("a", "BYTES", b"a"),
        (3, "INT32", 3),
        ([], "INT32", []),
        ([float("inf")], "FP16", [float("inf")]),
        ([2**64 - 1], "UINT64", [2**64 - 1]),
        # arrays: nothing is lost
        (np.array([[1.5]], np.float16), "FP32", [[1.5]]),
        (np.array([[1.5]], ">f4"), "FP32", [[1.5]]),
        (np.array([7], np.int64), "INT8", [7]),
        (np.array([7], np.int64), "FP16", [7.0]),
        (np.array([2050], np.int64), "FP16", [2050.0]),
        (np.array([2**60], np.int64), "FP32", [float(2**60)]),
        (np.array([-7], np.int8), "INT64", [-7]),
        (np.array([b"ab", b"c"]), "BYTES", [b"ab", b"c"]),
        (np.array(["ab", "ü"]), "BYTES", [b"ab", "ü".encode()]),
        (np.array([0x3F80], np.uint16), "BF16", [0x3F80]),
        (np.array([1.0, np.nan], np.float32), "BF16", [0x3F80, 0x7FC0]),
        (np.float32(1.5), "FP32", 1.5),
        ([np.float32(1.5)], "FP64", [1.5]),
        (np.arange(6, dtype=np.float32).reshape(2, 3).T, "FP32", [[0, 3], [1, 4], [2, 5]]),
    ],
)  # fmt: skip
def test_values_that_convert(value: Any, datatype: str, found: Any) -> None:
    np.testing.assert_equal(converted(value, datatype), found)


@pytest.mark.parametrize(
    ("value", "datatype", "why"),
    [
        ([[1.5]], "INT32", "found .*1.5.*; expected INT32: dtype float64 does not convert"),
        ([[1, 2], [3]], "FP32", "inhomogeneous"),
        ([[None]], "FP32", "dtype object"),
        ([[1]], "BOOL", "dtype int64"),
        ([[True]], "INT32", "dtype bool"),
        ([[1]], "BYTES", "1 is neither str nor bytes"),
        ([["a"]], "FP32", "dtype <U1"),
        ([256], "UINT8", "it is 0 to 255"),
        ([-1], "UINT64", "it is 0 to 18446744073709551615"),
        ([2**65], "INT64", "dtype object"),
        ([1e39], "FP32", "largest number is 3.40282e"),
        ([2**24 + 1], "FP32", "no number 16777217; the nearest is 16777216"),
        (np.array([1.0]), "FP32", r"found float64 values of shape \[1\]; .*\.astype\(np\.float32\)"),
        (np.array([np.float32(0.1)]), "BF16", "to_bf16"),
        (np.array([1.0], np.float16), "INT32", "dtype float16"),
        (np.array([70000]), "FP16", "largest number is 65504"),
        (np.array([2**63], np.uint64), "INT64", "it is -9223372036854775808"),
        (np.array([2**64 - 1], np.uint64), "FP64", "no number 18446744073709551615"),
        (np.array(["2026-01-01"], "datetime64[D]"), "INT64", "datetime64"),
        (np.array([1 + 2j]), "FP64", "complex128"),
        ([np.float64(0.5)], "FP32", None),
        (object(), "FP32", "object"),
        ({"a": 1}, "FP32", "object"),
    ],
)
def test_values_that_do_not(value: Any, datatype: str, why: str | None) -> None:
    if why is None:  # a float64 is what Python's own numbers are
        converted(value, datatype)
        return
    with pytest.raises(InvalidRequest, match=f"(?s)input 'x': found .*expected {datatype}: .*") as caught:
        converted(value, datatype)
    assert caught.match(f"(?s){why}")


def test_every_datatype_has_a_rule() -> None:
    for datatype in DATATYPES:
        value = {"BOOL": [True], "BYTES": ["a"]}.get(datatype, [1])
        assert to_tensor(value, spec(datatype), batched=True).shape == [1]


def test_large_arrays_are_not_copied() -> None:
    array = np.zeros((1000, 10), np.float32)
    tensor = to_tensor(array, spec("FP32", 10), batched=True)
    assert np.shares_memory(np.frombuffer(tensor.data, np.uint8), array)


def test_inputs_are_a_mapping_or_tensors() -> None:
    info = ModelInfo(name="m", versions=("1",), platform="", ready=True, inputs=(spec("FP32"),), outputs=())
    with pytest.raises(InvalidRequest, match="found a ndarray among them; expected a mapping"):
        read_inputs(np.ones((1, 1)), info)  # type: ignore[arg-type]


def test_libraries_are_not_imported() -> None:
    """Nor what only one of the ways needs, until it is chosen."""
    code = (
        "import sys, numpy, qinfer.client as c\n"
        "late = {'torch', 'pandas', 'aiohttp', 'nats', 'uvloop', 'opentelemetry'}\n"
        "print(sorted(late & set(sys.modules)))\n"
        "from qinfer.client.values import to_tensor\n"
        "from qinfer.registry import TensorRecord\n"
        "to_tensor([1], TensorRecord('x', 'FP32', (1,)), batched=False)\n"
        "c.connect('http://localhost:1')\n"
        "print(sorted({'torch', 'pandas', 'nats'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n[]\n"
