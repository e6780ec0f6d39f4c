"""uvicorn, run within the gateway's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette

from qinfer.errors import SetupError
from qinfer_gateway.http.front import HttpFront
from qinfer_gateway.http.protocol import make_protocol
from qinfer_gateway.tls import ServerTls

logger = logging.getLogger(__name__)

_BACKLOG = 2048
_LOOK = 0.02
_CLOSE = (b"connection", b"close")


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
        self.servers = [
            await loop.create_server(self._connect(), sock=listener, backlog=_BACKLOG, **self._encryption())
            for listener in sockets or ()
        ]
        self.started = True

    async def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that was accepted elsewhere."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._connect(), connection, **self._encryption())
        except OSError as error:  # of TLS, mostly: nobody is left who could be told
            logger.info("a connection was not made: %s", error)

    def say_goodbye(self) -> None:
        """Have every answer tell its client that the connection ends with it."""
        self.config.encoded_headers.append(_CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]

    def _connect(self) -> Callable[[], asyncio.Protocol]:
        protocol: Any = self.config.http_protocol_class
        return partial(
            protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )

    def _encryption(self) -> dict[str, Any]:
        if self._tls is None:
            return {}
        return {"ssl": self._tls.context, "ssl_handshake_timeout": self._handshake_timeout}

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
        self._front = front
        self._server = _Server(config, tls, front.limits.receive)
        self._listener: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            SetupError: the address cannot be bound.
        """
        listener = listen(self._host, self.port, reuse_port=self._reuse_port)
        self.port = listener.getsockname()[1]
        self._listener = listener.dup()
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http server")

    async def hand_over(self, seconds: float) -> None:
        """Accept no more connections, and answer on those there are until their clients have left them.

        With each answer a client is told to make another connection, to another server. One that does not ask
        anything for `seconds` is not waited for any longer.
        """
        self._front.leaving = True
        self._server.say_goodbye()
        await self._stop_listening()
        loop = asyncio.get_running_loop()
        give_up = loop.time() + seconds
        while left := len(self._server.server_state.connections):
            if loop.time() >= give_up:
                logger.info("%d idle HTTP connections are closed", left)
                return
            await asyncio.sleep(_LOOK)

    async def _stop_listening(self) -> None:
        """Close the listening socket when nothing waits to be accepted: the kernel resets what does."""
        listener, self._listener = self._listener, None
        if listener is None or not self._server.started:
            return
        for server in self._server.servers:
            server.close()
        waiting: list[socket.socket] = []
        with listener, contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = listener.accept()
                connection.setblocking(False)
                waiting.append(connection)
        await asyncio.gather(*(self._server.adopt(connection) for connection in waiting))

    async def stop(self, timeout: float) -> None:
        """Stop accepting, let responses in progress finish, close. Idempotent."""
        await self._stop_listening()
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
