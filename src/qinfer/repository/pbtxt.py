"""Read `config.pbtxt`: a `ModelConfig` in protobuf's text format."""

from __future__ import annotations

import re
from itertools import chain

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from qinfer.proto import ModelConfig
from qinfer.repository.document import (
    Document,
    Fault,
    Position,
    an_integer,
    config_error,
    no_such_field,
    no_such_value,
    type_of,
)
from qinfer.repository.outline import Outline

_NO_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "(.*)"')
_NO_VALUE = re.compile(r'Enum type "([\w.]+)" has no value named (.*)')
_TWO_OF_ONE = re.compile(r'Field "(\w+)" is specified along with field "(\w+)"')
_EXPECTED = re.compile(r'Expected (string|"true" or "false"|".")')
_TOKEN = re.compile(r"""[\w.+-]+|"[^"]*"?|'[^']*'?|.""")


def read(text: str, name: str) -> Document:
    """Parse the text of a `config.pbtxt`; `name` is what errors call the file.

    Raises:
        ConfigError: it does not parse. The message says at which line, column and field.
    """
    message = ModelConfig()
    outline = Outline(text, type_of(message))
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        position = Position(error.GetLine() or 1, error.GetColumn() or 1)
        path = outline.path_at(position)
        raise config_error(
            name, [Fault(path, _explain(str(error), text, position, path), position)]
        ) from None
    return Document(name=name, message=message, positions=outline.positions)


def _explain(message: str, text: str, position: Position, path: str) -> str:
    """Protobuf's message in the words of every other error: what was found; what was expected."""
    line = dict(enumerate(text.split("\n"), 1)).get(position.line, "")
    # Protobuf puts the position and, as it is, the whole line before its message.
    message = message.removeprefix(f"{position.line}:{position.column} : ").removeprefix(f"'{line}': ")
    message = message.removeprefix("'': ").removesuffix(".").replace('"inference.', '"')
    if match := _NO_FIELD.match(message):
        return no_such_field(match[2], _messages()[match[1]])
    if match := _NO_VALUE.match(message):
        return no_such_value(match[2], _enums()[match[1]])
    if match := _TWO_OF_ONE.match(message):
        return f"given beside {match[2]}; expected one of the two"
    if "should not have multiple" in message:
        return "given twice; expected once"
    field = _field_at(path)
    token = _TOKEN.match(line, position.column - 1)
    found = token[0] if token else "the end"
    if message.startswith(("Couldn't parse integer", "Value out of range")) and field is not None:
        return f"found {found}; expected {an_integer(field)}"
    if message == 'Expected "}"':
        return 'the text ends within a message; expected "}"'
    if match := _EXPECTED.match(message):
        return f"found {found}; expected {match[1].replace('string', 'a string in quotes')}"
    if message.startswith("String missing ending quote"):
        return f"found {found}; expected a closing quote on the same line"
    if message.startswith("Expected identifier") or "extensions" in message:
        return f"found {found}; expected the name of a field"
    return f"{message[:1].lower()}{message[1:]}; expected protobuf text"


def _field_at(path: str) -> FieldDescriptor | None:
    message: Descriptor | None = type_of(ModelConfig)
    field = None
    for name in re.sub(r"\[\d+\]", "", path).split("."):
        field = None if message is None else message.fields_by_name.get(name)
        message = None if field is None else field.message_type
    return field


def _messages() -> dict[str, Descriptor]:
    """Every message type of the configuration, nested ones too, by full name within the package."""
    types: dict[str, Descriptor] = {}
    waiting = [*type_of(ModelConfig).file.message_types_by_name.values()]
    while waiting:
        message = waiting.pop()
        types[message.full_name.removeprefix("inference.")] = message
        waiting += message.nested_types
    return types


def _enums() -> dict[str, EnumDescriptor]:
    """Every enum of the configuration by full name within the package."""
    nested = chain.from_iterable(message.enum_types for message in _messages().values())
    top = type_of(ModelConfig).file.enum_types_by_name.values()
    return {enum.full_name.removeprefix("inference."): enum for enum in chain(top, nested)}
