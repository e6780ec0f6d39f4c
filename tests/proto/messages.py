"""Messages with arbitrary content."""

from __future__ import annotations

from random import Random
from typing import Any

from google.protobuf.message import Message

from qinfer.repository.document import integer_range


def fill(random: Random, message: Message) -> None:
    """Set about half of the fields, found by the descriptor, so that none is forgotten."""
    for field in message.DESCRIPTOR.fields:
        if random.random() < 0.5:
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key_field, value_field = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            if value_field.message_type is not None:
                fill(random, value[scalar(random, key_field)])
            else:
                value[scalar(random, key_field)] = scalar(random, value_field)
        elif field.message_type is not None:
            fill(random, value.add() if field.is_repeated else value)
        elif field.is_repeated:
            value.extend(scalar(random, field) for _ in range(random.randrange(3)))
        else:
            setattr(message, field.name, scalar(random, field))


def scalar(random: Random, field: Any) -> Any:
    if field.enum_type is not None:
        return random.choice([*field.enum_type.values_by_number])
    if field.type in (field.TYPE_INT32, field.TYPE_INT64, field.TYPE_UINT32, field.TYPE_UINT64):
        numbers = integer_range(field)
        return random.choice([numbers[0], numbers[-1], random.choice(numbers[:1000])])
    return {
        field.TYPE_BOOL: random.random() < 0.5,
        field.TYPE_BYTES: random.randbytes(5),
        field.TYPE_STRING: random.choice(["", "a", "ü\n\0"]),
        field.TYPE_FLOAT: random.choice([0.0, -1.5, float("inf")]),
        field.TYPE_DOUBLE: random.choice([0.0, 0.1, 1e300]),
    }[field.type]
