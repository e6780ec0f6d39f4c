"""grpcio's asyncio server, run within the gateway's event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from qinfer.errors import QInferError, SetupError, Unsupported
from qinfer.keys import Permission
from qinfer.proto import METHODS, SERVICE, Method
from qinfer_gateway.auth.access import Access
from qinfer_gateway.auth.grpc import identify, model_of
from qinfer_gateway.auth.rules import permission_for_rpc
from qinfer_gateway.catalog import Catalog
from qinfer_gateway.dispatcher import Dispatcher
from qinfer_gateway.front import Front
from qinfer_gateway.grpc.codec import parse
from qinfer_gateway.grpc.health import HEALTH_SERVICE, Health
from qinfer_gateway.grpc.inference import Inference
from qinfer_gateway.grpc.questions import Questions
from qinfer_gateway.grpc.sockets import connections, stop_listening
from qinfer_gateway.grpc.status import Context, fail, unexpected
from qinfer_gateway.grpc.stream import Streams
from qinfer_gateway.http.limits import ConnectionLimits
from qinfer_gateway.http.server import listen
from qinfer_gateway.tls import ServerTls

logger = logging.getLogger(__name__)

_KEEP_ALIVE_MS = 60_000
_KEEP_ALIVE_TIMEOUT_MS = 20_000
_MIN_CLIENT_PING_MS = 10_000
_CLOSING = 1.0  # seconds of refusing before the drain; callers that never stop asking are cut off then
_LARGEST_MESSAGE = 2**31 - 1  # grpcio counts no further
_AGE_SHARE = 0.7  # of the lame duck time; grpcio varies it by 10 %, and RPCs in progress take their time
_LOOK = 0.1
_OTHER_RPCS = 1024  # questions, watches and streams that may be open beside the calls in flight


class GrpcServer:
    """The gRPC side of a gateway.

    Args:
        front: answers every RPC but inference.
        catalog: the models.
        dispatcher: where inference goes.
        threads: for the conversion of large typed contents.
        host, port: where to listen; port 0 for any free one.
        reuse_port: share the port with other processes.
        max_body_bytes: largest request message, before and after decompression.
        max_in_flight: requests the dispatcher takes; bounds the RPCs open at once.
        access: the credentials that are accepted; None where none are asked for.
        tls: None to speak without.
        limits: what a connection may take.
        lame_duck: seconds that `hand_over` may take; connections are renewed more often than that.
        ids_are_keys: the identifier of a request is its idempotency key, unless it has one.
    """

    def __init__(
        self,
        front: Front,
        catalog: Catalog,
        dispatcher: Dispatcher,
        threads: Executor,
        *,
        host: str,
        port: int,
        reuse_port: bool,
        max_body_bytes: int,
        max_in_flight: int,
        access: Access | None = None,
        tls: ServerTls | None = None,
        limits: ConnectionLimits | None = None,
        lame_duck: float = 0.0,
        ids_are_keys: bool = False,
    ) -> None:
        self._tls = tls
        self._host = host
        self.port = port
        self._reuse_port = reuse_port
        self._lame_duck = lame_duck
        self._stopping = asyncio.Event()
        self._inference = inference = Inference(
            catalog, dispatcher, threads, access, ids_are_keys=ids_are_keys
        )
        self._streams = Streams(inference)
        self._server: Any = grpc.aio.server(
            options=_options(
                reuse_port=reuse_port,
                max_body_bytes=max_body_bytes,
                limits=limits or ConnectionLimits(),
                max_age=_AGE_SHARE * lame_duck,
            ),
            maximum_concurrent_rpcs=max_in_flight + _OTHER_RPCS,
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE, _service_handlers(inference, self._streams, Questions(front), access)
                ),
                grpc.method_handlers_generic_handler(
                    HEALTH_SERVICE, _health_handlers(Health(front, self._stopping))
                ),
            )
        )

    async def start(self) -> None:
        """Listen.

        Raises:
            SetupError: the address cannot be bound.
        """
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(f"{host}:{self.port}")
            else:
                credentials = self._tls.grpc_credentials()
                self.port = self._server.add_secure_port(f"{host}:{self.port}", credentials)
        except RuntimeError as error:
            # grpcio does not say why; the operating system does.
            listen(self._host, self.port, reuse_port=self._reuse_port).close()
            raise SetupError(f"cannot listen on {self._host} port {self.port} for gRPC: {error}") from error
        await self._server.start()

    async def hand_over(self) -> None:
        """Accept no more connections, and answer on those there are until their clients have left them.

        Every connection is told to be renewed when it reaches its age; by then there is another server.
        """
        self._stopping.set()
        self._streams.finish()
        if not stop_listening(self.port):
            return
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._lame_duck
        while left := connections(self.port):
            if loop.time() >= give_up:
                logger.warning("%d gRPC connections were not left within %g s", left, self._lame_duck)
                return
            await asyncio.sleep(_LOOK)

    async def stop(self, timeout: float) -> None:
        """Stop accepting, let RPCs in progress finish, cut those that take over `timeout` s. Idempotent."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + timeout
        self._stopping.set()
        self._streams.finish()
        await self._inference.close(min(timeout, _CLOSING))
        await self._server.stop(max(0.0, give_up - loop.time()))


