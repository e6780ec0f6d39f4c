"""uvicorn, run within the gateway's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette

from qinfer.errors import SetupError
from qinfer_gateway.http.exchange import HttpFront
from qinfer_gateway.http.protocol import make_protocol
from qinfer_gateway.tls import ServerTls

logger = logging.getLogger(__name__)

_BACKLOG = 2048


class _Server(uvicorn.Server):
    """A server whose signals are its owner's business, and whose handshakes end in time."""

    def __init__(self, config: uvicorn.Config, tls: ServerTls | None, handshake_timeout: float) -> None:
        super().__init__(config)
        self._tls = tls
        self._handshake_timeout = handshake_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._tls is None:
            await super().startup(sockets)
            return
        # uvicorn hands its context to the event loop, but neither a time limit nor one that can be renewed.
        loop = asyncio.get_running_loop()
        protocol: Any = self.config.http_protocol_class
        connect = partial(
            protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=loop,
        )
        self.servers = [
            await loop.create_server(
                connect,
                sock=listener,
                ssl=self._tls.context,
                ssl_handshake_timeout=self._handshake_timeout,
                backlog=_BACKLOG,
            )
            for listener in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """The HTTP side of a gateway.

    Args:
        app: every route but `infer`.
        front: answers `infer`.
        host, port: where to listen; port 0 for any free one.
        reuse_port: share the port with other processes.
        tls: None to speak plain HTTP.
    """

    def __init__(
        self,
        app: Starlette,
        front: HttpFront,
        *,
        host: str,
        port: int,
        reuse_port: bool,
        tls: ServerTls | None = None,
    ) -> None:
        self._host = host
        self.port = port
        self._reuse_port = reuse_port
        config = uvicorn.Config(
            app,
            http=make_protocol(front),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=cast(int, front.limits.idle),  # as good as one: the loop is told it as it is
            backlog=_BACKLOG,
        )
        self._server = _Server(config, tls, front.limits.receive)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            SetupError: the address cannot be bound.
        """
        listener = listen(self._host, self.port, reuse_port=self._reuse_port)
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http server")

    async def stop(self, timeout: float) -> None:
        """Stop accepting, let responses in progress finish, close. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(timeout))
        self._server.should_exit = True
        await asyncio.wait_for(task, timeout + 5)


def listen(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """A listening TCP socket.

    Raises:
        SetupError: the address cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise SetupError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener
