"""Read `config.yaml`: the fields of `config.pbtxt` under the same names.

The message's own types decide what a scalar is: `name: on` is the string "on" and `level: 010` is no octal
number, whatever YAML makes of them elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from qinfer.proto import ModelConfig
from qinfer.repository.document import (
    Document,
    Fault,
    Position,
    an_integer,
    config_error,
    integer_range,
    join,
    no_such_field,
    no_such_value,
    type_of,
)

MAX_NODES = 100_000
"""Most values a file may have once its aliases are followed, which can repeat each other without end."""

_INTEGERS = (
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
)
_BOOLEANS = {"true": True, "false": False}
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")


class _Wrong(Exception):
    """A value that does not fit its field."""


def read(text: str, name: str) -> Document:
    """Parse the text of a `config.yaml`; `name` is what errors call the file.

    Raises:
        ConfigError: it is no YAML, or does not fit `ModelConfig`. The message has a line for each fault,
            which says at which line, column and field.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = None if mark is None else Position(mark.line + 1, mark.column + 1)
        raise config_error(name, [Fault("", f"{error.problem}; expected YAML", position)]) from None
    except yaml.YAMLError as error:
        raise config_error(name, [Fault("", f"{error}; expected YAML".replace("\n", " "))]) from None
    except RecursionError:
        raise config_error(name, [Fault("", "nested too deeply; expected a model configuration")]) from None
    message = ModelConfig()
    walk = _Walk(name)
    if root is not None:
        walk.message(root, message, "")
    document = Document(name=name, message=message, positions=walk.positions)
    if walk.faults:
        raise document.error(walk.faults)
    return document


class _Walk:
    """Moves values from YAML nodes into a message, noting faults and where each field is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.faults: list[Fault] = []
        self.positions: dict[str, Position] = {}
        self._nodes = 0

    def message(self, node: yaml.Node, message: Message, path: str) -> None:
        self._count()
        given: set[str] = set()
        fields = type_of(message).fields_by_name
        for key, value in self._items(node, path):
            name = str(key.value)
            inner = join(path, name)
            field = fields.get(name)
            if field is None:
                self._fault(inner, no_such_field(name, type_of(message)), key)
            elif name in given:
                self._fault(inner, "given twice; expected once", key)
            elif other := _rival(field, given):
                self._fault(inner, f"given beside {other}; expected one of the two", key)
            else:
                given.add(name)
                self.positions[inner] = _position(key)
                self._field(value, message, field, inner)

    def _field(self, node: yaml.Node, message: Message, field: FieldDescriptor, path: str) -> None:
        if not field.is_repeated:
            self._single(node, message, field, path)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._map(node, getattr(message, field.name), field.message_type, path)
        elif not isinstance(node, yaml.SequenceNode):
            self._fault(path, f"found {_found(node)}; expected a list", node)
        else:
            for index, element in enumerate(node.value):
                self._element(element, message, field, f"{path}[{index}]")

    def _single(self, node: yaml.Node, message: Message, field: FieldDescriptor, path: str) -> None:
        if field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            self.message(node, inner, path)
            return
        try:
            setattr(message, field.name, self._scalar(node, field))
        except _Wrong as wrong:
            self._fault(path, str(wrong), node)

    def _element(self, node: yaml.Node, message: Message, field: FieldDescriptor, path: str) -> None:
        self.positions[path] = _position(node)
        elements = getattr(message, field.name)
        if field.message_type is not None:
            self.message(node, elements.add(), path)
            return
        try:
            elements.append(self._scalar(node, field))
        except _Wrong as wrong:
            self._fault(path, str(wrong), node)

    def _map(self, node: yaml.Node, entries: Any, entry: Descriptor, path: str) -> None:
        key_field, value_field = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for key, value in self._items(node, path):
            inner = f"{path}[{key.value}]"
            self.positions[inner] = _position(key)
            try:
                name = self._scalar(key, key_field)
                if name in entries:
                    self._fault(inner, "given twice; expected once", key)
                elif value_field.message_type is not None:
                    self.message(value, entries[name], inner)
                else:
                    entries[name] = self._scalar(value, value_field)
            except _Wrong as wrong:
                self._fault(inner, str(wrong), value)

    def _items(self, node: yaml.Node, path: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            hint = ", {} for one without fields" if _is_null(node) else ""
            self._fault(path, f"found {_found(node)}; expected a mapping{hint}", node)
            return
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield key, value
            else:
                self._fault(path, f"found {_found(key)} as a key; expected the name of a field", key)

    def _scalar(self, node: yaml.Node, field: FieldDescriptor) -> str | int | float | bool:
        self._count()
        if not isinstance(node, yaml.ScalarNode) or _is_null(node):
            raise _Wrong(f"found {_found(node)}; expected {_expected(field)}")
        text = str(node.value)
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return text
        if field.enum_type is not None:
            value = field.enum_type.values_by_name.get(text)
            if value is None:
                raise _Wrong(no_such_value(text, field.enum_type))
            return value.number
        number = _number(text, field)
        if number is None:
            raise _Wrong(f"found {text}; expected {_expected(field)}")
        return number

    def _count(self) -> None:
        """Stop before all values are made: with aliases, a few lines can stand for any number of them."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            fault = Fault("", f"more than {MAX_NODES} values; expected a model configuration")
            raise config_error(self._name, [fault])

    def _fault(self, path: str, text: str, node: yaml.Node) -> None:
        self.faults.append(Fault(path, text, _position(node)))


def _number(text: str, field: FieldDescriptor) -> int | float | bool | None:
    """The value of a number or boolean field; None when `text` is none it can hold."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _BOOLEANS.get(text.lower())
    try:
        if field.cpp_type in _INTEGERS:
            value = int(text) if _INTEGER.fullmatch(text) else None
            return value if value is not None and value in integer_range(field) else None
        return float(text)
    except ValueError:
        return None


def _expected(field: FieldDescriptor) -> str:
    if field.cpp_type in _INTEGERS:
        return an_integer(field)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true or false"
    if field.enum_type is not None:
        return f"one of {', '.join(field.enum_type.values_by_name)}"
    return "a string" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else "a number"


def _rival(field: FieldDescriptor, given: set[str]) -> str | None:
    """A field already given of which only one can be given together with this one."""
    group = field.containing_oneof
    names = [] if group is None else [member.name for member in group.fields]
    return next((name for name in names if name in given), None)


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if _is_null(node) else str(node.value)


def _position(node: yaml.Node) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)
