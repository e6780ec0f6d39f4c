"""Rows as they are read and written: in chunks, column by column."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from qinfer.datatypes import Array
from qinfer.errors import QInferError


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING: Final = _Missing()
"""Stands for a value that a row does not have."""


class Column(ABC):
    """Values of one column for some rows."""

    textual = False
    """Whether values are text that stands for something else, as in CSV."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def values(self) -> Array | list[Any]:
        """The values: an array whose first dimension is the rows, or a list of Python values."""

    @abstractmethod
    def take(self, rows: Sequence[int]) -> Column:
        """Only these rows, by their places, in this order."""


class ListColumn(Column):
    """Python values, as JSON has them; `textual` for the cells of a text file."""

    def __init__(self, values: list[Any], *, textual: bool = False) -> None:
        self._values = values
        self.textual = textual

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> list[Any]:
        """The values."""
        return self._values

    def take(self, rows: Sequence[int]) -> Column:
        """Only these rows."""
        return ListColumn([self._values[row] for row in rows], textual=self.textual)


class ArrayColumn(Column):
    """A numpy array whose first dimension is the rows."""

    def __init__(self, values: Array) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> Array:
        """The array."""
        return self._values

    def take(self, rows: Sequence[int]) -> Column:
        """Only these rows."""
        return ArrayColumn(self._values[list(rows)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive rows of an input.

    Attributes:
        first: number of the first row, from 0.
        rows: how many.
        columns: their values by column.
        end: where the row after the last one begins, in the reader's own measure.
        faults: why rows, by their places in the chunk, cannot be read; their values are `MISSING`.
    """

    first: int
    rows: int
    columns: Mapping[str, Column]
    end: int
    faults: Mapping[int, QInferError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows to be written.

    Attributes:
        rows: their numbers in the input, ascending.
        columns: their values by output column.
        names: what each row is called where the input is a folder; empty elsewhere.
    """

    rows: Sequence[int]
    columns: Mapping[str, Column]
    names: Sequence[str] = ()
