"""How an error leaves as the status of an RPC."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NoReturn, Protocol

import grpc

from qinfer.errors import InternalError, QInferError
from qinfer_gateway.refusal import metadata

logger = logging.getLogger(__name__)

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

# The message travels percent-encoded, three bytes for a byte at worst, beside the other metadata, and clients
# refuse metadata of more than 8 KiB with an error that hides the real one.
_MAX_MESSAGE_BYTES = 2000


class Context(Protocol):
    """What the handlers use of grpcio's `ServicerContext`, which has no types."""

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, str], ...] = ()
    ) -> NoReturn: ...

    async def write(self, message: bytes) -> None: ...

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...

    def time_remaining(self) -> float | None: ...

    def auth_context(self) -> Mapping[str, Sequence[bytes]]: ...


async def fail(context: Context, error: QInferError) -> NoReturn:
    """End an RPC with an error.

    Raises:
        grpc.aio.AbortError: always; grpcio catches it.
    """
    await context.abort(_CODES[error.grpc_status], _shortened(error.message), metadata(error))


def unexpected(method: str, error: Exception) -> InternalError:
    """Log a fault of the gateway and give the error to answer with, which tells nothing of its insides."""
    logger.error("%s failed", method, exc_info=error)
    return InternalError(f"the gateway failed to answer {method}")


def _shortened(message: str) -> str:
    encoded = message.encode(errors="replace")
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return encoded.decode()
    return encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + "…"
