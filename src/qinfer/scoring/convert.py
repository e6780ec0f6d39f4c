"""From the values of a file to a model's input: exactly what was meant, or an error that says why not.

Integers become other integers where they fit, and floats where the float is the same number. Floats become
other floats by rounding, never infinite. Numbers of text and JSON, which are decimal, are rounded, too.
Nothing else is converted: no float to an integer, no number to a text, no truth value to a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from qinfer.conversion import fitted, floated, rounded
from qinfer.datatypes import DATATYPES, Array
from qinfer.errors import InvalidRequest
from qinfer.registry import TensorRecord
from qinfer.scoring.columns import MISSING, Column

_SHOWN = 60
_decode = msgspec.json.Decoder().decode
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class Unfit(Exception):
    """Values that do not fit an input as they are; what is wrong, without where."""


def to_rows(field: str, column: Column, spec: TensorRecord) -> list[Array | InvalidRequest]:
    """Each value as a tensor of the input's datatype without batch dimension, or why it cannot be one.

    Args:
        field: the column's name, for messages.
        column: the values.
        spec: the input.
    """
    rows: list[Array | InvalidRequest] = []
    for value in column.values():
        try:
            cell = _parsed(value, spec) if column.textual else value
            rows.append(_tensor(cell, spec.datatype, spec.dims))
        except Unfit as unfit:
            rows.append(InvalidRequest(f"field {field!r}: {unfit}"))
    return rows


def to_array(column: Column, spec: TensorRecord) -> Array | None:
    """All values at once as an array whose first dimension is the rows; None where that is not possible.

    It is not when a value is wrong, or when values are of different shapes: `to_rows` tells.
    """
    values = column.values()
    if column.textual or not len(values):
        return None
    dims = spec.dims
    first = values[0]
    if dims == (1,) and not isinstance(first, list) and np.ndim(first) == 0:
        dims = ()
    try:
        if isinstance(first, np.ndarray) and isinstance(values, list):
            values = _stacked(values)
        array = _tensor(values, spec.datatype, (-1, *dims))
    except Unfit:
        return None
    return array.reshape(len(array), *spec.dims) if dims != spec.dims else array


def _stacked(values: Sequence[Any]) -> Array:
    kinds = {(value.shape, value.dtype) if isinstance(value, np.ndarray) else None for value in values}
    if len(kinds) != 1:
        raise Unfit("found arrays of different shapes")
    return np.stack(values)


def _tensor(value: Any, datatype: str, dims: Sequence[int]) -> Array:
    """A value as an array of a datatype and of dims, -1 for any size.

    Raises:
        Unfit: it is not such a value.
    """
    if value is None or value is MISSING:
        raise Unfit(f"found {'null' if value is None else 'nothing'}; expected {_expected(datatype, dims)}")
    try:
        if isinstance(value, np.ndarray | np.generic):
            array = _cast(np.asarray(value), datatype)
        elif datatype == "BYTES":
            array = _texts(value)
        else:
            array = _numbers(value, datatype)
    except (TypeError, ValueError, OverflowError) as error:
        why = f" ({error})" if str(error) else ""
        raise Unfit(f"found {_shown(value)}; expected {_expected(datatype, dims)}{why}") from None
    if tuple(dims) == (1,) and array.shape == ():
        return array.reshape(1)
    if array.shape == (0,) and len(dims) > 1 and dims[0] == -1:  # an empty list does not tell the rest
        array = array.reshape(0, *(max(dim, 0) for dim in dims[1:]))
    if len(array.shape) != len(dims) or any(
        want not in (-1, got) for got, want in zip(array.shape, dims, strict=True)
    ):
        found = f"shape {list(array.shape)}" if array.shape else f"the single value {_shown(value)}"
        raise Unfit(f"found {found}; expected {_expected(datatype, dims)}")
    return array


def _expected(datatype: str, dims: Sequence[int]) -> str:
    what = "text" if datatype == "BYTES" else datatype
    return f"{what} of shape {list(dims)}" if tuple(dims) not in ((), (1,)) else what


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype} values of shape {list(value.shape)}"
    if isinstance(value, np.generic | np.ndarray):
        value = value.item()
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


# Python values


@lru_cache(maxsize=256)
def _nested(element: type, depth: int) -> Any:
    kind: Any = element
    for _ in range(depth):
        kind = list[kind]
    return kind


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        if not value:
            break
        value = value[0]
    return depth


def _numbers(value: Any, datatype: str) -> Array:
    element = DATATYPES[datatype].element
    try:
        checked = msgspec.convert(value, _nested(element, _depth(value)), strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise TypeError(str(error).replace("`", "")) from None
    if element is bool:
        return np.array(checked, dtype=np.bool_)
    if element is float:
        return rounded(np.array(checked, dtype=np.float64), datatype)
    try:
        plain = np.array(checked, dtype=np.int64)
    except OverflowError:
        plain = np.array(checked, dtype=np.uint64)
    return fitted(plain, datatype)


def _texts(value: Any) -> Array:
    array = np.empty((), dtype=object)
    if not isinstance(value, list):
        array[()] = value
    else:
        array = np.array(value, dtype=object)
    return _encoded(array)


def _encoded(array: Array) -> Array:
    flat = array.reshape(-1)
    encoded = np.empty(len(flat), dtype=object)
    for place, element in enumerate(flat):
        if isinstance(element, str):
            encoded[place] = element.encode()
        elif isinstance(element, bytes):
            encoded[place] = element
        else:
            raise TypeError(f"{_shown(element)} is no text")
    return encoded.reshape(array.shape)


# Arrays


def _cast(array: Array, datatype: str) -> Array:
    found = array.dtype.kind
    if datatype == "BYTES":
        if found not in "SUO":
            raise TypeError("numbers are no text")
        return _encoded(array.astype(object))
    wanted = DATATYPES[datatype].element
    if wanted is bool and found == "b":
        return array
    if wanted is int and found in "iu":
        return fitted(array, datatype)
    if wanted is float and found == "f":
        return rounded(array, datatype)
    if datatype == "BF16" and array.dtype.newbyteorder("<") == np.dtype("<u2"):
        return array.astype("<u2")
    if wanted is float and found in "iu":
        return floated(array, datatype)
    raise TypeError(f"of dtype {array.dtype}")


# Text


def _parsed(value: Any, spec: TensorRecord) -> Any:
    """What a cell of a text file stands for."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if spec.datatype == "BYTES":
        return value if spec.dims in ((), (1,)) else _json(text, spec)
    if not text:
        return None
    if text[0] == "[":
        return _json(text, spec)
    element = DATATYPES[spec.datatype].element
    if element is bool and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if element is bool or "_" in text:
        raise Unfit(f"found {_shown(value)}; expected {_expected(spec.datatype, spec.dims)}")
    try:
        return int(text) if element is int else float(text)
    except ValueError:
        raise Unfit(f"found {_shown(value)}; expected {_expected(spec.datatype, spec.dims)}") from None


def _json(text: str, spec: TensorRecord) -> Any:
    try:
        return _decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unfit(
            f"found {_shown(text)}; expected {_expected(spec.datatype, spec.dims)} in JSON ({error})"
        ) from None
