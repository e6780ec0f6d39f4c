"""Raw tensors: a value is the elements of one row of one tensor, little endian, row-major.

BYTES of one element are the value itself; of several, each has its length before it in 4 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from qinfer.datatypes import DATATYPES, to_raw
from qinfer_workers.kafka.columns import RawColumn
from qinfer_workers.kafka.contract import BadRecord
from qinfer_workers.kafka.formats.base import Parsed, Reader, Setup, Writer
from qinfer_workers.kafka.outputs import OutputColumn
from qinfer_workers.kafka.settings import Raw


def reader(setup: Setup) -> Reader:
    """What reads it."""
    return RawReader(setup)


def writer(setup: Setup) -> Writer:
    """What writes it.

    Raises:
        ValueError: a value cannot hold what the pipeline wants to write.
    """
    return RawWriter(setup)


class RawReader(Reader):
    """Hands values on: what they are follows from the input."""

    def __init__(self, setup: Setup) -> None:
        datatype = cast(Raw, setup.format).datatype
        if datatype and datatype not in DATATYPES:
            raise ValueError(f"found datatype {datatype}; expected one of {', '.join(DATATYPES)}")
        if any(path.steps for path in setup.paths):
            raise ValueError("raw values have no fields; expected the path $")
        if setup.keep != "none":
            raise ValueError("raw values have no fields; expected keep: none")
        self._paths = setup.paths
        self.column = type("TypedColumn", (RawColumn,), {"datatype": datatype})

    def read(self, places: Sequence[int], values: Sequence[bytes]) -> Parsed:
        """The values themselves."""
        return Parsed([*places], {path.text: values for path in self._paths})


class RawWriter(Writer):
    """Writes the elements of one output."""

    def __init__(self, setup: Setup) -> None:
        if len(setup.fields) != 1 or setup.keep != "none":
            raise ValueError(
                f"a raw value holds one tensor and nothing else; found {len(setup.fields)} fields, keep: "
                f"{setup.keep}; expected one field and keep: none, or the format frame"
            )
        self._single = setup.fields[0].single

    def write(
        self,
        columns: Sequence[OutputColumn],
        kept: Sequence[Any],  # noqa: ARG002 (there is none)
        count: int,  # noqa: ARG002
    ) -> list[bytes | BadRecord]:
        """The elements of each record."""
        (column,) = columns
        datatype = column.field.datatype
        stacked = column.stacked
        if stacked is not None and DATATYPES[datatype].itemsize and not column.bad and stacked.size:
            raw = bytes(to_raw(datatype, stacked))
            size = len(raw) // len(stacked)
            return [raw[start : start + size] for start in range(0, len(raw), size)]
        return [self._one(column, place, array) for place, array in enumerate(column.arrays())]

    def _one(self, column: OutputColumn, place: int, array: Any) -> bytes | BadRecord:
        if place in column.bad:
            return BadRecord("encode", column.bad[place])
        if column.field.datatype == "BYTES" and array.size == 1 and self._single:
            element = array.reshape(-1)[0]
            return element if isinstance(element, bytes) else str(element).encode()
        return bytes(to_raw(column.field.datatype, array))
