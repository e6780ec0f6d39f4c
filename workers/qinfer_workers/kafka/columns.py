"""Values of one field for many records, on their way to an input of a model.

A column belongs to the format that has read it: documents give Python values, tables give arrays with a row
or more for each record, raw values are bytes. All of them give tensors of an input's datatype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from qinfer.datatypes import DATATYPES, Array, decode_bytes
from qinfer.errors import InvalidRequest
from qinfer.registry import TensorRecord
from qinfer.scoring.columns import MISSING, ArrayColumn, ListColumn
from qinfer.scoring.convert import to_array, to_rows

Single: TypeAlias = "Array | InvalidRequest"


class Column(ABC):
    """Values of one field.

    Args:
        name: of the field, for messages.
        values: one for each record, `MISSING` where it has none.
    """

    tabular = False
    """Whether each record has rows, of any number."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name = name
        self.values = values

    @abstractmethod
    def stacked(self, spec: TensorRecord, *, batched: bool) -> Array | None:
        """All values at once, an array whose first dimension is the records, or the rows of all records.

        None where that is not possible: `singles` tells why.
        """

    @abstractmethod
    def singles(self, spec: TensorRecord, *, batched: bool) -> list[Single]:
        """The tensor of each record, with its rows as first dimension if it is tabular and the model batches;
        or why it has none."""


class DocumentColumn(Column):
    """Python values as JSON has them."""

    def stacked(self, spec: TensorRecord, *, batched: bool) -> Array | None:  # noqa: ARG002
        """All values at once."""
        return to_array(ListColumn(list(self.values)), spec)

    def singles(self, spec: TensorRecord, *, batched: bool) -> list[Single]:  # noqa: ARG002
        """Each for itself."""
        return to_rows(self.name, ListColumn(list(self.values)), spec)


class RawColumn(Column):
    """Elements as bytes, little endian, of `datatype`; "" for that of the input."""

    datatype = ""

    def stacked(self, spec: TensorRecord, *, batched: bool) -> Array | None:  # noqa: ARG002
        """All values at once, where their sizes are those of the input."""
        kind = DATATYPES[self.datatype or spec.datatype]
        size = prod(spec.dims) * kind.itemsize
        if size <= 0 or any(len(value) != size for value in self.values):
            return None
        array = np.frombuffer(b"".join(self.values), dtype=kind.dtype).reshape(-1, *spec.dims)
        return array if kind.name == spec.datatype else to_array(ArrayColumn(array), spec)

    def singles(self, spec: TensorRecord, *, batched: bool) -> list[Single]:  # noqa: ARG002
        """Each for itself; a single variable dimension follows from the size."""
        return [self._single(value, spec) for value in self.values]

    def _single(self, value: bytes, spec: TensorRecord) -> Single:
        kind = DATATYPES[self.datatype or spec.datatype]
        if kind.itemsize == 0:
            return _text(value, spec)
        known = prod(dim for dim in spec.dims if dim != -1) * kind.itemsize
        free = spec.dims.count(-1)
        fits = len(value) % known == 0 if known and free else len(value) == known
        if free > 1 or not fits:
            wanted = "one variable dimension at most" if free > 1 else f"a multiple of {known}"
            return InvalidRequest(
                f"found {len(value)} bytes; expected {wanted if free else known} for {kind.name} of shape "
                f"{list(spec.dims)}"
            )
        array = np.frombuffer(value, dtype=kind.dtype).reshape(spec.dims)
        if kind.name == spec.datatype:
            return array
        (converted,) = to_rows(self.name, ListColumn([array]), spec)
        return converted


def _text(value: bytes, spec: TensorRecord) -> Single:
    """One element is the value itself; several have their lengths before them, as everywhere."""
    if spec.dims in ((), (1,)):
        return np.array([value], dtype=object).reshape(spec.dims)
    known = prod(dim for dim in spec.dims if dim != -1)
    try:
        count = known if -1 not in spec.dims else _elements(value)
        array = np.empty(count, dtype=object)
        array[:] = decode_bytes(value, count)
        return array.reshape(spec.dims)
    except (InvalidRequest, ValueError) as error:
        return InvalidRequest(f"found bytes that are not BYTES of shape {list(spec.dims)}: {error}")


def _elements(value: bytes) -> int:
    """How many elements raw BYTES have, as far as their lengths tell."""
    count = offset = 0
    while offset + 4 <= len(value):
        offset += 4 + int.from_bytes(value[offset : offset + 4], "little")
        count += 1
    return count


class TableColumn(Column):
    """Arrays whose first dimension is the rows of a record."""

    tabular = True

    def stacked(self, spec: TensorRecord, *, batched: bool) -> Array | None:
        """The rows of all records, where their shapes agree."""
        if not batched or len({_shape(value) for value in self.values}) != 1 or self.values[0] is MISSING:
            return None
        rows = np.concatenate(self.values) if len(self.values) > 1 else self.values[0]
        return to_array(ArrayColumn(rows), spec) if len(rows) else None

    def singles(self, spec: TensorRecord, *, batched: bool) -> list[Single]:
        """The rows of each record."""
        if not batched:
            return to_rows(self.name, ListColumn(list(self.values)), spec)
        return [self._rows(value, spec) for value in self.values]

    def _rows(self, value: Any, spec: TensorRecord) -> Single:
        if value is MISSING or value.ndim == 0 or not len(value):
            (single,) = to_rows(self.name, ListColumn([MISSING]), spec)
            return single
        array = to_array(ArrayColumn(value), spec)
        if array is not None:
            return array
        return next(
            row for row in to_rows(self.name, ArrayColumn(value), spec) if isinstance(row, InvalidRequest)
        )


def _shape(value: Any) -> Any:
    return None if value is MISSING else (value.shape[1:], value.dtype)


ColumnOf: TypeAlias = Callable[[str, Sequence[Any]], Column]
