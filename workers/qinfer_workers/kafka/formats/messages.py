"""Protobuf messages as mappings, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from qinfer_workers.kafka.formats.protobuf_schema import is_map


def plain(message: Message) -> dict[str, Any]:
    """A message as a mapping. As deep as the message, which the parser bounds."""
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if not field.is_repeated and field.has_presence and not message.HasField(field.name):
            continue
        fields[field.name] = _plain(field, getattr(message, field.name))
    return fields


def _plain(field: Any, value: Any) -> Any:
    if is_map(field):
        inner = field.message_type.fields_by_name["value"].message_type
        return {str(key): value[key] if inner is None else plain(value[key]) for key in value}
    if field.message_type is None:
        return list(value) if field.is_repeated else value
    return [plain(part) for part in value] if field.is_repeated else plain(value)


def fill(message: Message, document: Mapping[str, Any]) -> None:
    """Set the fields of a message; those it does not have are left out, and so is what is None.

    Raises:
        ValueError, TypeError: a value does not fit its field.
    """
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in document.items():
        field = fields.get(name)
        if field is None or value is None:
            continue
        try:
            _set(message, field, value)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"field {name}: {error}") from None


def _set(message: Message, field: Any, value: Any) -> None:
    if is_map(field):
        _set_map(getattr(message, field.name), field, value)
    elif field.message_type is None and not field.is_repeated:
        setattr(message, field.name, _scalar(field, value))
    elif field.message_type is None:
        getattr(message, field.name).extend([_scalar(field, element) for element in _list(value)])
    elif field.is_repeated:
        for element in _list(value):
            fill(getattr(message, field.name).add(), _mapping(element))
    else:
        inner = getattr(message, field.name)
        inner.SetInParent()
        fill(inner, _mapping(value))


def _set_map(entries: Any, field: Any, value: Any) -> None:
    key_field = field.message_type.fields_by_name["key"]
    value_field = field.message_type.fields_by_name["value"]
    for key, inner in _mapping(value).items():
        typed = _key(key_field, key)
        if value_field.message_type is not None:
            fill(entries[typed], _mapping(inner))
        else:
            entries[typed] = _scalar(value_field, inner)


def _key(field: Any, key: str) -> str | int | bool:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return key
    return key.lower() == "true" if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else int(key)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES and isinstance(value, str):
        return value.encode()
    if isinstance(value, bool) != (field.type == FieldDescriptor.TYPE_BOOL):
        raise TypeError(f"found {value!r}; expected another type"[:200])
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"found {type(value).__name__}; expected a list")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"found {type(value).__name__}; expected a mapping")
    return value
