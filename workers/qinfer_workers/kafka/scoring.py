"""What every scorer gives: outputs of the rows it scored, and why it could not score the others.

Two of one shape: `local` runs models in this process, `fleet` asks workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from qinfer.client.base import ModelInfo
from qinfer.message import Tensor
from qinfer_workers.kafka.contract import Rows
from qinfer_workers.kafka.group import Dead


@dataclass(slots=True)
class Score:
    """Outputs of a group.

    Attributes:
        outputs: by `ModelUse.label`.
        failed: records that some model could not score, by place.
    """

    outputs: dict[str, list[Rows]] = field(default_factory=dict)
    failed: dict[int, Dead] = field(default_factory=dict)


class Scorer(Protocol):
    """Has models score groups. Several groups may be scored at the same time."""

    async def start(self) -> Mapping[str, ModelInfo]:
        """Get the models ready; returns the signature of each by its label.

        Raises:
            QInferError: a model is not there or cannot be used for this.
        """

    async def score(self, inputs: Mapping[str, Sequence[Rows]]) -> Score:
        """Score a group, by every model.

        Raises:
            QInferError: nothing can be scored any more; records are not to blame.
        """

    async def close(self) -> None:
        """Free the models. Idempotent."""


def tensors(rows: Rows, datatypes: Mapping[str, str]) -> list[Tensor]:
    """The inputs of rows in their raw form.

    Args:
        rows: the rows.
        datatypes: of the model's inputs, by name.

    Raises:
        InvalidRequest: an array has no raw form.
    """
    return [Tensor.from_numpy(name, array, datatypes.get(name)) for name, array in rows.tensors.items()]


def cut(rows: Rows, limit: int) -> Iterator[Rows]:
    """Cut rows into pieces of at most `limit` rows, never within a record; 0 for no limit.

    A record that has more by itself is a piece of its own.
    """
    counts = rows.counts
    total = len(rows.places) if counts is None else sum(counts)
    if not limit or total <= limit or len(rows.places) == 1:
        yield rows
        return
    if counts is None:
        for first in range(0, total, limit):
            yield _slice(rows, first, min(first + limit, total), first, min(first + limit, total))
        return
    ends = list(accumulate(counts))
    first = start = 0  # record and row that the piece begins with
    for place, end in enumerate(ends):
        if place > first and end - start > limit:
            yield _slice(rows, first, place, start, ends[place - 1])
            first, start = place, ends[place - 1]
    yield _slice(rows, first, len(ends), start, ends[-1])


def halves(rows: Rows) -> tuple[Rows, Rows]:
    """The same records in two pieces."""
    middle = len(rows.places) // 2
    row = middle if rows.counts is None else sum(rows.counts[:middle])
    total = len(rows.places) if rows.counts is None else sum(rows.counts)
    return _slice(rows, 0, middle, 0, row), _slice(rows, middle, len(rows.places), row, total)


def each(rows: Rows) -> list[Rows]:
    """One piece for each record."""
    if len(rows.places) == 1:
        return [rows]
    counts = rows.counts or [1] * len(rows.places)
    ends = list(accumulate(counts))
    return [
        _slice(rows, place, place + 1, end - count, end)
        for place, (count, end) in enumerate(zip(counts, ends, strict=True))
    ]


def _slice(rows: Rows, first: int, last: int, start: int, end: int) -> Rows:
    """Records `first` to `last`, which have the rows `start` to `end`."""
    return Rows(
        rows.places[first:last],
        {name: array[start:end] for name, array in rows.tensors.items()},
        None if rows.counts is None else rows.counts[first:last],
    )
