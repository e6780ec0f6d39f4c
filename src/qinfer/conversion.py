"""Arrays of one datatype as arrays of another, where they say the same."""

from __future__ import annotations

import numpy as np

from qinfer.datatypes import DATATYPES, Array, from_bf16, to_bf16

_EXACT_BITS = {"FP16": 11, "BF16": 8, "FP32": 24, "FP64": 53}


def fitted(array: Array, datatype: str) -> Array:
    """Integers as other integers.

    Raises:
        OverflowError: the datatype does not hold them.
    """
    dtype = DATATYPES[datatype].dtype
    if array.size and array.dtype != dtype:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise OverflowError(f"it is {limits.min} to {limits.max}")
    return array.astype(dtype, copy=False)


def rounded(array: Array, datatype: str) -> Array:
    """Floats as the nearest ones of another datatype; BF16 as bit patterns.

    Raises:
        OverflowError: they would be infinite.
    """
    dtype = np.dtype("<f4") if datatype == "BF16" else DATATYPES[datatype].dtype
    with np.errstate(over="ignore"):
        nearest = array.astype(dtype)
    if not np.array_equal(np.isinf(nearest), np.isinf(array)):
        raise OverflowError(f"the largest number is {float(np.finfo(dtype).max):g}")
    return to_bf16(nearest) if datatype == "BF16" else nearest


def floated(array: Array, datatype: str) -> Array:
    """Integers as floats, where those are the same numbers; BF16 as bit patterns.

    Raises:
        OverflowError: they are not.
    """
    wide = rounded(array.astype(np.float64), datatype)
    exact = 2 ** _EXACT_BITS[datatype]
    if not array.size or (-exact <= int(array.min()) and int(array.max()) <= exact):
        return wide
    numbers = from_bf16(wide) if datatype == "BF16" else wide
    for found, number in zip(array.flat, numbers.flat, strict=True):
        if int(number) != int(found):
            raise OverflowError(f"it has no number {int(found)}; the nearest is {int(number)}")
    return wide
