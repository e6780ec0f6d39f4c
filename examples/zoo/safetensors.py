"""Reads weights in the safetensors format: a JSON table of names, types, shapes and places, then the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qinfer.errors import SetupError

Array: TypeAlias = NDArray[Any]

_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}
_LENGTH = 8


def read_safetensors(data: bytes, *, name: str) -> Mapping[str, Array]:
    """The arrays of a safetensors file, as read-only views into `data`.

    Args:
        data: the whole file.
        name: what to call it in errors.

    Raises:
        SetupError: the file is damaged or has a type that numpy lacks.
    """
    header_size = int.from_bytes(data[:_LENGTH], "little")
    start = _LENGTH + header_size
    if len(data) < start:
        raise SetupError(f"{name}: header of {header_size} bytes announced; {len(data)} bytes in all")
    try:
        header = json.loads(data[_LENGTH:start])
    except ValueError as error:
        raise SetupError(f"{name}: header is not JSON: {error}") from None
    header.pop("__metadata__", None)
    arrays = {}
    for key, entry in header.items():
        code = _DTYPES.get(entry["dtype"])
        if code is None:
            raise SetupError(f"{name}: {key}: type {entry['dtype']}; expected one of {', '.join(_DTYPES)}")
        begin, end = entry["data_offsets"]
        shape, dtype = entry["shape"], np.dtype(code)
        if end - begin != prod(shape) * dtype.itemsize or start + end > len(data):
            raise SetupError(f"{name}: {key}: bytes {begin} to {end} do not hold {entry['dtype']} {shape}")
        arrays[key] = np.frombuffer(data[start + begin : start + end], dtype=dtype).reshape(shape)
    return arrays
