"""A TCP link that can be cut, stalled and slowed down, and made good again."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType

HOST = "127.0.0.1"

_CHUNK = 64 * 1024
_CHUNKS_UNDERWAY = 16  # in one direction of one connection: then the sender is held up, as by a real link
_CONNECT_SECONDS = 5.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger


class Proxy:
    """A TCP proxy to one server, on loopback.

    Start it, and change it, from one event loop. The methods that make the link worse, or good again, act at
    once on the connections that are there and on those that come; each replaces what was said before.

    Args:
        port: of the server; it need not run yet.
        host: the server's address.
        listen: port to listen on; 0 for any free one.
    """

    def __init__(self, port: int, *, host: str = HOST, listen: int = 0) -> None:
        self._target = (host, port)
        self._listen = listen
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._severed = False
        self._up = _Direction()
        self._down = _Direction()

    @property
    def port(self) -> int:
        """Where clients connect.

        Raises:
            RuntimeError: the proxy is not started.
        """
        if self._server is None:
            raise RuntimeError("the proxy has no port before it is started")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """Clients connected now."""
        return len(self._links)

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes handed on so far: to the server, and from it."""
        return self._up.carried, self._down.carried

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._accept, HOST, self._listen)

    async def close(self) -> None:
        """Stop listening and reset all connections. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        ending = list(self._links)
        self._reset()
        if ending:
            await asyncio.wait(ending)

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def cut(self) -> None:
        """Reset all connections, with what is on its way in them, and all that are tried from now on."""
        self._severed = True
        self._reset()

    def stall(self, *, up: bool = True, down: bool = True) -> None:
        """Hold bytes back and lose none: connections stay open, and nobody is told.

        Args:
            up: those to the server.
            down: those from the server.
        """
        self._severed = False
        self._up.set(stalled=up)
        self._down.set(stalled=down)

    def slow(self, *, delay: float = 0.0, bytes_per_second: float = 0.0) -> None:
        """Make the link long or narrow.

        Args:
            delay: seconds that every byte takes, one way.
            bytes_per_second: of one direction of one connection; 0 for no limit.
        """
        self._severed = False
        for direction in (self._up, self._down):
            direction.set(delay=delay, rate=bytes_per_second)

    def restore(self) -> None:
        """A good link again. What was held back goes on its way."""
        self.slow()

    def _reset(self) -> None:
        for task, link in self._links.items():
            link.reset()
            task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(reader, writer)
        if self._severed or self._server is None:
            link.reset()
            return
        task = asyncio.create_task(link.run(self._target, self._up, self._down))
        self._links[task] = link
        task.add_done_callback(self._links.__delitem__)


class _Direction:
    """The state of the link one way."""

    def __init__(self) -> None:
        self.carried = 0
        self.delay = 0.0
        self.rate = 0.0
        self.flowing = asyncio.Event()
        self.set()

    def set(self, *, stalled: bool = False, delay: float = 0.0, rate: float = 0.0) -> None:
        self.delay = delay
        self.rate = rate
        if stalled:
            self.flowing.clear()
        else:
            self.flowing.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand on what comes until it ends, and then the end."""
        underway: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDERWAY)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take(reader, underway))
            group.create_task(self._hand_on(underway, writer))

    async def _take(self, reader: asyncio.StreamReader, underway: asyncio.Queue[tuple[float, bytes]]) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await self.flowing.wait()
            chunk = await reader.read(_CHUNK)
            await underway.put((now() + self.delay, chunk))
            if not chunk:
                return

    async def _hand_on(
        self, underway: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due, chunk = await underway.get()
            if (early := due - now()) > 0:
                await asyncio.sleep(early)
            await self.flowing.wait()
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()
            self.carried += len(chunk)
            if self.rate:
                await asyncio.sleep(len(chunk) / self.rate)


class _Link:
    """A client's connection, and the proxy's own to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client = (reader, writer)
        self._writers = [writer]

    async def run(self, target: tuple[str, int], up: _Direction, down: _Direction) -> None:
        """Carry bytes both ways until both sides have ended or one is lost."""
        from_client, to_client = self._client
        try:
            await up.flowing.wait()
            async with asyncio.timeout(_CONNECT_SECONDS):
                from_server, to_server = await asyncio.open_connection(*target)
            self._writers.append(to_server)
            async with asyncio.TaskGroup() as group:
                group.create_task(up.carry(from_client, to_server))
                group.create_task(down.carry(from_server, to_client))
        except* OSError:  # a side has gone, and with it the link; TimeoutError is one
            self.reset()
        finally:
            for writer in self._writers:
                writer.close()

    def reset(self) -> None:
        """Let both sides see a reset; what is not sent is lost. Idempotent."""
        for writer in self._writers:
            _reset_on_close(writer)
            writer.transport.abort()


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Have the kernel send a reset on close: the end of a stream could be taken for a goodbye."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):  # it is closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
