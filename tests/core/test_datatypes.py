from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinfer.datatypes import (
    DATATYPES,
    datatype,
    datatype_of,
    decode_bytes,
    encode_bytes,
    to_numpy,
    to_raw,
)
from qinfer.errors import InvalidRequest


def test_the_table_is_that_of_the_protocol() -> None:
    sizes = {name: kind.itemsize for name, kind in DATATYPES.items()}
    assert sizes == {
        "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4,
        "INT64": 8, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
    }  # fmt: skip
    assert {name for name, kind in DATATYPES.items() if not kind.json} == {"FP16", "BF16"}


def test_an_unknown_datatype_is_named_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"'FLOAT'; expected one of BOOL, .*BYTES"):
        datatype("FLOAT")


@pytest.mark.parametrize("name", sorted(set(DATATYPES) - {"BF16"}))
def test_a_dtype_has_its_datatype_in_either_byte_order(name: str) -> None:
    dtype = DATATYPES[name].dtype
    assert datatype_of(np.zeros(1, dtype)) == name
    assert datatype_of(np.zeros(1, dtype.newbyteorder(">"))) == name


@pytest.mark.parametrize("array", [np.array(["é"]), np.array([b"x"]), np.array([1, "a"], dtype=object)])
def test_strings_and_objects_are_bytes(array: np.ndarray) -> None:
    assert datatype_of(array) == "BYTES"


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "V4"])
def test_dtypes_without_counterpart(dtype: str) -> None:
    with pytest.raises(InvalidRequest, match="no counterpart"):
        datatype_of(np.zeros(1, dtype))


@given(st.lists(st.one_of(st.binary(max_size=20), st.text(max_size=5), st.integers())))
def test_bytes_elements_come_back(elements: list[object]) -> None:
    try:
        raw = encode_bytes(elements)
    except UnicodeEncodeError:
        assert any(isinstance(element, str) for element in elements)
        return
    expected = [element if isinstance(element, bytes) else str(element).encode() for element in elements]
    assert decode_bytes(raw, len(elements)) == expected
    assert to_numpy("BYTES", [len(elements)], raw).tolist() == expected


@given(st.binary(max_size=40), st.integers(0, 8))
def test_any_bytes_are_elements_or_an_error(raw: bytes, count: int) -> None:
    try:
        elements = decode_bytes(raw, count)
    except InvalidRequest:
        return
    assert len(elements) == count
    assert encode_bytes(elements) == raw


def test_raw_data_of_another_dtype_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="dtype float64 given for FP32"):
        to_raw("FP32", np.zeros(2))


def test_an_empty_tensor_has_no_bytes() -> None:
    assert bytes(to_raw("FP32", np.zeros((0, 3), np.float32))) == b""
    assert to_numpy("FP32", (0, 3), b"").shape == (0, 3)


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(InvalidRequest, match=r"FP32 tensor of shape \[2, 3\] needs 24 bytes; got 20"):
        to_numpy("FP32", (2, 3), bytes(20))
