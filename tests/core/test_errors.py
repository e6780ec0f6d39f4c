from __future__ import annotations

import pytest

from qinfer import errors
from qinfer.errors import (
    BY_REASON,
    BusUnavailable,
    ConnectionLost,
    GrpcStatus,
    InternalError,
    QInferError,
    QueueFull,
    Retry,
    from_reason,
)

CLASSES = [cls for cls in errors._subclasses(QInferError) if cls.__module__ == errors.__name__]


def test_reasons_are_unique_and_machine_readable() -> None:
    own = [cls for cls in CLASSES if "reason" in vars(cls)]
    reasons = [cls.reason for cls in own]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.isidentifier() and reason == reason.lower() for reason in reasons)
    # A class without a reason of its own could not be told from its parent on the other side.
    assert [cls for cls in CLASSES if cls not in own] == [InternalError]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_says_what_to_answer(cls: type[QInferError]) -> None:
    assert 400 <= cls.http_status <= 599
    assert isinstance(cls.grpc_status, GrpcStatus)
    assert isinstance(cls.retry, Retry)
    assert cls.__doc__


@pytest.mark.parametrize("cls", CLASSES)
def test_status_codes_agree_with_each_other(cls: type[QInferError]) -> None:
    """The two fronts say the same: what is the caller's fault on one is so on the other."""
    callers = {
        GrpcStatus.INVALID_ARGUMENT: {400, 422},
        GrpcStatus.UNAUTHENTICATED: {401},
        GrpcStatus.PERMISSION_DENIED: {403},
        GrpcStatus.NOT_FOUND: {404},
        GrpcStatus.RESOURCE_EXHAUSTED: {413, 429, 431},
        GrpcStatus.UNIMPLEMENTED: {405, 415, 501},
        GrpcStatus.CANCELLED: {410, 499},
        GrpcStatus.INTERNAL: {500},
        GrpcStatus.UNAVAILABLE: {503},
        GrpcStatus.DEADLINE_EXCEEDED: {504},
    }
    assert cls.http_status in callers[cls.grpc_status]
    if cls.http_status in (429, 503):
        # What nobody confirmed may have been taken all the same, and a worker may have run it.
        unconfirmed = cls in (BusUnavailable, ConnectionLost)
        assert cls.retry is (Retry.MAYBE if unconfirmed else Retry.LATER)
    if 400 <= cls.http_status < 429:
        assert cls.retry is Retry.NEVER


@pytest.mark.parametrize("reason", sorted(BY_REASON))
def test_errors_are_rebuilt_from_their_reason(reason: str) -> None:
    error = from_reason(reason, "what, where", 2.0)
    assert (error.reason, error.message, error.retry_after, str(error)) == (
        reason,
        "what, where",
        2.0,
        "what, where",
    )


def test_an_unknown_reason_is_an_internal_error() -> None:
    assert type(from_reason("later", "x")) is InternalError


def test_retry_after_is_optional() -> None:
    assert QueueFull("full").retry_after is None
