"""How a record says which schema it is of.

A byte 0, the schema's id as 4 bytes big endian, and for Protobuf the path to the message within its file: the
number of indexes and the indexes, as zigzag varints; a single 0 stands for the first message.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

MAGIC = 0
MAX_DEPTH = 32
"""Most indexes of a message's path."""

_HEADER = Struct(">BI")
HEADER_BYTES = _HEADER.size
_MAX_VARINT = 5  # bytes of a 32-bit number


def schema_id(value: bytes) -> int:
    """The id of a record's schema.

    Raises:
        ValueError: the record does not begin with one.
    """
    if len(value) < HEADER_BYTES:
        raise ValueError(
            f"found {len(value)} bytes; expected at least {HEADER_BYTES}, with the id of a schema"
        )
    magic, found = _HEADER.unpack_from(value)
    if magic != MAGIC:
        raise ValueError(f"begins with byte {magic}; expected {MAGIC} and the id of a schema")
    return int(found)


def header(schema: int) -> bytes:
    """What a record of a schema begins with."""
    return _HEADER.pack(MAGIC, schema)


def read_indexes(value: bytes, offset: int) -> tuple[tuple[int, ...], int]:
    """The path of a Protobuf message, and where the message begins.

    Raises:
        ValueError: there is none.
    """
    count, offset = _varint(value, offset)
    if count == 0:
        return (0,), offset
    if not 0 < count <= MAX_DEPTH:
        raise ValueError(f"found {count} message indexes; expected 1 to {MAX_DEPTH}")
    indexes: list[int] = []
    for _ in range(count):
        index, offset = _varint(value, offset)
        indexes.append(index)
    return tuple(indexes), offset


def write_indexes(indexes: Sequence[int]) -> bytes:
    """The path of a Protobuf message."""
    if tuple(indexes) == (0,):
        return b"\0"
    return b"".join(_zigzag(number) for number in (len(indexes), *indexes))


def _varint(value: bytes, offset: int) -> tuple[int, int]:
    number = 0
    for place, byte in enumerate(value[offset : offset + _MAX_VARINT]):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), offset + place + 1
    raise ValueError("ends within its message indexes, or they are too long; expected varints")


def _zigzag(number: int) -> bytes:
    number = number * 2 if number >= 0 else -number * 2 - 1
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
