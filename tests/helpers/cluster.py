"""A real NATS cluster of three on loopback, whose members can be killed and brought back."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import nats
import nats.errors
from nats.js import JetStreamContext

from qinfer.embedded.binary import find_binary
from qinfer.embedded.guard import guarded
from tests.helpers.waiting import PATIENCE

HOST = "127.0.0.1"
T = TypeVar("T")

_USER, _PASSWORD = "somebody", "in-particular"
_SIZE = 3  # the smallest that goes on with one member less


@dataclass(slots=True)
class Member:
    """One server of the cluster.

    Attributes:
        name: by which the cluster tells who leads what.
        port: where clients connect, the same after a restart.
        route: where the other members connect.
        directory: its streams.
    """

    name: str
    port: int
    route: int
    directory: Path
    process: asyncio.subprocess.Process | None = field(default=None)

    @property
    def url(self) -> str:
        return f"nats://{_USER}:{_PASSWORD}@{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)


class Cluster:
    """Three nats-servers with JetStream. Started in `__aenter__`, which returns when they have a leader.

    Args:
        directory: an empty folder for what they store.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.members: list[Member] = []

    @property
    def url(self) -> str:
        """All members, as `--nats` takes them."""
        return ",".join(member.url for member in self.members)

    async def __aenter__(self) -> Cluster:
        ports = _free_ports(2 * _SIZE)
        self.members = [
            Member(f"n{index}", ports[2 * index], ports[2 * index + 1], self._directory / f"n{index}")
            for index in range(_SIZE)
        ]
        try:
            for member in self.members:
                await self.start(member)
            await self.formed()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for member in self.members:
            await self.kill(member)

    async def start(self, member: Member) -> None:
        """Start a member that does not run; it may not be there for its clients yet."""
        member.directory.mkdir(parents=True, exist_ok=True)
        configuration = member.directory / "nats.conf"
        configuration.write_text(json.dumps(self._configuration(member)))
        member.process = await asyncio.create_subprocess_exec(
            *guarded([str(find_binary()), "--config", str(configuration)]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    async def kill(self, member: Member) -> None:
        """SIGKILL, also for one that is stopped. Idempotent."""
        process, member.process = member.process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def member(self, name: str) -> Member:
        """The member of that name."""
        return next(member for member in self.members if member.name == name)

    async def leader(self, stream: str, consumer: str = "") -> Member:
        """The member that leads a stream, or one of its consumers; waits until there is one that lives."""
        async with asyncio.timeout(PATIENCE):
            while True:
                name = await self._leader(stream, consumer)
                if name and self.member(name).process is not None:
                    return self.member(name)
                await asyncio.sleep(0.05)

    async def formed(self) -> None:
        """Wait until all members are of the cluster and have copies of all that the others have."""
        async with asyncio.timeout(PATIENCE):
            for member in self.members:
                while not await _ask(member, _complete):  # noqa: ASYNC110 - a condition of other processes
                    await asyncio.sleep(0.05)

    async def _leader(self, stream: str, consumer: str) -> str:
        async def question(context: JetStreamContext) -> str:
            info = await (
                context.consumer_info(stream, consumer) if consumer else context.stream_info(stream)
            )
            return (info.cluster.leader if info.cluster else None) or ""

        for member in self.members:
            if member.process is not None and (name := await _ask(member, question)):
                return name
        return ""

    def _configuration(self, member: Member) -> dict[str, object]:
        return {
            "server_name": member.name,
            "listen": f"{HOST}:{member.port}",
            "log_file": str(member.directory / "log"),
            "max_payload": 8 << 20,
            "authorization": {"user": _USER, "password": _PASSWORD},
            "jetstream": {
                "store_dir": str(member.directory),
                "max_file_store": 4 << 30,
                "max_memory_store": 1 << 30,
            },
            "cluster": {
                "name": "test",
                "listen": f"{HOST}:{member.route}",
                "routes": [f"nats://{HOST}:{other.route}" for other in self.members],
            },
        }


async def _complete(context: JetStreamContext) -> bool:
    clusters = [info.cluster for info in await context.streams_info() if info.cluster is not None]
    copies = [copy for cluster in clusters for copy in cluster.replicas or []]
    return all(cluster.leader for cluster in clusters) and all(copy.current for copy in copies)


async def _ask(member: Member, question: Callable[[JetStreamContext], Awaitable[T]]) -> T | None:
    """Ask a member something; None when it cannot tell at the moment."""
    try:
        client = await nats.connect(member.url, connect_timeout=1, allow_reconnect=False, error_cb=_ignore)
        try:
            return await question(client.jetstream(timeout=1))
        finally:
            await client.close()
    except (nats.errors.Error, OSError, TimeoutError):
        return None


async def _ignore(_: Exception) -> None:
    """Members are down at times."""


def _free_ports(count: int) -> list[int]:
    """Ports nobody uses now. The members must know each other's before they start."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
