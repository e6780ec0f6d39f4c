"""The embedded broker, with a real nats-server."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import StorageType
from tests.embedded.processes import DEADLINE, alive, command_line, eventually

from qinfer.embedded import EmbeddedServer, running_url
from qinfer.embedded.server import read_info
from qinfer.errors import SetupError


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    client = await nats.connect(url, allow_reconnect=False, connect_timeout=5)
    try:
        yield client
    finally:
        await client.close()


async def test_serves_streams_and_removes_its_temporary_store() -> None:
    server = EmbeddedServer(max_payload=2 * 1024 * 1024)
    async with server:
        directory = server.directory
        assert directory is not None
        assert directory.is_dir()
        async with connected(server.url) as client:
            assert client.max_payload == 2 * 1024 * 1024
            js = client.jetstream()
            await js.add_stream(name="S", subjects=["s.>"])
            ack = await js.publish("s.1", b"x" * (1536 * 1024))
            assert ack.seq == 1
    assert not directory.exists()
    assert server.pid is None
    await server.stop()


async def test_only_the_holder_of_the_password_gets_in() -> None:
    async with EmbeddedServer() as server:
        port = server.port
        for url in (f"nats://127.0.0.1:{port}", f"nats://qinfer:guess@127.0.0.1:{port}"):
            with pytest.raises((nats.errors.Error, OSError)) as caught:
                async with connected(url):
                    pass
            assert "authorization" in str(caught.value).lower()
        assert server.directory is not None
        configuration = server.directory / "nats.conf"
        assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700


async def test_another_process_of_this_user_finds_a_running_server_by_its_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no broker runs in store directory"):
        running_url(tmp_path)
    async with EmbeddedServer(store_dir=tmp_path) as server:
        assert running_url(tmp_path) == server.url
        async with connected(running_url(tmp_path)) as client:
            assert client.is_connected
    with pytest.raises(SetupError, match="no broker runs in store directory"):
        running_url(tmp_path)


def test_a_folder_of_something_else_is_not_taken_for_a_servers(tmp_path: Path) -> None:
    (tmp_path / "nats.conf").write_text("listen: 0.0.0.0:4222")
    with pytest.raises(SetupError, match="expected what an embedded broker wrote there"):
        running_url(tmp_path)


async def test_password_is_neither_logged_nor_on_the_command_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with EmbeddedServer() as server:
        password = server.url.split(":")[2].split("@")[0]
        assert password not in command_line(server.pid)
        assert server.directory is not None
        assert password not in (server.directory / "nats-server.log").read_text()
    assert password
    assert password not in caplog.text


async def test_listens_on_loopback_only() -> None:
    async with EmbeddedServer() as server:
        assert listening_addresses(server.port) == [f"0100007F:{server.port:04X}"]


def listening_addresses(port: int) -> list[str]:
    """Local addresses of listening IPv4 sockets on the port, as the kernel writes them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]


async def test_killed_server_is_back_on_the_same_port_with_its_data(tmp_path: Path) -> None:
    restarts: list[int] = []
    server = EmbeddedServer(tmp_path / "store", on_restart=lambda: restarts.append(server.restarts))
    async with server:
        first, url = server.pid, server.url
        assert first is not None
        async with connected(url) as client:
            js = client.jetstream()
            await js.add_stream(name="S", subjects=["s.>"], storage=StorageType.FILE)
            for i in range(20):
                await js.publish("s.1", str(i).encode())
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: bool(restarts))
        assert server.url == url
        assert server.pid not in (first, None)
        assert restarts == [1]
        async with connected(url) as client:
            js = client.jetstream()
            assert (await js.stream_info("S")).state.messages == 20
            assert (await js.get_msg("S", 20)).data == b"19"


async def test_server_whose_store_is_removed_gets_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    async with EmbeddedServer(store) as server:
        port = server.port
        shutil.rmtree(store)
        await eventually(lambda: server.restarts > 0)
        assert server.port == port
        assert f"{store} was removed" in caplog.text
        async with connected(server.url) as client:
            await client.jetstream().add_stream(name="S", subjects=["s.>"])
            assert (await client.jetstream().publish("s.1", b"x")).seq == 1
        with pytest.raises(SetupError, match="in use by another broker"):
            await EmbeddedServer(store).start()