def _options(
    *, reuse_port: bool, max_body_bytes: int, limits: ConnectionLimits, max_age: float
) -> list[tuple[str, int]]:
    age = [("grpc.max_connection_age_ms", max(1, int(max_age * 1000)))] if max_age else []
    return [
        *age,  # RPCs in progress on a connection that is too old are finished on it
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", int(limits.receive * 1000)),
        ("grpc.so_reuseport", int(reuse_port)),
        ("grpc.max_receive_message_length", min(max_body_bytes, _LARGEST_MESSAGE)),
        ("grpc.max_send_message_length", -1),  # a response is as large as the broker let it be
        # Notice dead peers, whose calls would be worked on in vain, and put up with clients that do the same.
        ("grpc.keepalive_time_ms", _KEEP_ALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEP_ALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_CLIENT_PING_MS),
    ]


def _service_handlers(
    inference: Inference, streams: Streams, questions: Questions, access: Access | None
) -> dict[str, grpc.RpcMethodHandler]:
    answers: dict[str, Callable[[Any], Awaitable[Message]]] = {
        "ServerLive": questions.server_live,
        "ServerReady": questions.server_ready,
        "ModelReady": questions.model_ready,
        "ServerMetadata": questions.server_metadata,
        "ModelMetadata": questions.model_metadata,
        "ModelConfig": questions.model_config,
        "ModelStatistics": questions.model_statistics,
        "RepositoryIndex": questions.repository_index,
        "RepositoryModelLoad": questions.repository_model_load,
        "RepositoryModelUnload": questions.repository_model_unload,
    }
    handlers: dict[str, grpc.RpcMethodHandler] = {
        name: _unary(name, METHODS[name].request, answer, access, permission_for_rpc(name))
        for name, answer in answers.items()
    }
    # Without serializers handlers get and give bytes: tensors are copied less often, and what is malformed
    # is answered as every other bad request.
    handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(inference.model_infer)
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(streams.model_stream_infer)
    for name, method in METHODS.items():
        if name not in handlers:
            handlers[name] = _unsupported(method, access)
    return handlers


def _health_handlers(health: Health) -> dict[str, grpc.RpcMethodHandler]:
    return {
        "Check": _unary("Check", health_pb2.HealthCheckRequest, health.check),
        "Watch": grpc.unary_stream_rpc_method_handler(
            health.watch,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        ),
    }


def _unary(
    name: str,
    request: type[Message],
    answer: Callable[[Any], Awaitable[Message]],
    access: Access | None = None,
    permission: Permission | None = None,
) -> grpc.RpcMethodHandler:
    """A handler that answers one message with one message, and errors with their status.

    Who asks needs `permission`, and the model that the message names has to be one they may use.
    """

    async def handle(data: bytes, context: Context) -> bytes:
        try:
            principal = identify(access, context, permission)
            message = parse(request, data)
            model = model_of(message)
            if model:
                principal.require_model(model)
            return (await answer(message)).SerializeToString()
        except QInferError as error:
            await fail(context, error)
        except Exception as error:  # noqa: BLE001 - the last resort; `unexpected` logs it
            await fail(context, unexpected(name, error))

    return grpc.unary_unary_rpc_method_handler(handle)


def _unsupported(method: Method, access: Access | None) -> grpc.RpcMethodHandler:
    async def handle(_: bytes, context: Context) -> NoReturn:
        try:
            identify(access, context, permission_for_rpc(method.name))
        except QInferError as error:
            await fail(context, error)
        await fail(context, Unsupported(f"{method.name} is not supported by this server"))

    return grpc.unary_unary_rpc_method_handler(handle)
