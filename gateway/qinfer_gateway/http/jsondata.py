"""Tensor data in JSON: lists of numbers, booleans or strings, flat or nested, and the raw form."""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import chain
from math import prod
from typing import Any

import msgspec
import numpy as np

from qinfer.datatypes import DATATYPES, decode_bytes, encode_bytes
from qinfer.errors import InvalidRequest

_STRUCT_CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip
_DECODERS = {name: msgspec.json.Decoder(list[kind.element]) for name, kind in DATATYPES.items()}  # type: ignore[name-defined]
_nested = msgspec.json.Decoder(list[Any])
_STRUCT_LIMIT = 4096  # above this, numpy is faster than a struct with that many arguments

encode_json = msgspec.json.Encoder().encode


@lru_cache(maxsize=512)
def _packer(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{code}")


def to_raw(name: str, datatype: str, shape: list[int], data: msgspec.Raw) -> bytes:
    """Convert an input's JSON data to the raw form.

    Raises:
        InvalidRequest: the datatype has no JSON form, an element is of the wrong type or out of range, or
            there are more or fewer elements than the shape has.
    """
    if datatype not in DATATYPES:
        raise InvalidRequest(
            f"input {name!r}: unknown datatype {datatype!r}; expected one of {', '.join(DATATYPES)}"
        )
    if not DATATYPES[datatype].json:
        raise InvalidRequest(f"input {name!r}: {datatype} has no JSON form; send it as binary data")
    try:
        values = _DECODERS[datatype].decode(data)
    except msgspec.ValidationError as error:
        values = _flatten(name, datatype, data, error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"input {name!r}: malformed JSON: {error}") from None
    return pack(name, datatype, shape, values)


def pack(name: str, datatype: str, shape: list[int], values: list[Any]) -> bytes:
    """Convert flat values of the datatype's own element type to the raw form.

    Raises:
        InvalidRequest: a value is out of range, or there are more or fewer than the shape has.
    """
    count = prod(shape)
    if len(values) != count:
        raise InvalidRequest(f"input {name!r}: {len(values)} elements; shape {shape} needs {count}")
    try:
        return _pack(datatype, values)
    except (struct.error, OverflowError, FloatingPointError):
        raise InvalidRequest(f"input {name!r}: a value is out of range for {datatype}") from None
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"input {name!r}: a string is not valid Unicode: {error.reason}") from None


def _pack(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return encode_bytes(values)
    if len(values) <= _STRUCT_LIMIT:
        return _packer(_STRUCT_CODES[datatype], len(values)).pack(*values)
    with np.errstate(over="raise"):
        if datatype == "FP32":
            return np.array(values, dtype="<f8").astype("<f4").tobytes()
        return np.array(values, dtype=DATATYPES[datatype].dtype).tobytes()


def _flatten(name: str, datatype: str, data: msgspec.Raw, error: msgspec.ValidationError) -> list[Any]:
    """Flatten nested row-major lists, or say which element is wrong."""
    try:
        values = _nested.decode(data)
    except msgspec.ValidationError:
        raise InvalidRequest(f"input {name!r}: data is not a list: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as broken:
        raise InvalidRequest(f"input {name!r}: malformed JSON: {broken}") from None
    except RecursionError:
        raise InvalidRequest(f"input {name!r}: data is nested too deep") from None
    if not any(isinstance(value, list) for value in values):
        raise InvalidRequest(f"input {name!r}: {_expected(datatype)}: {error}")
    while values and isinstance(values[0], list):
        if not all(isinstance(value, list) for value in values):
            raise InvalidRequest(f"input {name!r}: data mixes lists and {datatype} values at one level")
        values = list(chain.from_iterable(values))
    wanted = DATATYPES[datatype].element
    accepted = (int, float) if wanted is float else (wanted,)
    for index, value in enumerate(values):
        if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
            raise InvalidRequest(
                f"input {name!r}: {_expected(datatype)}; got {type(value).__name__} at element {index}"
            )
    return values


def _expected(datatype: str) -> str:
    kind = {"BOOL": "true or false", "BYTES": "strings", "FP32": "numbers", "FP64": "numbers"}
    return f"{datatype} data must be {kind.get(datatype, 'integers')}"


def to_json(name: str, datatype: str, shape: list[int], data: bytes | memoryview) -> bytes:
    """Convert an output's raw form to a flat JSON list. NaN and infinities, which JSON lacks, become null.

    Raises:
        InvalidRequest: the datatype has no JSON form, or BYTES elements are not UTF-8.
    """
    if datatype == "BYTES":
        elements = decode_bytes(data, prod(shape))
        try:
            return encode_json([element.decode() for element in elements])
        except UnicodeDecodeError:
            raise InvalidRequest(f"output {name!r} is not UTF-8; request it as binary data") from None
    kind = DATATYPES[datatype]
    if not kind.json:
        raise InvalidRequest(f"output {name!r}: {datatype} has no JSON form; request it as binary data")
    count = len(data) // kind.itemsize
    if count <= _STRUCT_LIMIT:
        return encode_json(_packer(_STRUCT_CODES[datatype], count).unpack(data))
    return encode_json(np.frombuffer(data, kind.dtype).tolist())
