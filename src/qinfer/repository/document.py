"""A configuration file that has been read: the message, and where in the file each of its fields is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from qinfer.errors import ConfigError
from qinfer.proto import ModelConfig

MAX_FAULTS = 20
"""Faults of one file that an error tells of one by one."""

MAX_LINE = 1200
"""Most characters of one line of an error."""


class Position(NamedTuple):
    """A place in a text; both from 1."""

    line: int
    column: int


class Fault(NamedTuple):
    """One thing wrong with a configuration.

    Attributes:
        field: path of the field, for instance "input[0].dims"; "" for the file as a whole.
        text: what was found; what was expected.
        position: where it is, if the path does not tell.
    """

    field: str
    text: str
    position: Position | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A configuration file.

    Attributes:
        name: the file as error messages call it; where there is no file, the model's directory.
        message: what it says.
        positions: where each field is that the file gives, by path.
    """

    name: str
    message: ModelConfig = field(default_factory=ModelConfig)
    positions: Mapping[str, Position] = field(default_factory=dict)

    def error(self, faults: Iterable[Fault]) -> ConfigError:
        """One error that tells of all faults, a line each, in the order of the file."""
        placed = [fault._replace(position=self._position(fault)) for fault in faults]
        return config_error(self.name, sorted(placed, key=lambda fault: fault.position or Position(0, 0)))

    def _position(self, fault: Fault) -> Position | None:
        """Where a field is, or else the innermost given field around it."""
        path = fault.field
        while path and path not in self.positions:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return fault.position or self.positions.get(path)


def config_error(name: str, faults: Iterable[Fault]) -> ConfigError:
    """The error for faults in file `name`: a line `FILE: LINE:COLUMN: FIELD: what; expected what`."""
    faults = [*faults]
    lines = []
    for fault in faults[:MAX_FAULTS]:
        where = "" if fault.position is None else f"{fault.position.line}:{fault.position.column}: "
        lines.append(_line(f"{name}: {where}{fault.field and fault.field + ': '}{fault.text}"))
    if len(faults) > MAX_FAULTS:
        lines.append(f"{name}: and {len(faults) - MAX_FAULTS} more")
    return ConfigError("\n".join(lines))


def _line(text: str) -> str:
    """Text in which what a file holds can neither break the line, nor drive a terminal, nor be endless."""
    text = text if len(text) <= MAX_LINE else text[:MAX_LINE] + "..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def type_of(message: Message | type[Message]) -> Descriptor:
    """The descriptor of a message's type."""
    return message.DESCRIPTOR  # type: ignore[return-value]  # the C type; the stubs do not know it is the same


def join(path: str, name: str) -> str:
    """Path of the field `name` of the message at `path`."""
    return f"{path}.{name}" if path and name else path or name


def no_such_field(name: str, message: Descriptor) -> str:
    """The text for a field that a message does not have."""
    return f"no such field in {message.name}; expected {_nearest(name, message.fields_by_name)}"


def no_such_value(name: str, enum: EnumDescriptor) -> str:
    """The text for a name that is no value of an enum."""
    return f"{name} is no value of {enum.name}; expected {_nearest(name, enum.values_by_name)}"


def integer_range(field: FieldDescriptor) -> range:
    """The integers that an integer field can hold."""
    unsigned = field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    wide = field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
    size = 2 ** (64 if wide else 32)
    return range(size) if unsigned else range(-size // 2, size // 2)


def an_integer(field: FieldDescriptor) -> str:
    """What an integer field expects, in words."""
    numbers = integer_range(field)
    return f"an integer from {numbers[0]} to {numbers[-1]}"


def _nearest(name: str, names: Iterable[str]) -> str:
    names = [*names]
    # FP32 or cpu for TYPE_FP32 or KIND_CPU is the commonest slip of all.
    close = [full for full in names if full.upper().endswith(f"_{name.upper()}")]
    close = close if len(close) == 1 else get_close_matches(name, names, n=1, cutoff=0.75)
    return f"{close[0]} (or another of {len(names)})" if close else f"one of {', '.join(names)}"
