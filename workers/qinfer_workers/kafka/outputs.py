"""From outputs of models to fields of the records that are written."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np

from qinfer.datatypes import Array, from_bf16
from qinfer_workers.kafka.contract import Rows

Select: TypeAlias = Literal["", "argmax", "max", "label"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputField:
    """A field of the output record.

    Attributes:
        path: names from the outside in.
        model: label of the model.
        output: name of its output.
        datatype: of the field's elements.
        dims: of the field, without a batch dimension; -1 for a variable one.
        batched: whether the model has a batch dimension.
        bf16: the output is BF16; what is selected of it is FP32.
        select: what becomes of the last dimension.
        index: only this element of it; -1 for all.
        labels: of its elements.
        binary: BYTES are no text.
    """

    path: tuple[str, ...]
    model: str
    output: str
    datatype: str
    dims: tuple[int, ...]
    batched: bool = True
    bf16: bool = False
    select: Select = ""
    index: int = -1
    labels: tuple[str, ...] = ()
    binary: bool = False

    @property
    def name(self) -> str:
        """The path as text."""
        return ".".join(self.path)

    @property
    def needs_order(self) -> bool:
        """Whether the largest element is looked for."""
        return self.select in ("argmax", "label")

    @property
    def single(self) -> bool:
        """Whether a row has one value here and not a vector."""
        return self.dims in ((), (1,))


@dataclass(slots=True)
class OutputColumn:
    """Values of a field for some records.

    Attributes:
        field: the field.
        tabular: whether records have rows of their own.
        stacked: the values with the records as first dimension, where they have one shape and no rows.
        parts: else the value of each record, with its rows as first dimension if it has them.
        bad: records whose values cannot be had, and why.
    """

    field: OutputField
    tabular: bool = False
    stacked: Array | None = None
    parts: Sequence[Array] = ()
    bad: dict[int, str] = dataclasses.field(default_factory=dict)

    def values(self, *, as_bytes: bool) -> list[Any]:
        """Each record's value as documents have them: a scalar, or nested lists.

        Args:
            as_bytes: the format has bytes; else binary fields become base64.
        """
        if self.stacked is not None and self.field.datatype != "BYTES":
            array = from_bf16(self.stacked) if self.field.datatype == "BF16" else self.stacked
            values: list[Any] = (array.reshape(len(array)) if self.field.single else array).tolist()
            return values
        return [self._value(place, part, as_bytes) for place, part in enumerate(self._each())]

    def arrays(self) -> Sequence[Array]:
        """Each record's value as an array: rows first if the model has a batch dimension."""
        if self.field.batched and not self.tabular:
            return [part[np.newaxis] for part in self._each()]
        return self._each()

    def _each(self) -> Sequence[Array]:
        if self.stacked is None:
            return self.parts
        if self.stacked.ndim == 1:  # iterating would give scalars
            return [row.reshape(()) for row in self.stacked.reshape(-1, 1)]
        return list(self.stacked)

    def _value(self, place: int, part: Array, as_bytes: bool) -> Any:
        if self.field.single:
            part = part.reshape(len(part) if self.tabular and self.field.batched else ())
        value = (from_bf16(part) if self.field.datatype == "BF16" else part).tolist()
        if self.field.datatype != "BYTES":
            return value
        try:
            return texts_of(value, self._text(as_bytes))
        except UnicodeDecodeError:
            self.bad[place] = (
                f"output {self.field.output!r} of model {self.field.model!r} is no UTF-8; expected text, or "
                f"binary: true for field {self.field.name}"
            )
            return None

    def _text(self, as_bytes: bool) -> Callable[[bytes], Any]:
        if not self.field.binary:
            return bytes.decode
        return bytes if as_bytes else lambda value: base64.b64encode(value).decode()


def texts_of(value: Any, convert: Callable[[bytes], Any]) -> Any:
    """Bytes in nested lists converted; numbers stay as they are."""
    if isinstance(value, list):
        return [texts_of(element, convert) for element in value]
    if isinstance(value, str):
        return convert(value.encode())
    return convert(value) if isinstance(value, bytes) else value


