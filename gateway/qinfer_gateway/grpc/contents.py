"""Tensor elements in the typed fields of `InferTensorContents`, and the raw form."""

from __future__ import annotations

from math import prod

import numpy as np

from qinfer.datatypes import DATATYPES, datatype, encode_bytes
from qinfer.errors import InvalidRequest
from qinfer.proto import InferTensorContents

_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_NARROW = frozenset(("INT8", "INT16", "UINT8", "UINT16"))
"""Datatypes that share the field of a wider one, whose values need not fit them."""


def to_raw(name: str, kind: str, shape: list[int], contents: InferTensorContents) -> bytes:
    """Convert an input's typed contents to the raw form.

    Args:
        name: the input's name, for messages.
        kind: its datatype.
        shape: its shape.
        contents: its elements, row-major.

    Raises:
        InvalidRequest: the datatype is unknown or has no typed form, the elements are in the field of another
            datatype, a value is out of range, or there are more or fewer elements than the shape has.
    """
    field = _FIELDS.get(kind)
    if field is None:
        datatype(kind)
        raise InvalidRequest(f"input {name!r}: {kind} has no typed contents; send it in raw_input_contents")
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InvalidRequest(f"input {name!r}: data in {other.name}; {kind} belongs in {field}")
    values = getattr(contents, field)
    count = prod(shape)
    if len(values) != count:
        raise InvalidRequest(f"input {name!r}: {len(values)} elements; shape {shape} needs {count}")
    if kind == "BYTES":
        return encode_bytes(values)
    wanted = DATATYPES[kind].dtype
    if kind not in _NARROW:
        return np.array(values[:], dtype=wanted).tobytes()
    array = np.array(values[:], dtype="<i8")
    limits = np.iinfo(wanted)
    if count and not limits.min <= array.min() <= array.max() <= limits.max:
        raise InvalidRequest(f"input {name!r}: a value is out of range for {kind}")
    return array.astype(wanted).tobytes()
