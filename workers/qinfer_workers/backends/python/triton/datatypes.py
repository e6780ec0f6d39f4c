"""Triton's datatype names and numbers, and the raw form of string tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from qinfer.datatypes import Array, datatype_of, encode_bytes
from qinfer.errors import InvalidRequest
from qinfer_workers.backends.python.triton.errors import TritonModelException

_NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "STRING": np.object_,
}
"""In the order of the configuration's enum, from 1. BF16 has no numpy type and so no place here."""

TRITON_STRING_TO_NUMPY: dict[str, Any] = {
    f"TYPE_{name}": bool if name == "BOOL" else numpy_type for name, numpy_type in _NUMPY.items()
}

_NUMBERS = dict(enumerate(_NUMPY.values(), start=1))


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """The numpy type of a configuration's `data_type`, for instance "TYPE_FP32".

    Raises:
        KeyError: there is none, as for "TYPE_BF16".
    """
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    """The numpy type of a number of the configuration's enum; None where there is none."""
    return _NUMBERS.get(data_type)


def numpy_to_triton_type(data_type: Any) -> int | None:
    """The number in the configuration's enum of a numpy type; None where there is none."""
    if data_type == np.bytes_:
        data_type = np.object_
    return next((number for number, known in _NUMBERS.items() if data_type == known), None)


def np_to_triton_dtype(np_dtype: Any) -> str | None:
    """The protocol's name of a numpy dtype, for instance "FP32"; None where there is none."""
    try:
        return datatype_of(np.empty(0, dtype=np_dtype))
    except (InvalidRequest, TypeError):
        return None


def serialize_byte_tensor(input_tensor: Array) -> Any:
    """The raw form of a string tensor: for each element its length in 4 bytes and its payload.

    Returns:
        bytes; an empty tuple for an empty tensor, and None for one of numbers, as Triton's function does.
    """
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    return encode_bytes(input_tensor.ravel().tolist())


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Array:
    """Split the raw form of a string tensor into a 1-D object array of bytes.

    Raises:
        TritonModelException: the lengths do not add up to the data.
    """
    elements: list[bytes] = []
    offset = 0
    while offset < len(encoded_tensor):
        start = offset + 4
        offset = start + int.from_bytes(encoded_tensor[offset:start], "little")
        if offset > len(encoded_tensor):
            raise TritonModelException(
                f"encoded tensor: element {len(elements)} ends at byte {offset}; expected at most"
                f" {len(encoded_tensor)}"
            )
        elements.append(bytes(encoded_tensor[start:offset]))
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array