class Located:
    """Where the outputs of some records are among the parts that a model gave.

    Args:
        parts: the outputs.
        places: the records, ascending.
        tabular: whether records have rows of their own.
        batched: whether the model has a batch dimension.
    """

    def __init__(self, parts: Sequence[Rows], places: Sequence[int], *, tabular: bool, batched: bool) -> None:
        self._parts = parts
        self._tabular = tabular
        self._batched = batched
        self._places = places
        # Usually the parts are one after the other what was asked for, whatever their number.
        given = [*chain.from_iterable(part.places for part in parts)]
        self._in_order = given == [*places]
        where = {} if self._in_order else {place: row for row, place in enumerate(given)}
        self._rows = [where[place] for place in places] if where else []

    def column(self, of: OutputField) -> OutputColumn:
        """The values of a field."""
        arrays = [part.tensors[of.output] for part in self._parts]
        alike = len({(array.shape[1:], array.dtype) for array in arrays}) == 1
        if not (self._batched and alike) or self._tabular:
            return _selected(OutputColumn(of, tabular=self._tabular, parts=self._cut(arrays)), of)
        stacked = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return _selected(OutputColumn(of, stacked=stacked if self._in_order else stacked[self._rows]), of)

    def _cut(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """The value of each record for itself."""
        spans = _spans(self._parts, self._places, self._batched)
        if not self._batched:
            return [arrays[part] for part, _, _ in spans]
        if self._tabular:
            return [arrays[part][start:stop] for part, start, stop in spans]
        return [arrays[part][start:stop].reshape(arrays[part].shape[1:]) for part, start, stop in spans]


def _spans(parts: Sequence[Rows], places: Sequence[int], batched: bool) -> list[tuple[int, int, int]]:
    """For each place, the part that has it and its rows there."""
    found: dict[int, tuple[int, int, int]] = {}
    for number, part in enumerate(parts):
        start = 0
        counts = part.counts if part.counts is not None else [1] * len(part.places)
        for place, count in zip(part.places, counts, strict=True):
            found[place] = (number, start, start + count)
            start += count if batched else 0
    return [found[place] for place in places]


def _selected(column: OutputColumn, of: OutputField) -> OutputColumn:
    """The column with what its field selects."""
    if not (of.select or of.index >= 0):
        return column
    if column.stacked is None:
        column.parts = [_checked(column, place, part, of) for place, part in enumerate(column.parts)]
        return column
    array = column.stacked
    wrong = _unfit(array, of)
    if wrong and not (of.needs_order and _has_nan(array) and len(array)):
        column.bad.update(dict.fromkeys(range(len(array)), wrong))
        column.stacked = np.zeros(array.shape[:-1], dtype=object)
        return column
    if wrong:
        column.bad.update({place: wrong for place, part in enumerate(array) if _has_nan(part)})
    column.stacked = _select(array, of)
    return column


def _checked(column: OutputColumn, place: int, part: Array, of: OutputField) -> Array:
    wrong = _unfit(part, of)
    if not wrong:
        return _select(part, of)
    column.bad[place] = wrong
    return np.zeros(part.shape[:-1], dtype=object)


def _unfit(array: Array, of: OutputField) -> str:
    """Why nothing can be selected of an output; "" if it can."""
    what = f"output {of.output!r} of model {of.model!r}"
    length = array.shape[-1] if array.ndim else 0
    if of.index >= length and of.index >= 0:
        return f"{what} has {length} elements; expected more, to take element {of.index}"
    if of.select == "label" and length != len(of.labels):
        return f"{what} has {length} elements; expected {len(of.labels)}, one for each label"
    if of.select and not length:
        return f"{what} is empty; expected elements to choose from"
    if of.needs_order and _has_nan(array):
        return f"{what} holds NaN; expected numbers, to find the largest"
    return ""


def _select(array: Array, of: OutputField) -> Array:
    if of.bf16:
        array = from_bf16(array)
    if of.index >= 0:
        return np.asarray(array[..., of.index])
    if of.select == "max":
        return np.asarray(array.max(axis=-1))
    places = np.asarray(array.argmax(axis=-1))
    if of.select == "argmax":
        return places
    labels = np.empty(places.shape, dtype=object)
    labels[...] = np.array(of.labels, dtype=object)[places]
    return labels


def _has_nan(array: Array) -> bool:
    return array.dtype.kind == "f" and bool(np.isnan(array).any())
