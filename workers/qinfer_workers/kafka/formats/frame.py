"""Frames of the protocol: a value is a frame with one request, and becomes a frame with one response.

The model that the frame names, its deadline and where its answer would go are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qinfer.datatypes import Array
from qinfer.errors import InvalidRequest, MalformedMessage, QInferError
from qinfer.message import (
    PROTOCOL_VERSION,
    BatchInfo,
    Response,
    ResponseFrame,
    Tensor,
    decode_request_frame,
    encode,
)
from qinfer.scoring.columns import MISSING
from qinfer_workers.kafka.columns import TableColumn
from qinfer_workers.kafka.contract import BadRecord
from qinfer_workers.kafka.formats.base import Parsed, Reader, Setup, Writer
from qinfer_workers.kafka.outputs import OutputColumn


def reader(setup: Setup) -> Reader:
    """What reads it."""
    return FrameReader(setup)


def writer(setup: Setup) -> Writer:
    """What writes it.

    Raises:
        ValueError: what is kept are no tensors.
    """
    return FrameWriter(setup)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a response has of its request: the correlation number, and tensors as they are."""

    id: int
    tensors: list[Tensor]


class FrameReader(Reader):
    """Reads tensors, whose first dimension is the rows where the model has a batch dimension."""

    column = TableColumn
    tabular = True

    def __init__(self, setup: Setup) -> None:
        if any(path.name is None for path in setup.paths):
            raise ValueError("frames hold tensors; expected the names of tensors as fields")
        self._names = {path.text: str(path.name) for path in setup.paths}
        self._keep = setup.keep
        self._verbatim = setup.verbatim

    def read(self, places: Sequence[int], values: Sequence[bytes]) -> Parsed:
        """Take frames apart."""
        columns: dict[str, list[Any]] = {text: [] for text in self._names}
        parsed = Parsed([], columns, kept=[], counts=[])
        kept: list[Any] = []
        counts: list[int] = []
        for place, value in zip(places, values, strict=True):
            try:
                request = _request(value)
                found = {tensor.name: tensor.numpy() for tensor in request.inputs if self._wants(tensor.name)}
                rows = _rows([found[name] for name in self._names.values() if name in found])
            except MalformedMessage as error:
                parsed.bad[place] = BadRecord("malformed", error.message)
            except QInferError as error:
                parsed.bad[place] = BadRecord("mapping", error.message)
            else:
                parsed.places.append(place)
                counts.append(rows)
                for text, name in self._names.items():
                    columns[text].append(found.get(name, MISSING))
                kept.append(self._kept(request.id, request.inputs, found))
        parsed.kept = kept if self._verbatim or self._keep != "none" else ()
        parsed.counts = counts
        return parsed

    def _wants(self, name: str) -> bool:
        """Whether a tensor has to become an array."""
        return name in self._names.values() or (not self._verbatim and self._keeps(name))

    def _keeps(self, name: str) -> bool:
        return self._keep == "all" or name in self._keep

    def _kept(self, number: int, tensors: Sequence[Tensor], found: dict[str, Array]) -> Any:
        if self._verbatim:
            return _Kept(
                number, [tensor for tensor in tensors if self._keep != "none" and self._keeps(tensor.name)]
            )
        return {name: array for name, array in found.items() if self._keep != "none" and self._keeps(name)}


def _request(value: bytes) -> Any:
    frame = decode_request_frame(value)
    if len(frame.requests) != 1:
        raise MalformedMessage(f"a frame of {len(frame.requests)} requests; expected one")
    (request,) = frame.requests
    if request.claim:
        raise InvalidRequest("a request whose tensors are stored elsewhere (claim); expected them in it")
    return request


def _rows(arrays: Sequence[Array]) -> int:
    rows = next((len(array) for array in arrays if array.ndim), 1)
    if not rows:
        raise InvalidRequest("tensors without rows; expected at least one")
    return rows


class FrameWriter(Writer):
    """Writes responses."""

    def __init__(self, setup: Setup) -> None:
        if setup.keep != "none" and not setup.tabular:
            raise ValueError("frames hold tensors, and the input has none; expected keep: none")
        self._names = {field.name for field in setup.fields}

    def write(
        self, columns: Sequence[OutputColumn], kept: Sequence[Any], count: int
    ) -> list[bytes | BadRecord]:
        """Make frames."""
        arrays = [column.arrays() for column in columns]
        bad = {place: why for column in columns for place, why in column.bad.items()}
        written: list[bytes | BadRecord] = []
        for place in range(count):
            if place in bad:
                written.append(BadRecord("encode", bad[place]))
                continue
            number, tensors = self._of(kept[place] if kept else None)
            tensors += [
                Tensor.from_numpy(column.field.name, array[place], column.field.datatype)
                for column, array in zip(columns, arrays, strict=True)
            ]
            response = Response(number, 1, None, tensors)
            written.append(encode(ResponseFrame(PROTOCOL_VERSION, "", "", BatchInfo(), [response])))
        return written

    def _of(self, kept: Any) -> tuple[int, list[Tensor]]:
        """The number and the tensors of the request; outputs take the place of those of their names."""
        if isinstance(kept, _Kept):
            return kept.id, [tensor for tensor in kept.tensors if tensor.name not in self._names]
        tensors = [Tensor.from_numpy(name, array) for name, array in (kept or {}).items()]
        return 0, [tensor for tensor in tensors if tensor.name not in self._names]
