"""From fields of records to inputs of models, compiled once for a pipeline and run on whole groups."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from qinfer.datatypes import Array
from qinfer.errors import InvalidRequest
from qinfer.registry import TensorRecord
from qinfer.scoring.columns import MISSING
from qinfer_workers.kafka.columns import Column, ColumnOf, Single
from qinfer_workers.kafka.contract import BadRecord, Rows
from qinfer_workers.kafka.formats.base import Parsed
from qinfer_workers.kafka.paths import Path

MAX_MESSAGE = 1000
"""Most characters of what is said of a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPlan:
    """What an input is made of.

    Attributes:
        spec: the input.
        paths: one field, or several with a value each that make a vector; none for a constant.
        vector: whether it is several.
        constant: the value for all records, without a batch dimension.
        default: stands in for a field that is missing or null; `MISSING` for none.
        base64: texts are base64.
    """

    spec: TensorRecord
    paths: tuple[Path, ...] = ()
    vector: bool = False
    constant: Array | None = None
    default: Any = MISSING
    base64: bool = False

    @property
    def name(self) -> str:
        """What messages call the field."""
        return ", ".join(path.text for path in self.paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What a model's inputs are made of.

    Attributes:
        label: the model.
        max_batch_size: rows of a request, as `ModelInfo` has it.
        inputs: its inputs.
    """

    label: str
    max_batch_size: int | None
    inputs: tuple[InputPlan, ...]

    @property
    def batched(self) -> bool:
        """Whether the model has a batch dimension."""
        return self.max_batch_size != 0


@dataclass(slots=True)
class _Values:
    """One input of all good records: stacked, or one by one; None for one that is left out."""

    stacked: Array | None = None
    singles: Sequence[Array | None] = ()


class InputMapping:
    """Makes the rows of models.

    Args:
        models: what their inputs are made of.
        column: what the values of the format are.
    """

    def __init__(self, models: Sequence[ModelPlan], column: ColumnOf) -> None:
        self._models = models
        self._column = column

    def rows(self, parsed: Parsed) -> tuple[dict[str, Sequence[Rows]], dict[int, BadRecord]]:
        """The rows of each model by its label, and what is wrong with the other records.

        A record that is bad for one model is in the rows of none.
        """
        bad = dict(parsed.bad)
        if not parsed.places:
            return {model.label: [] for model in self._models}, bad
        values = [self._values(model, parsed, bad) for model in self._models]
        good = [place not in bad for place in parsed.places] if len(bad) > len(parsed.bad) else None
        rows: dict[str, Sequence[Rows]] = {
            model.label: _grouped(model, inputs, parsed, good)
            for model, inputs in zip(self._models, values, strict=True)
        }
        return rows, bad

    def _values(self, model: ModelPlan, parsed: Parsed, bad: dict[int, BadRecord]) -> dict[str, _Values]:
        values = {
            plan.spec.name: self._input(model, plan, parsed, bad)
            for plan in model.inputs
            if plan.paths or plan.constant is not None
        }
        if parsed.counts is not None and model.batched:
            _check_counts(model, values, parsed, bad)
        return values

    def _input(self, model: ModelPlan, plan: InputPlan, parsed: Parsed, bad: dict[int, BadRecord]) -> _Values:
        if plan.constant is not None:
            return _constant(plan.constant, parsed, batched=model.batched)
        column = self._column(plan.name, _source(plan, parsed))
        stacked = column.stacked(plan.spec, batched=model.batched)
        if stacked is not None and (not column.tabular or [*map(len, column.values)] == parsed.counts):
            return _Values(stacked=stacked)
        found = _singles(column, plan, batched=model.batched)
        singles: list[Array | None] = []
        for place, single in zip(parsed.places, found, strict=True):
            if isinstance(single, InvalidRequest):
                text = f"input {plan.spec.name!r} of model {model.label!r}: {single.message}"
                bad.setdefault(place, BadRecord("mapping", text[:MAX_MESSAGE]))
                single = None
            singles.append(single)
        return _Values(singles=singles)


def _singles(column: Column, plan: InputPlan, *, batched: bool) -> Sequence[Single | None]:
    """Each record's tensor, why it has none, or None where an optional input is left out."""
    found: list[Single | None] = [*column.singles(plan.spec, batched=batched)]
    if plan.spec.optional:
        return [
            None if value is MISSING or value is None else single
            for value, single in zip(column.values, found, strict=True)
        ]
    return found


def _source(plan: InputPlan, parsed: Parsed) -> Sequence[Any]:
    """The values of the fields of an input."""
    if not plan.vector:
        values = parsed.columns[plan.paths[0].text]
    elif parsed.counts is None:
        rows = zip(*[parsed.columns[path.text] for path in plan.paths], strict=True)
        return [_whole(plan, row) for row in rows]
    else:
        values = _stacked_fields([parsed.columns[path.text] for path in plan.paths])
    if plan.default is not MISSING:
        values = [
            _or_default(value, plan.default, parsed.counts, place) for place, value in enumerate(values)
        ]
    return [_decoded(value) for value in values] if plan.base64 else values


def _whole(plan: InputPlan, row: Sequence[Any]) -> Any:
    """A vector of fields. What is missing fails it, unless something stands in."""
    if plan.default is not MISSING:
        return [plan.default if value is MISSING or value is None else value for value in row]
    return MISSING if any(value is MISSING or value is None for value in row) else [*row]


def _stacked_fields(columns: Sequence[Sequence[Any]]) -> list[Any]:
    """The same of tables: columns of single values side by side."""
    stacked: list[Any] = []
    for arrays in zip(*columns, strict=True):
        fits = all(array is not MISSING and array.shape == arrays[0].shape for array in arrays)
        stacked.append(np.stack(arrays, axis=-1) if fits else MISSING)
    return stacked


def _or_default(value: Any, default: Any, counts: Sequence[int] | None, place: int) -> Any:
    if value is not MISSING and value is not None:
        return value
    if counts is None:
        return default
    array = np.asarray(default, dtype=object if isinstance(default, str) else None)
    return np.broadcast_to(array, (counts[place], *array.shape))


def _decoded(value: Any) -> Any:
    """Texts of base64 as bytes; what is none stays, and does not fit."""
    if isinstance(value, list):
        return [_decoded(element) for element in value]
    if isinstance(value, np.ndarray):
        decoded = np.empty(value.shape, dtype=object)
        decoded.reshape(-1)[:] = [_decoded(element) for element in value.reshape(-1).tolist()]
        return decoded
    if not isinstance(value, str | bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return _NotBase64(value)


class _NotBase64:
    """A text that should have been base64; no input takes it."""

    def __init__(self, value: str | bytes) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"{self._value[:20]!r}, which is not base64"


def _constant(constant: Array, parsed: Parsed, *, batched: bool) -> _Values:
    if not batched:
        return _Values(singles=[constant] * len(parsed.places))
    rows = len(parsed.places) if parsed.counts is None else sum(parsed.counts)
    return _Values(stacked=np.broadcast_to(constant, (rows, *constant.shape)))


def _check_counts(
    model: ModelPlan, values: Mapping[str, _Values], parsed: Parsed, bad: dict[int, BadRecord]
) -> None:
    """Records whose rows are more than a request may have, or whose inputs disagree about them."""
    assert parsed.counts is not None
    limit = model.max_batch_size
    for index, (place, count) in enumerate(zip(parsed.places, parsed.counts, strict=True)):
        if limit and count > limit:
            text = f"{count} rows; expected at most {limit} (max_batch_size of model {model.label!r})"
            bad.setdefault(place, BadRecord("mapping", text))
        for name, value in values.items():
            single = value.singles[index] if value.stacked is None else None
            if single is not None and len(single) != count:
                text = f"input {name!r} of model {model.label!r}: {len(single)} rows; expected {count}"
                bad.setdefault(place, BadRecord("mapping", text))


_Key: TypeAlias = tuple[Any, ...]


def _grouped(
    model: ModelPlan, values: Mapping[str, _Values], parsed: Parsed, good: Sequence[bool] | None
) -> list[Rows]:
    """The rows of the good records, in as few parts as their shapes allow."""
    chosen = [*range(len(parsed.places))] if good is None else [i for i, fine in enumerate(good) if fine]
    if not chosen:
        return []
    if model.batched and all(value.stacked is not None for value in values.values()):
        return [_part(values, parsed, chosen, whole=good is None)]
    take = _taker(parsed)
    if not model.batched:
        return [Rows([parsed.places[i]], _tensors(values, i, take)) for i in chosen]
    parts: dict[_Key, list[tuple[int, dict[str, Array]]]] = {}
    for i in chosen:
        tensors = _tensors(values, i, take)
        key = tuple([(name, array.shape[parsed.counts is not None :]) for name, array in tensors.items()])
        parts.setdefault(key, []).append((i, tensors))
    return [_joined(members, parsed) for members in parts.values()]


def _part(values: Mapping[str, _Values], parsed: Parsed, chosen: Sequence[int], *, whole: bool) -> Rows:
    places = parsed.places if whole else [parsed.places[i] for i in chosen]
    stacked = {name: value.stacked for name, value in values.items() if value.stacked is not None}
    if whole:
        return Rows(places, stacked, parsed.counts)
    if parsed.counts is None:
        return Rows(places, {name: array[chosen] for name, array in stacked.items()})
    mask = np.zeros(len(parsed.places), dtype=bool)
    mask[chosen] = True
    rows = np.repeat(mask, parsed.counts)
    counts = [parsed.counts[i] for i in chosen]
    return Rows(places, {name: array[rows] for name, array in stacked.items()}, counts)


def _taker(parsed: Parsed) -> Callable[[Array, int], Array]:
    """What takes one record out of stacked values."""
    if parsed.counts is None:
        return lambda array, i: array[i]
    ends = np.cumsum(parsed.counts)
    counts = parsed.counts
    return lambda array, i: array[ends[i] - counts[i] : ends[i]]


def _tensors(values: Mapping[str, _Values], i: int, take: Callable[[Array, int], Array]) -> dict[str, Array]:
    found = {
        name: value.singles[i] if value.stacked is None else take(value.stacked, i)
        for name, value in values.items()
    }
    return {name: array for name, array in found.items() if array is not None}


def _joined(members: Sequence[tuple[int, Mapping[str, Array]]], parsed: Parsed) -> Rows:
    places = [parsed.places[i] for i, _ in members]
    join = np.stack if parsed.counts is None else np.concatenate
    names = members[0][1]
    tensors = {name: join([tensors[name] for _, tensors in members]) for name in names}
    counts = None if parsed.counts is None else [parsed.counts[i] for i, _ in members]
    return Rows(places, tensors, counts)
