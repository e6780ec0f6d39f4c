"""Which columns become which inputs, and which outputs which columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qinfer.client.base import ModelInfo
from qinfer.datatypes import Array
from qinfer.errors import InvalidRequest, QInferError
from qinfer.registry import TensorRecord
from qinfer.scoring.columns import Chunk
from qinfer.scoring.convert import to_array, to_rows
from qinfer.scoring.formats import Field, Reader
from qinfer.scoring.formats.folder import FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a caller says about columns; what is left out is found by name.

    Attributes:
        inputs: columns of each input; several, with single values, make one vector.
        outputs: the output that each column of the output file holds; empty for all by their own names.
        keep: columns of the input that the output file has, too.
    """

    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    keep: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """An input of the model and the columns it is made of."""

    spec: TensorRecord
    columns: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Rows that can be asked about at once.

    Attributes:
        places: of the rows in their chunk, ascending.
        inputs: arrays whose first dimension is these rows.
    """

    places: Sequence[int]
    inputs: Mapping[str, Array]

    def part(self, begin: int, end: int) -> Ask:
        """Only some of the rows."""
        inputs = {name: array[begin:end] for name, array in self.inputs.items()}
        return Ask(places=self.places[begin:end], inputs=inputs)


def bind(reader: Reader, model: ModelInfo, columns: Columns) -> list[Binding]:
    """Find the columns of each input.

    Raises:
        InvalidRequest: there is no such input or column, or one is missing.
    """
    specs = {spec.name: spec for spec in model.inputs}
    for name in columns.inputs:
        if name not in specs:
            raise InvalidRequest(
                f"model {model.name!r} has no input {name!r}; expected one of {_listed(specs)}"
            )
    bindings = []
    for spec in model.inputs:
        chosen = columns.inputs.get(spec.name) or _found(reader, model, spec, columns)
        if chosen is None:
            if spec.optional:
                continue
            raise InvalidRequest(
                f"{reader.path}: found no column {spec.name!r} for the input of that name, but "
                f"{_listed(reader.columns)}; expected for instance --map {spec.name}={_example(reader)}"
            )
        for name in chosen:
            _require(reader, name)
        _check_width(spec, chosen)
        bindings.append(Binding(spec=spec, columns=list(chosen)))
    return bindings


def output_fields(reader: Reader, model: ModelInfo, columns: Columns) -> list[Field]:
    """The columns of the output file: those that are kept, then the outputs.

    Raises:
        InvalidRequest: there is no such column or output, or a name would be there twice.
    """
    specs = {spec.name: spec for spec in model.outputs}
    chosen = dict(columns.outputs) or {name: name for name in specs}
    sample = reader.sample() if columns.keep else None
    fields = []
    for name in columns.keep:
        _require(reader, name)
        if name in chosen:
            raise InvalidRequest(
                f"column {name!r} is to be kept and is an output, too; expected another name for the output, "
                f"for instance --map-output {name}_out={chosen[name]}"
            )
        hint = reader.hint(name)
        values: Sequence[Any] = ()
        if hint is None and sample is not None:
            values = list(sample.columns[name].values())
        fields.append(Field(name=name, hint=hint, sample=values))
    for name, output in chosen.items():
        if output not in specs:
            raise InvalidRequest(
                f"model {model.name!r} has no output {output!r}; expected one of {_listed(specs)}"
            )
        spec = specs[output]
        fields.append(Field(name=name, output=output, datatype=spec.datatype, dims=spec.dims))
    return fields


def asks(chunk: Chunk, bindings: Sequence[Binding], rows: int) -> tuple[list[Ask], dict[int, QInferError]]:
    """What to ask about a chunk: consecutive rows of the same shapes together, `rows` at most.

    Returns:
        What to ask, in the order of the rows, and why other rows, by place, cannot be asked about.
    """
    whole = None if chunk.faults else _whole(chunk, bindings)
    if whole is not None:
        every = Ask(places=range(chunk.rows), inputs=whole)
        return [every.part(begin, begin + rows) for begin in range(0, chunk.rows, rows)], {}
    faults: dict[int, QInferError] = dict(chunk.faults)
    single = {binding.spec.name: _rows(chunk, binding, faults) for binding in bindings}
    asked: list[Ask] = []
    group: list[int] = []
    for place in range(chunk.rows):
        if place in faults:
            continue
        if group and (len(group) == rows or not _alike(single, group[-1], place)):
            asked.append(_ask(single, group))
            group = []
        group.append(place)
    if group:
        asked.append(_ask(single, group))
    return asked, faults


def _whole(chunk: Chunk, bindings: Sequence[Binding]) -> dict[str, Array] | None:
    """All rows as one array an input, where they fit and are of one shape."""
    arrays: dict[str, Array] = {}
    for binding in bindings:
        spec = _part(binding)
        parts = [to_array(chunk.columns[name], spec) for name in binding.columns]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        arrays[binding.spec.name] = known[0] if len(known) == 1 else np.stack(known, axis=1)
    return arrays


def _rows(chunk: Chunk, binding: Binding, faults: dict[int, QInferError]) -> list[Array | None]:
    """An input row by row; what is wrong is added to the faults."""
    spec = _part(binding)
    columns = [to_rows(name, chunk.columns[name], spec) for name in binding.columns]
    rows: list[Array | None] = []
    for place, values in enumerate(zip(*columns, strict=True)):
        wrong = next((value for value in values if isinstance(value, InvalidRequest)), None)
        if wrong is not None:
            faults.setdefault(place, wrong)
            rows.append(None)
        else:
            arrays = [value for value in values if not isinstance(value, InvalidRequest)]
            rows.append(arrays[0] if len(arrays) == 1 else np.stack(arrays))
    return rows


def _part(binding: Binding) -> TensorRecord:
    """What one column of a binding has to hold."""
    spec = binding.spec
    return spec if len(binding.columns) == 1 else TensorRecord(spec.name, spec.datatype, ())


def _alike(single: Mapping[str, Sequence[Array | None]], one: int, other: int) -> bool:
    return all(_shape(rows[one]) == _shape(rows[other]) for rows in single.values())


def _shape(array: Array | None) -> tuple[int, ...] | None:
    return None if array is None else array.shape


def _ask(single: Mapping[str, Sequence[Array | None]], places: Sequence[int]) -> Ask:
    inputs = {}
    for name, rows in single.items():
        chosen = [array for place in places if (array := rows[place]) is not None]
        inputs[name] = np.stack(chosen)
    return Ask(places=list(places), inputs=inputs)


def _found(reader: Reader, model: ModelInfo, spec: TensorRecord, columns: Columns) -> Sequence[str] | None:
    """The column of an input's own name; a lone input's is the only one there is."""
    if spec.name in reader.columns:
        return [spec.name]
    others = [name for name in reader.columns if name not in columns.keep and name != FILE]
    required = [other for other in model.inputs if not other.optional]
    return others if len(others) == 1 and required == [spec] else None


def _require(reader: Reader, name: str) -> None:
    if name not in reader.columns:
        raise InvalidRequest(
            f"{reader.path}: has no column {name!r}; expected one of {_listed(reader.columns)}"
        )


def _check_width(spec: TensorRecord, columns: Sequence[str]) -> None:
    if len(columns) > 1 and (len(spec.dims) != 1 or spec.dims[0] not in (-1, len(columns))):
        raise InvalidRequest(
            f"input {spec.name!r} has dims {list(spec.dims)}; found {len(columns)} columns for it, which "
            f"make a vector of {len(columns)}"
        )


def _example(reader: Reader) -> str:
    return next(iter(reader.columns), "COLUMN")


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
