"""Idempotency keys, and what they become on the bus: "Asking again" in `docs/protocol.md`."""

from __future__ import annotations

import asyncio
from hashlib import sha256

import msgspec

from qinfer.errors import InvalidRequest, KeyReused
from qinfer.message import Request, Response

MAX_KEY = 255
"""Most characters of a key."""

_OFF_LOOP_BYTES = 256 * 1024
_encode = msgspec.msgpack.Encoder(order="sorted").encode


def check_key(text: str) -> str:
    """Return a key that may be one.

    Raises:
        InvalidRequest: it is empty, too long, or has other characters than printable ASCII.
    """
    if not 1 <= len(text) <= MAX_KEY or not (text.isascii() and text.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key {text[:40]!r} of {len(text)} characters; expected 1 to {MAX_KEY} printable "
            "ASCII characters"
        )
    return text


def name_of(tenant: str, model: str, version: str, key: str) -> str:
    """The name an answer is kept under: 64 hexadecimal digits. `version` is the one asked for, maybe ""."""
    return sha256(_encode([tenant, model, version, key])).hexdigest()


async def fingerprint(request: Request) -> str:
    """A hash of what a request asks: inputs, wanted outputs and parameters. 64 hexadecimal digits."""
    if sum([len(tensor.data) for tensor in request.inputs]) <= _OFF_LOOP_BYTES:
        return _fingerprint(request)
    return await asyncio.to_thread(_fingerprint, request)  # hashing lets others run


def _fingerprint(request: Request) -> str:
    inputs = [[tensor.name, tensor.datatype, tensor.shape, len(tensor.data)] for tensor in request.inputs]
    digest = sha256(_encode([inputs, request.outputs, request.parameters]))
    for tensor in request.inputs:
        digest.update(tensor.data)
    return digest.hexdigest()


def check_fingerprint(request: Request, kept: Response) -> None:
    """Make sure that a kept response answers this request.

    Raises:
        KeyReused: it answers another.
    """
    if kept.fingerprint != request.fingerprint:
        raise KeyReused(
            "this idempotency key was used before, with another request; expected the same inputs, outputs "
            "and parameters, or a new key"
        )
