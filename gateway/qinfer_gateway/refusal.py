"""What an error tells beside its status and message, under the same names on every way in."""

from __future__ import annotations

from math import ceil

from qinfer.errors import QInferError, QueueFull
from qinfer.headers import POSITION, REASON, RETRY_AFTER, WAIT

__all__ = ["POSITION", "REASON", "RETRY_AFTER", "WAIT", "metadata", "whole_seconds"]


def metadata(error: QInferError) -> tuple[tuple[str, str], ...]:
    """Names and values: headers of an HTTP response, trailing metadata of an RPC."""
    told = [(REASON, error.reason)]
    if error.retry_after is not None:
        told.append((RETRY_AFTER, whole_seconds(error.retry_after)))
    if isinstance(error, QueueFull):
        if error.position is not None:
            told.append((POSITION, str(error.position)))
        if error.estimated_wait is not None:
            told.append((WAIT, f"{error.estimated_wait:.3f}"))
    return tuple(told)


def whole_seconds(seconds: float) -> str:
    """As Retry-After has them: rounded up, at least one."""
    return str(max(1, ceil(seconds)))
