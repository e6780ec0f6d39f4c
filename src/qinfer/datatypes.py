"""The tensor datatypes of the Open Inference Protocol and their raw form.

Raw form: little endian, row-major; BOOL one byte an element; BYTES a 4-byte little-endian length and the
payload for each element (binary tensor data extension of the protocol). BF16 has no numpy dtype: its
arrays are the uint16 bit patterns.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qinfer.errors import InvalidRequest

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Datatype:
    """One datatype of the protocol.

    Attributes:
        name: its name in the protocol, for instance "FP32".
        dtype: the numpy dtype of its arrays (object for BYTES, uint16 for BF16).
        itemsize: bytes an element in the raw form, 0 for BYTES.
        json: whether it has a JSON form (FP16 and BF16 are raw only).
        element: what its elements are in Python and in JSON: bool, int, float or str.
    """

    name: str
    dtype: np.dtype[Any]
    itemsize: int
    json: bool = True
    element: type = int


_ELEMENTS = {"BOOL": bool, "BYTES": str, "FP16": float, "BF16": float, "FP32": float, "FP64": float}


def _table() -> dict[str, Datatype]:
    rows = [
        ("BOOL", "?"), ("UINT8", "<u1"), ("UINT16", "<u2"), ("UINT32", "<u4"), ("UINT64", "<u8"),
        ("INT8", "<i1"), ("INT16", "<i2"), ("INT32", "<i4"), ("INT64", "<i8"),
        ("FP16", "<f2"), ("BF16", "<u2"), ("FP32", "<f4"), ("FP64", "<f8"), ("BYTES", "O"),
    ]  # fmt: skip
    table = {}
    for name, code in rows:
        dtype = np.dtype(code)
        itemsize = 0 if name == "BYTES" else dtype.itemsize
        table[name] = Datatype(
            name=name,
            dtype=dtype,
            itemsize=itemsize,
            json=name not in ("FP16", "BF16"),
            element=_ELEMENTS.get(name, int),
        )
    return table


DATATYPES: dict[str, Datatype] = _table()

_BY_DTYPE = {datatype.dtype: name for name, datatype in DATATYPES.items() if name != "BF16"}


def datatype(name: str) -> Datatype:
    """Look a datatype up by its protocol name.

    Raises:
        InvalidRequest: the protocol has no such datatype.
    """
    try:
        return DATATYPES[name]
    except KeyError:
        raise InvalidRequest(f"unknown datatype {name!r}; expected one of {', '.join(DATATYPES)}") from None


def datatype_of(array: Array) -> str:
    """The protocol name for a numpy array's dtype; strings and objects are BYTES.

    Raises:
        InvalidRequest: the dtype has no counterpart in the protocol.
    """
    if array.dtype.kind in "OSU":
        return "BYTES"
    name = _BY_DTYPE.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise InvalidRequest(f"numpy dtype {array.dtype} has no counterpart among {', '.join(DATATYPES)}")
    return name


def decode_bytes(data: bytes | memoryview, count: int) -> list[bytes]:
    """Split the raw form of a BYTES tensor into its `count` elements.

    Raises:
        InvalidRequest: the lengths do not add up to the data.
    """
    view = memoryview(data)
    end = len(view)
    elements: list[bytes] = []
    offset = 0
    while offset < end:
        if offset + 4 > end:
            raise InvalidRequest(f"BYTES tensor ends within the length of element {len(elements)}")
        size = int.from_bytes(view[offset : offset + 4], "little")
        offset += 4
        if offset + size > end:
            raise InvalidRequest(
                f"BYTES element {len(elements)} has length {size}, but {end - offset} bytes are left"
            )
        elements.append(bytes(view[offset : offset + size]))
        offset += size
        if len(elements) > count:
            break
    if len(elements) != count:
        found = f"more than {count}" if len(elements) > count else str(len(elements))
        raise InvalidRequest(f"BYTES tensor holds {found} elements; expected {count} by its shape")
    return elements


def encode_bytes(elements: Iterable[object]) -> bytes:
    """The raw form of a BYTES tensor; `str` elements are encoded as UTF-8."""
    parts: list[bytes] = []
    for element in elements:
        if isinstance(element, bytes):
            raw = element
        elif isinstance(element, str):
            raw = element.encode()
        else:
            raw = str(element).encode()
        parts.append(struct.pack("<I", len(raw)))
        parts.append(raw)
    return b"".join(parts)


def to_numpy(name: str, shape: Iterable[int], data: bytes | memoryview) -> Array:
    """View raw tensor data as a numpy array of `shape`, without copying (BYTES is decoded).

    Arrays are read-only where `data` is. Numpy reads unaligned data too, so a view is always possible.

    Raises:
        InvalidRequest: unknown datatype, no possible shape, or the size does not fit the shape.
    """
    kind = datatype(name)
    dims = tuple(shape)
    count = prod(dims)
    if kind.itemsize == 0:
        elements = decode_bytes(data, count)  # before memory is taken for as many as a shape claims
        array = np.empty(count, dtype=object)
        array[:] = elements
    elif len(data) != count * kind.itemsize:
        raise InvalidRequest(
            f"{name} tensor of shape {list(dims)} needs {count * kind.itemsize} bytes; got {len(data)}"
        )
    else:
        array = np.frombuffer(data, dtype=kind.dtype)
    try:
        return array.reshape(dims)
    except ValueError as error:  # negative, more dimensions or larger ones than numpy has
        raise InvalidRequest(f"shape {list(dims)[:80]}: {error}") from None


def to_raw(name: str, array: Array) -> bytes | memoryview:
    """The raw form of an array; contiguous little-endian arrays are not copied.

    Raises:
        InvalidRequest: the array's dtype is not the one of `name`.
    """
    kind = datatype(name)
    if kind.itemsize == 0:
        return encode_bytes(array.ravel().tolist())
    if array.dtype != kind.dtype:
        if array.dtype.newbyteorder("<") != kind.dtype:
            raise InvalidRequest(f"array of dtype {array.dtype} given for {name}, which is {kind.dtype}")
        array = array.astype(kind.dtype)
    if array.size == 0:
        return b""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def to_bf16(array: Array) -> Array:
    """Bit patterns of the nearest bfloat16 numbers, ties to even, as uint16."""
    bits = array.astype("<f4").view("<u4").astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded).astype("<u2")


def from_bf16(array: Array) -> Array:
    """The numbers that bit patterns of bfloat16 stand for, as float32."""
    widened: Array = (array.astype(np.uint32) << 16).view(np.float32)
    return widened
