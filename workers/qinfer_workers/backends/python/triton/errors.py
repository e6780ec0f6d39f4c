"""Errors as models give them, and what they are in qinfer."""

from __future__ import annotations

from typing import ClassVar

from qinfer.errors import (
    Cancelled,
    InvalidRequest,
    ModelFailed,
    NotFound,
    QInferError,
    Unavailable,
    Unsupported,
)


class TritonModelException(Exception):
    """Raised by models, and by this module where a model misuses it."""


class TritonError:
    """Why one request has no outputs.

    Args:
        message: for a person to read.
        code: one of the codes below.
    """

    UNKNOWN: ClassVar[int] = 0
    INTERNAL: ClassVar[int] = 1
    NOT_FOUND: ClassVar[int] = 2
    INVALID_ARG: ClassVar[int] = 3
    UNAVAILABLE: ClassVar[int] = 4
    UNSUPPORTED: ClassVar[int] = 5
    ALREADY_EXISTS: ClassVar[int] = 6
    CANCELLED: ClassVar[int] = 7

    __slots__ = ("_code", "_message")

    def __init__(self, message: object, code: int = INTERNAL) -> None:
        self._message = str(message)
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code

    def __repr__(self) -> str:
        return f"TritonError({self._message!r}, code={self._code})"

    def to_qinfer(self) -> QInferError:
        """The error the member gets; the HTTP and gRPC status are those Triton answers with."""
        return _CLASSES.get(self._code, ModelFailed)(self._message)


_CLASSES: dict[int, type[QInferError]] = {
    TritonError.UNKNOWN: ModelFailed,
    TritonError.INTERNAL: ModelFailed,
    TritonError.NOT_FOUND: NotFound,
    TritonError.INVALID_ARG: InvalidRequest,
    TritonError.UNAVAILABLE: Unavailable,
    TritonError.UNSUPPORTED: Unsupported,
    TritonError.ALREADY_EXISTS: InvalidRequest,
    TritonError.CANCELLED: Cancelled,
}
