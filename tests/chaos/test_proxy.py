"""The proxy of the fault tests does to a link what it says."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.helpers.proxy import Proxy
from tests.helpers.waiting import PATIENCE, eventually

BULK = 4 << 20


class Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE):
            await self.writer.drain()

    async def receive(self, size: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readexactly(size)

    async def ask(self, data: bytes) -> bytes:
        sending = asyncio.create_task(self.send(data))
        answer = await self.receive(len(data))
        await sending
        return answer


class Echo:
    """A server that returns what it gets; it remembers how each connection ended."""

    def __init__(self) -> None:
        self.received = 0
        self.ends: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                self.received += len(chunk)
                writer.write(chunk)
                await writer.drain()
            self.ends.append("end")
        except ConnectionError:
            self.ends.append("reset")
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    handler = Echo()
    server = await asyncio.start_server(handler.serve, "127.0.0.1", 0)
    try:
        yield handler, server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
async def link(echo: tuple[Echo, int]) -> AsyncIterator[Proxy]:
    async with Proxy(echo[1]) as proxy:
        yield proxy


@asynccontextmanager
async def connected(link: Proxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def lost(client: Client) -> None:
    with pytest.raises(ConnectionResetError):
        await client.receive(1)


async def test_bytes_go_through_both_ways(link: Proxy) -> None:
    data = os.urandom(BULK)
    async with connected(link) as one, connected(link) as two:
        assert await one.ask(data) == data
        assert await two.ask(b"two") == b"two"
        assert link.connections == 2
        await eventually(lambda: link.carried == (BULK + 3, BULK + 3), "all is counted")
    await eventually(lambda: link.connections == 0, "the connections have ended")


async def test_the_end_of_one_direction_is_handed_on(echo: tuple[Echo, int], link: Proxy) -> None:
    async with connected(link) as client:
        await client.send(b"last words")
        client.writer.write_eof()
        assert await client.receive(10) == b"last words"
        async with asyncio.timeout(PATIENCE):
            assert await client.reader.read() == b""
    assert echo[0].ends == ["end"]


async def test_cut(echo: tuple[Echo, int], link: Proxy) -> None:
    async with connected(link) as client:
        assert await client.ask(b"before") == b"before"
        link.cut()
        await lost(client)
    await eventually(lambda: echo[0].ends == ["reset"], "the server sees it, too")
    async with connected(link) as client:
        await lost(client)
    assert link.connections == 0
    link.restore()
    async with connected(link) as client:
        assert await client.ask(b"after") == b"after"


async def test_stall_holds_back_and_loses_nothing(echo: tuple[Echo, int], link: Proxy) -> None:
    data = os.urandom(BULK)
    async with connected(link) as client:
        assert await client.ask(b"before") == b"before"
        link.stall()
        asking = asyncio.create_task(client.ask(data))
        async with connected(link) as late:
            waiting = asyncio.create_task(late.ask(b"late"))
            await eventually(lambda: link.connections == 2, "a connection can be made")
            done, _ = await asyncio.wait([asking, waiting], timeout=0.1)
            assert not done
            assert echo[0].received == len(b"before")
            link.restore()
            assert await asking == data
            assert await waiting == b"late"


@pytest.mark.parametrize("up", [True, False])
async def test_one_direction_alone_is_stalled(echo: tuple[Echo, int], link: Proxy, up: bool) -> None:
    async with connected(link) as client:
        assert await client.ask(b"a") == b"a"
        link.stall(up=up, down=not up)
        asking = asyncio.create_task(client.ask(b"b"))
        if not up:
            await eventually(lambda: echo[0].received == 2, "the server has it")
        done, _ = await asyncio.wait([asking], timeout=0.1)
        assert not done
        assert echo[0].received == (1 if up else 2)
        link.restore()
        assert await asking == b"b"


async def test_what_was_stalled_is_lost_when_the_link_is_cut(echo: tuple[Echo, int], link: Proxy) -> None:
    async with connected(link) as client:
        assert await client.ask(b"before") == b"before"
        link.stall()
        await client.send(b"never")
        link.cut()
        await lost(client)
    link.restore()
    async with connected(link) as client:
        assert await client.ask(b"after") == b"after"
    assert echo[0].received == len(b"beforeafter")


async def test_delay_is_of_a_link_and_not_of_each_chunk(link: Proxy) -> None:
    delay = 0.05
    loop = asyncio.get_running_loop()
    async with connected(link) as client:
        link.slow(delay=delay)
        start = loop.time()
        assert await client.ask(b"x") == b"x"
        assert loop.time() - start >= 2 * delay
        # 64 chunks one after the other would take 64 delays.
        start = loop.time()
        sending = asyncio.create_task(client.send(bytes(BULK)))
        await client.receive(BULK)
        assert loop.time() - start < BULK / 65536 * delay
        await sending


async def test_a_narrow_link(link: Proxy) -> None:
    loop = asyncio.get_running_loop()
    async with connected(link) as client:
        link.slow(bytes_per_second=1_000_000)
        start = loop.time()
        await client.ask(bytes(300_000))
        assert loop.time() - start > 0.15
        link.restore()
        assert await client.ask(b"quick") == b"quick"


async def test_a_server_that_is_not_there(closed_port: int) -> None:
    async with Proxy(closed_port) as link, connected(link) as client:
        await lost(client)


async def test_close_resets_what_is_open_and_frees_the_port(echo: tuple[Echo, int]) -> None:
    link = Proxy(echo[1])
    await link.start()
    port = link.port
    async with connected(link) as client:
        assert await client.ask(b"x") == b"x"
        await link.close()
        await lost(client)
    await link.close()
    with pytest.raises(RuntimeError, match="before it is started"):
        _ = link.port
    async with Proxy(echo[1], listen=port) as again:
        assert again.port == port


@pytest.fixture
def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
