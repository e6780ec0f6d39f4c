"""One tree of errors.

Each class carries everything a transport needs to answer with it: a machine-readable `reason`, the HTTP
status, the gRPC status and whether a retry can help. Transports never map errors by themselves.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import ClassVar


class GrpcStatus(IntEnum):
    """The gRPC status codes qinfer uses (https://grpc.io/docs/guides/status-codes/)."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Retry(StrEnum):
    """What a caller may do after an error."""

    NEVER = "never"  # the same request will fail again
    LATER = "later"  # safe, after a pause
    MAYBE = "maybe"  # the work may have been done: safe only for idempotent work


class QInferError(Exception):
    """Base of all errors of qinfer.

    Args:
        message: what was wrong, what was expected and where, for a person to read.
        retry_after: seconds after which a retry is worth trying, where that is known.
    """

    reason: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[GrpcStatus] = GrpcStatus.INTERNAL
    retry: ClassVar[Retry] = Retry.MAYBE

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class InternalError(QInferError):
    """A fault of qinfer itself."""


class InvalidRequest(QInferError):
    """The request is malformed or does not fit the model's signature."""

    reason = "invalid_request"
    http_status = 400
    grpc_status = GrpcStatus.INVALID_ARGUMENT
    retry = Retry.NEVER


class MalformedMessage(InvalidRequest):
    """Bytes on the bus that are not a frame of this protocol."""

    reason = "malformed_message"


class UnsupportedVersion(InvalidRequest):
    """A frame of a protocol version this side does not speak."""

    reason = "unsupported_version"


class KeyReused(InvalidRequest):
    """An idempotency key that was used before, with another request."""

    reason = "key_reused"
    http_status = 422


class Unauthenticated(QInferError):
    """No credentials, or none that are known here."""

    reason = "unauthenticated"
    http_status = 401
    grpc_status = GrpcStatus.UNAUTHENTICATED
    retry = Retry.NEVER


class Forbidden(QInferError):
    """The credentials do not allow this."""

    reason = "forbidden"
    http_status = 403
    grpc_status = GrpcStatus.PERMISSION_DENIED
    retry = Retry.NEVER


class NotFound(QInferError):
    """What the request names is not there: no such path, or the model itself says so."""

    reason = "not_found"
    http_status = 404
    grpc_status = GrpcStatus.NOT_FOUND
    retry = Retry.NEVER


class ModelNotFound(QInferError):
    """No such model, or no such version of it."""

    reason = "model_not_found"
    http_status = 404
    grpc_status = GrpcStatus.NOT_FOUND
    retry = Retry.NEVER


class JobNotFound(NotFound):
    """No such job: there never was, it is another's, or it ended so long ago that it is forgotten."""

    reason = "job_not_found"


class JobCancelled(QInferError):
    """The job was cancelled: it has no result."""

    reason = "job_cancelled"
    http_status = 410
    grpc_status = GrpcStatus.CANCELLED
    retry = Retry.NEVER


class PayloadTooLarge(QInferError):
    """The request or its answer is above a configured limit."""

    reason = "payload_too_large"
    http_status = 413
    grpc_status = GrpcStatus.RESOURCE_EXHAUSTED
    retry = Retry.NEVER


class HeadTooLarge(PayloadTooLarge):
    """The line and headers of an HTTP request are above their limit."""

    reason = "head_too_large"
    http_status = 431


class UnsupportedEncoding(QInferError):
    """A Content-Encoding this server does not decode."""

    reason = "unsupported_encoding"
    http_status = 415
    grpc_status = GrpcStatus.UNIMPLEMENTED
    retry = Retry.NEVER


class Unsupported(QInferError):
    """A feature this server does not have."""

    reason = "unsupported"
    http_status = 501
    grpc_status = GrpcStatus.UNIMPLEMENTED
    retry = Retry.NEVER


class MethodNotAllowed(QInferError):
    """The path is known, but not with this HTTP method."""

    reason = "method_not_allowed"
    http_status = 405
    grpc_status = GrpcStatus.UNIMPLEMENTED
    retry = Retry.NEVER


class QueueFull(QInferError):
    """A bounded queue is full.

    Args:
        message, retry_after: as for every error.
        position: the request's place in the queue, from 1, where that is known. It does not travel.
        estimated_wait: seconds until it would have been answered, where that is known. It does not travel.
    """

    reason = "queue_full"
    http_status = 429
    grpc_status = GrpcStatus.RESOURCE_EXHAUSTED
    retry = Retry.LATER

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        position: int | None = None,
        estimated_wait: float | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.position = position
        self.estimated_wait = estimated_wait


class WaitTooLong(QueueFull):
    """The queue is so long that the request's deadline would pass before its turn."""

    reason = "wait_too_long"


class RateLimited(QInferError):
    """The caller sends more than its key allows."""

    reason = "rate_limited"
    http_status = 429
    grpc_status = GrpcStatus.RESOURCE_EXHAUSTED
    retry = Retry.LATER


class DeadlineExceeded(QInferError):
    """The request's deadline passed before its answer was ready."""

    reason = "deadline_exceeded"
    http_status = 504
    grpc_status = GrpcStatus.DEADLINE_EXCEEDED
    retry = Retry.MAYBE


class Cancelled(QInferError):
    """The caller has gone."""

    reason = "cancelled"
    http_status = 499
    grpc_status = GrpcStatus.CANCELLED
    retry = Retry.MAYBE


class Unavailable(QInferError):
    """Something this request needs is not there at the moment."""

    reason = "unavailable"
    http_status = 503
    grpc_status = GrpcStatus.UNAVAILABLE
    retry = Retry.LATER


class NoWorker(Unavailable):
    """The model is known, but no live worker serves it."""

    reason = "no_worker"


class BusUnavailable(Unavailable):
    """The broker cannot be reached, refused the message, or went before it confirmed it."""

    reason = "bus_unavailable"
    retry = Retry.MAYBE


class ConnectionLost(Unavailable):
    """The connection to the server ended before its answer came."""

    reason = "connection_lost"
    retry = Retry.MAYBE


class ShuttingDown(Unavailable):
    """This process is draining."""

    reason = "shutting_down"


class ModelFailed(QInferError):
    """The model raised while it ran this request."""

    reason = "model_failed"
    retry = Retry.NEVER


class Poisoned(ModelFailed):
    """Every worker that ran this request died of it; it lies in the dead letters."""

    reason = "poisoned"


class SetupError(QInferError):
    """The installation or configuration is wrong; found before any request is served."""

    reason = "setup"
    retry = Retry.NEVER


class ConfigError(SetupError):
    """A file of the model repository is wrong.

    The message has the form `FILE: FIELD: what was found; expected what`.
    """

    reason = "config"


class BackendUnavailable(SetupError):
    """A backend's library is not installed. The message names the extra that brings it."""

    reason = "backend_unavailable"


def _subclasses(cls: type[QInferError]) -> list[type[QInferError]]:
    return [cls, *(deeper for sub in cls.__subclasses__() for deeper in _subclasses(sub))]


BY_REASON: dict[str, type[QInferError]] = {cls.reason: cls for cls in _subclasses(QInferError)}
"""The class of each reason, to rebuild an error that came over the wire."""


def from_reason(reason: str, message: str, retry_after: float | None = None) -> QInferError:
    """Rebuild an error from its wire form; a reason unknown to this version becomes `InternalError`."""
    return BY_REASON.get(reason, InternalError)(message, retry_after=retry_after)
