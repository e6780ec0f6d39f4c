"""From what Python programs hold to a model's input: the same values, or an error that says why not.

Arrays are converted only where nothing is lost: integers to other integers that hold them and to floats that
are the same numbers, floats to wider ones. Python's numbers are decimal: they are rounded to the input's
datatype, as numpy does. Torch and pandas are never imported here: an object of theirs cannot be there unless
somebody else has imported them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from qinfer.conversion import fitted, floated, rounded
from qinfer.datatypes import DATATYPES, Array, from_bf16
from qinfer.errors import InvalidRequest
from qinfer.message import Tensor
from qinfer.registry import TensorRecord

_SHOWN = 60


class _Unfit(Exception):
    """Values that do not fit an input as they are; what is wrong, without where."""


def to_tensor(value: Any, spec: TensorRecord, *, batched: bool) -> Tensor:
    """A value as a tensor of an input's datatype.

    Args:
        value: a numpy array, torch tensor, pandas Series or DataFrame, anything with `__array__`, or (nested)
            lists of Python values. For BF16, arrays of uint16 are bit patterns.
        spec: the input; its shape is not checked here.
        batched: the input has a batch dimension before its `dims`. The rows of a Series are that dimension.

    Raises:
        InvalidRequest: it does not convert; the message names the input, what was found and what is expected.
    """
    try:
        array = _convert(value, spec, len(spec.dims) + batched)
        return Tensor.from_numpy(spec.name, array, spec.datatype)
    except (_Unfit, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(
            f"input {spec.name!r}: found {_shown(value)}; expected {spec.datatype}: {error}"
        ) from None


def _convert(value: Any, spec: TensorRecord, rank: int) -> Array:
    datatype = spec.datatype
    if isinstance(value, np.ndarray | np.generic):
        return _cast(np.asarray(value), datatype)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _of_torch(torch, value, datatype)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        if not value.shape[1]:
            raise _Unfit("the frame has no columns")
        return np.stack([_cast(_of_series(value.iloc[:, n]), datatype) for n in range(value.shape[1])], 1)
    if pandas is not None and isinstance(value, pandas.Series | pandas.Index):
        column = _cast(_of_series(value), datatype)
        return column.reshape(-1, 1) if rank == 2 and spec.dims[-1] in (1, -1) else column
    if hasattr(value, "__array__"):
        return _cast(np.asarray(value), datatype)
    return _texts(value) if datatype == "BYTES" else _numbers(value, datatype)


# Libraries


def _of_torch(torch: Any, tensor: Any, datatype: str) -> Array:
    if tensor.layout is not torch.strided:
        raise _Unfit(f"a tensor of layout {tensor.layout}; .to_dense() makes an ordinary one")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype != torch.bfloat16:
        return _cast(tensor.numpy(), datatype)
    patterns: Array = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return patterns if datatype == "BF16" else _cast(from_bf16(patterns), datatype)


def _of_series(series: Any) -> Array:
    """A column of pandas as an array. What is missing has no form in any datatype; NaN is a number."""
    if isinstance(series.dtype, np.dtype) and series.dtype.kind != "O":
        array: Array = series.to_numpy()
        return array
    if series.isna().any():
        raise _Unfit("values are missing")
    array = series.to_numpy(dtype=getattr(series.dtype, "numpy_dtype", None) or object)
    if array.dtype.kind == "O" and array.size and not isinstance(array[0], str | bytes):
        return np.asarray(array.tolist())  # of categories, or of objects that are numbers
    return array


# Python values


def _numbers(value: Any, datatype: str) -> Array:
    plain = np.asarray(value)
    if not plain.size:
        return plain.astype(DATATYPES[datatype].dtype)
    if plain.dtype.kind == "f" and DATATYPES[datatype].element is float and not _is_typed(value):
        return rounded(plain, datatype)
    return _cast(plain, datatype)


def _is_typed(value: Any) -> bool:
    """Whether lists hold numpy's numbers, which have a precision of their own."""
    while isinstance(value, Sequence) and value:
        value = value[0]
    return isinstance(value, np.ndarray | np.generic) and not isinstance(value, float)


def _texts(value: Any) -> Array:
    if isinstance(value, str | bytes):
        array = np.empty((), dtype=object)
        array[()] = value
    else:
        array = np.array(value, dtype=object)
    return _checked_texts(array)


def _checked_texts(array: Array) -> Array:
    for element in array.reshape(-1):
        if not isinstance(element, str | bytes):
            raise _Unfit(f"{_shown(element)} is neither str nor bytes")
    return array


# Arrays


def _cast(array: Array, datatype: str) -> Array:
    kind, wanted = array.dtype.kind, DATATYPES[datatype]
    if datatype == "BYTES":
        if kind not in "SUO":
            raise _Unfit("numbers are no text")
        return _checked_texts(array) if kind == "O" else array.astype(object)
    if datatype == "BF16" and array.dtype.newbyteorder("<") == wanted.dtype:
        return array
    if wanted.element is bool and kind == "b":
        return array
    if wanted.element is int and kind in "iu":
        return fitted(array, datatype)
    if wanted.element is float and kind in "iu":
        return floated(array, datatype)
    if wanted.element is float and kind == "f":
        return _widened(array, datatype)
    raise _Unfit(f"dtype {array.dtype} does not convert to it")


def _widened(array: Array, datatype: str) -> Array:
    """Floats as wider floats."""
    if datatype == "BF16":
        patterns = rounded(array, datatype)
        if np.array_equal(from_bf16(patterns), array, equal_nan=True):
            return patterns
        raise _Unfit(
            f"digits of {array.dtype} values would be lost; qinfer.datatypes.to_bf16 makes the nearest ones"
        )
    dtype = DATATYPES[datatype].dtype
    if not np.can_cast(array.dtype, dtype, casting="safe"):
        raise _Unfit(f"digits of {array.dtype} values would be lost; .astype(np.{dtype}) rounds them")
    return array.astype(dtype, copy=False)


def _shown(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype} values of shape {list(shape)}"
    if shape is not None:
        return f"a {type(value).__name__} of shape {list(shape)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