async def test_store_outlives_the_server_and_another_name(tmp_path: Path) -> None:
    for round_ in range(2):
        async with EmbeddedServer(tmp_path) as server, connected(server.url) as client:
            js = client.jetstream()
            await js.add_stream(name="S", subjects=["s.>"], storage=StorageType.FILE)
            await js.publish("s.1", b"")
            assert (await js.stream_info("S")).state.messages == round_ + 1
    assert not (tmp_path / "nats.conf").exists()


async def test_clients_reconnect_by_themselves() -> None:
    async with EmbeddedServer() as server:
        client = await nats.connect(server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
        reconnected = asyncio.Event()

        async def note() -> None:
            reconnected.set()

        client._reconnected_cb = note
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE):
            await reconnected.wait()
            await client.flush()
        await client.close()


PARENT = """
    import asyncio, sys
    from pathlib import Path
    from qinfer.embedded import EmbeddedServer

    async def main():
        server = EmbeddedServer()
        await server.start()
        print(server.pid, server.port, server.directory, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


def start_and_kill_parent() -> tuple[int, int, Path]:
    """Kill a process that runs a broker; returns the broker's process id, port and folder."""
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)], stdout=subprocess.PIPE, text=True
    )
    with parent:
        try:
            assert parent.stdout is not None
            pid, port, directory = parent.stdout.readline().split()
            assert alive(int(pid))
        finally:
            parent.kill()
    return int(pid), int(port), Path(directory)


async def test_dies_with_a_killed_parent_and_its_leftovers_go_with_the_next_start() -> None:
    pid, port, directory = start_and_kill_parent()
    await eventually(lambda: not alive(pid))
    assert await read_info("127.0.0.1", port, timeout=1) is None
    assert directory.is_dir()
    async with EmbeddedServer() as server:
        assert not directory.exists()
        assert server.directory is not None
        async with EmbeddedServer():  # a store in use is no leftover
            assert server.directory.is_dir()


async def test_store_in_use_is_refused(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path) as server:
        with pytest.raises(SetupError, match="in use by another broker"):
            await EmbeddedServer(tmp_path).start()
        async with connected(server.url):
            pass
    async with EmbeddedServer(tmp_path):
        pass


async def test_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=rf"127\.0\.0\.1:{port}.*address already in use"):
            await EmbeddedServer(port=port).start()


async def test_answer_of_a_stranger_on_the_port_does_not_count() -> None:
    async def pose(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_name":"stranger"}\r\n')
        await writer.drain()
        writer.close()

    server = EmbeddedServer()
    async with await asyncio.start_server(pose, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        info = await read_info("127.0.0.1", port, timeout=5)
        assert info == {"server_name": "stranger"}
        assert not await server._answers(port)


async def test_program_that_is_no_nats_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match="broker exited with status 1 before it was ready"):
        await EmbeddedServer(binary=false_program()).start()
    monkeypatch.setenv("QINFER_NATS_SERVER", str(tmp_path / "missing"))
    with pytest.raises(SetupError, match=r"QINFER_NATS_SERVER=.*missing: expected an executable"):
        await EmbeddedServer().start()


def false_program() -> Path:
    found = shutil.which("false")
    assert found is not None
    return Path(found)


async def test_server_that_never_gets_ready_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "hang"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    program.chmod(0o755)
    server = EmbeddedServer(tmp_path / "store", binary=program, start_timeout=1.0)
    with pytest.raises(SetupError, match="not ready within 1 s"):
        await server.start()
    assert not alive(int((tmp_path / "pid").read_text()))
    assert server.pid is None


async def test_stop_during_an_endless_restart(tmp_path: Path) -> None:
    """A server that cannot come back is tried again and again, and stop() does not wait for it."""
    server = EmbeddedServer(tmp_path / "store")
    await server.start()
    assert server.directory is not None
    assert server.pid is not None
    with socket.socket() as taken:
        os.kill(server.pid, signal.SIGKILL)
        await eventually(lambda: server.pid is None)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # the server may have been quicker
            taken.bind(("127.0.0.1", server.port))
            taken.listen()
        async with asyncio.timeout(DEADLINE):
            await server.stop()
    assert server.pid is None


@pytest.mark.parametrize("size", [0, 65 * 1024 * 1024])
def test_payload_limits(size: int) -> None:
    with pytest.raises(SetupError, match=f"max_payload {size}: expected 1024 to 67108864 bytes"):
        EmbeddedServer(max_payload=size)
