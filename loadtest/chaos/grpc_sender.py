"""gRPC, by tritonclient: several channels, so that both gateways get some."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as values  # type: ignore[import-untyped]
import tritonclient.grpc.aio as triton  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]

from loadtest.chaos.asks import Answer, Ask, Refusal, Sender, Settings, broken
from loadtest.chaos.faults import CONNECTION, Way
from loadtest.chaos.models import Integers
from loadtest.chaos.proxy import HOST
from loadtest.chaos.records import GRACE

_CHANNELS = 4
# Without the first, channels to one address share a connection, and so a gateway.
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
_KEY, _REASON, _RETRY_AFTER = "idempotency-key", "x-qinfer-reason", "retry-after"


class GrpcSender(Sender):
    """Asks with raw tensors. The call's own deadline is the request's."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._address = f"{HOST}:{settings.grpc_port}"
        self._clients: list[Any] = []

    async def start(self) -> None:
        self._clients = [
            triton.InferenceServerClient(self._address, channel_args=_OPTIONS) for _ in range(_CHANNELS)
        ]

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    async def send(self, ask: Ask, lane: int, budget: float) -> Answer:
        try:
            result = await self._clients[lane % _CHANNELS].infer(
                ask.model,
                [_input("x", ask.x), _input("id", ask.ids)],
                request_id=str(ask.id),
                timeout=max(1, int(budget * 1e6)),
                # The server is to say that the deadline has passed, and not the client's library.
                client_timeout=budget + 2 * GRACE[Way.GRPC],
                headers={_KEY: ask.key} if ask.key else None,
            )
        except InferenceServerException as error:
            raise _refusal(error) from error
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise broken(error) from error
        return Answer(
            y=result.as_numpy("y"),
            by=result.as_numpy("by"),
            model_version=result.get_response().model_version,
        )


def _input(name: str, value: Integers) -> Any:
    tensor = values.InferInput(name, list(value.shape), "INT64")
    tensor.set_data_from_numpy(np.ascontiguousarray(value))
    return tensor


def _refusal(error: InferenceServerException) -> Refusal:
    """tritonclient keeps the gRPC error as the cause of its own, with the trailing metadata."""
    cause = error.__cause__ or error.__context__
    trailers: dict[str, str] = {}
    if isinstance(cause, grpc.aio.AioRpcError):
        trailers = {str(key): str(value) for key, value in cause.trailing_metadata() or ()}
    pause = trailers.get(_RETRY_AFTER)
    # Only the library's own errors have no reason: the connection was lost, or could not be made.
    return Refusal(
        trailers.get(_REASON, CONNECTION),
        str(error.message())[:500],
        status=_code(cause),
        pause=None if pause is None else float(pause),
    )


def _code(cause: BaseException | None) -> int:
    return int(cause.code().value[0]) if isinstance(cause, grpc.aio.AioRpcError) else 0
