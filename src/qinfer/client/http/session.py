"""Connections to one gateway, or to whatever spreads requests over several."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic

import aiohttp
from yarl import URL

from qinfer import __version__
from qinfer.client.http.wire import read_error
from qinfer.errors import Cancelled, ConnectionLost, DeadlineExceeded, InternalError, SetupError, Unavailable

_CONNECT_SECONDS = 5.0
_KEEP_SECONDS = 30.0  # shorter than gateways keep idle connections: none is closed as it is being used again
_GRACE = 0.5  # seconds after the deadline: the server's own answer to one that passed says more than ours
_WHOLE = 64 * 1024  # bodies up to this many bytes are joined, larger ones are sent part by part


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that was read; names of headers are compared without regard to case."""

    status: int
    headers: Mapping[str, str]
    raw: bytes


class Session:
    """Keeps connections open and uses them again.

    Args:
        url: "http://HOST:PORT" or https, maybe with a path that all routes begin with.
        key: API key or token; "" for none.
        tls: for https.
        max_connections: at once; further requests wait for one.

    Raises:
        SetupError: the URL is none.
    """

    def __init__(self, url: str, *, key: str, tls: ssl.SSLContext | None, max_connections: int) -> None:
        self._base = url.rstrip("/")
        self._tls = tls
        self._max_connections = max_connections
        # Tensors hardly get smaller, and the time would be the network's in any case but on slow ones.
        self._headers = {"Accept-Encoding": "identity", "User-Agent": f"qinfer/{__version__}"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._session: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Be ready to connect."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._max_connections, keepalive_timeout=_KEEP_SECONDS, ssl=self._tls or True
            ),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            auto_decompress=True,
        )

    async def close(self) -> None:
        """End all connections, and with them what is in flight. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(
        self,
        verb: str,
        path: str,
        *,
        deadline: float,
        body: Sequence[bytes | memoryview] = (),
        headers: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> Reply:
        """Send a request and read the response.

        Args:
            verb, path: the request.
            deadline: of `time.monotonic`.
            body: parts of the body.
            headers: beside those of every request.
            check: raise the error that a response other than 2xx stands for.

        Raises:
            Unavailable: nobody answers; nothing was sent.
            ConnectionLost: the connection ended before the answer was here.
            DeadlineExceeded: it is not here at the deadline.
            QInferError: what the server answered.
        """
        async with self._until(deadline), await self._request(verb, path, body, headers) as response:
            raw = await response.read()
        if check and not _is_success(response.status):
            raise read_error(response.status, response.headers, raw)
        return Reply(response.status, response.headers, raw)

    async def open(
        self,
        verb: str,
        path: str,
        *,
        deadline: float,
        body: Sequence[bytes | memoryview] = (),
        headers: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request whose response is read in pieces, and closed, by the caller. Errors as of `call`."""
        async with self._until(deadline):
            response = await self._request(verb, path, body, headers)
            if _is_success(response.status):
                return response
            async with response:
                raw = await response.read()
        raise read_error(response.status, response.headers, raw)

    async def read(self, response: aiohttp.ClientResponse, deadline: float) -> bytes:
        """The next piece of a response; empty after the last one. Errors as of `call`."""
        async with self._until(deadline):
            return await response.content.readany()

    async def _request(
        self, verb: str, path: str, body: Sequence[bytes | memoryview], headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise Cancelled("this client was closed")
        given = dict(headers or {})
        data: bytes | AsyncIterator[bytes | memoryview] | None = None
        if body:
            size = sum(len(part) for part in body)
            given["Content-Length"] = str(size)
            data = b"".join(body) if size <= _WHOLE else _parts(body)
        url = URL(self._base + path, encoded=True)
        return await self._session.request(verb, url, data=data, headers=given, allow_redirects=False)

    @asynccontextmanager
    async def _until(self, deadline: float) -> AsyncIterator[None]:
        """Errors of the library as ours, and that of a deadline."""
        try:
            async with asyncio.timeout(deadline - monotonic() + _GRACE):
                yield
        except aiohttp.ServerTimeoutError as error:  # while it connected
            raise Unavailable(f"no server answers at {self._base}: {error}", retry_after=1.0) from None
        except TimeoutError:
            raise DeadlineExceeded(f"deadline passed before {self._base} answered") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> Exception:
        if self._session is None:
            return Cancelled("this client was closed before the answer came")
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return SetupError(
                f"the certificate of {self._base} is not trusted: {error.certificate_error}; `ca`, or "
                "SSL_CERT_FILE, can name the file of an authority of your own"
            )
        if isinstance(error, aiohttp.ClientConnectorError):
            return Unavailable(f"no server answers at {self._base}: {error}", retry_after=1.0)
        if isinstance(error, aiohttp.ClientResponseError):
            return InternalError(f"{self._base} answers something else than HTTP: {error.message}")
        hint = "; does it expect https://?" if isinstance(error, aiohttp.ServerDisconnectedError) else ""
        what = str(error) or type(error).__name__
        return ConnectionLost(f"the connection to {self._base} ended before the answer came: {what}{hint}")


def _is_success(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


async def _parts(body: Sequence[bytes | memoryview]) -> AsyncIterator[bytes | memoryview]:
    for part in body:
        yield part
