"""MessagePack. Maps have texts as keys; extension types other than timestamps are refused."""

from __future__ import annotations

from typing import Any

import msgspec

from qinfer_workers.kafka.formats.base import Reader, Setup, Writer
from qinfer_workers.kafka.formats.documents import DocumentReader, DocumentWriter, Malformed


def reader(setup: Setup) -> Reader:
    """What reads it."""
    return MsgpackReader(setup)


def writer(setup: Setup) -> Writer:
    """What writes it."""
    return MsgpackWriter(setup)


def _no_extension(code: int, data: memoryview) -> Any:
    raise ValueError(f"extension type {code} of {len(data)} bytes")


_decode = msgspec.msgpack.Decoder(ext_hook=_no_extension).decode
_encode = msgspec.msgpack.Encoder().encode


class MsgpackReader(DocumentReader):
    """Reads documents whole."""

    def parse(self, value: bytes) -> Any:
        """The document."""
        try:
            return _decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
            raise Malformed(f"not MessagePack: {error}") from None


class MsgpackWriter(DocumentWriter):
    """Writes documents."""

    def render(self, document: dict[str, Any]) -> bytes:
        """The value of a document."""
        return _encode(document)
