"""`/metrics` over HTTP, on a port of its own or as a route of another application."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from qinfer.errors import SetupError

logger = logging.getLogger(__name__)

_OPENMETRICS = "application/openmetrics-text"
_STOP_TIMEOUT = 2
_MAX_CONNECTIONS = 32


def metrics_route(registry: CollectorRegistry, path: str = "/metrics") -> Route:
    """A Starlette route for scrapes: OpenMetrics with exemplars when asked for, else the text format.

    Rendering runs in a thread of its own, one scrape at a time, so that a thousand series do not hold up the
    event loop that serves requests, nor a busy default executor the scrape.
    """
    renderer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    async def scrape(request: Request) -> Response:
        openmetrics = _OPENMETRICS in request.headers.get("accept", "")
        compress = "gzip" in request.headers.get("accept-encoding", "")
        body = await asyncio.get_running_loop().run_in_executor(
            renderer, _render, registry, openmetrics, compress
        )
        # Given as a header: as a media type, Starlette would append a second charset.
        headers = {"content-type": CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_PLAIN_0_0_4}
        headers["vary"] = "accept, accept-encoding"
        if compress:
            headers["content-encoding"] = "gzip"
        return Response(body, headers=headers)

    return Route(path, scrape, methods=["GET"])


def _render(registry: CollectorRegistry, openmetrics: bool, compress: bool) -> bytes:
    body = bytes(generate_openmetrics(registry)) if openmetrics else generate_latest(registry)  # type: ignore[no-untyped-call]
    return gzip.compress(body, compresslevel=3) if compress else body


class MetricsServer:
    """Serves `/metrics` on the running event loop for as long as it is entered.

    Args:
        host: address to listen on.
        port: 0 for any free one; `port` tells which.
        registry: what to expose.
        routes: further routes on the same port, such as health probes.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, *, routes: Sequence[BaseRoute] = ()
    ) -> None:
        self.host = host
        self.port = port
        self._app = Starlette(routes=[metrics_route(registry), *routes])
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> MetricsServer:
        """Listen.

        Raises:
            SetupError: the address cannot be bound.
        """
        listener = _listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            ws="none",
            http="httptools",
            log_config=None,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=_STOP_TIMEOUT,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="metrics server")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; scrapes in progress get a moment to finish."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        try:
            await asyncio.wait_for(self._task, timeout=2 * _STOP_TIMEOUT)
        except TimeoutError:
            logger.warning("metrics server on port %d did not stop in %d s", self.port, 2 * _STOP_TIMEOUT)
        self._server = self._task = None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the role this server belongs to."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    # Bound here and not by uvicorn, which exits the process when it cannot.
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SetupError(f"metrics host {host!r}: {error}; expected an address of this machine") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise SetupError(
            f"metrics address {host}:{port} cannot be bound: {error}; "
            "choose another with --metrics-port, 0 for any free one, -1 for none"
        ) from None
    listener.setblocking(False)
    return listener
