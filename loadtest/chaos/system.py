"""The system under fire: a broker, two gateways on one port, two workers, and a proxy on each link."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import TracebackType

from loadtest.chaos import models
from loadtest.chaos.faults import COUNT
from loadtest.chaos.proxy import HOST, Proxy
from loadtest.chaos.roles import Death, Role, listens
from qinfer.bus import connect
from qinfer.deadletter import decode_letter
from qinfer.embedded.binary import find_binary
from qinfer.embedded.configuration import USER, Settings, render
from qinfer.embedded.server import DEFAULT_MAX_PAYLOAD, read_info
from qinfer.embedded.store import Store
from qinfer.errors import Unavailable
from qinfer.registry import Directory

NAMESPACE = "chaos"
ACK_WAIT = 2.0
"""Seconds after which a dead worker's requests go to another."""

MAX_IN_FLIGHT = 128
"""Requests a gateway holds: several times the steady load, and less than a burst."""

MAX_QUEUE_MESSAGES = 200

_DRAIN_SECONDS = 20
_INFO_SECONDS = 1.0
_WORKER_READY = " serves "
_REPOSITORY_POLL = 0.5
_SWAP_SECONDS = 30.0
_EMPTY_SECONDS = 20.0
_LETTERS = 1000
_POLL = 0.05


class System:
    """All of it; an async context manager that starts it and stops it.

    Args:
        folder: for models, queues and logs; it must exist.

    Raises:
        SetupError: there is no nats-server program, or models cannot be built.
        Unavailable: on entry, when a process does not become ready.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self.repository = folder / "models"
        self.journal = folder / "journal"
        self.nats_port, self.http_port, self.grpc_port = free_ports(3)
        self._password = secrets.token_urlsafe(24)
        self.links: dict[str, Proxy] = {}
        self.roles: dict[str, Role] = {}
        self._bus = connect(self.nats, namespace=NAMESPACE, name="chaos")
        self._directory = Directory(self._bus)
        self.versions = dict.fromkeys(models.MODELS, 1)

    @property
    def nats(self) -> str:
        """The broker's URL, past all proxies."""
        return self._url(self.nats_port)

    @property
    def deaths(self) -> list[Death]:
        """Of all processes that ended without being told to."""
        return [death for role in self.roles.values() for death in role.deaths]

    async def swap(self, model: str) -> None:
        """Give a model a new version, and wait until all live workers serve it.

        Raises:
            Unavailable: they did not in time.
        """
        version = self.versions[model] = self.versions[model] + 1
        await asyncio.to_thread(models.add_version, self.repository, model, version)
        give_up = time.monotonic() + _SWAP_SECONDS
        while not self._all_serve(model, str(version)):
            if time.monotonic() > give_up:
                raise Unavailable(f"not all workers serve {model} {version} after {_SWAP_SECONDS:.0f} s")
            await asyncio.sleep(_POLL)

    def _all_serve(self, model: str, version: str) -> bool:
        workers = [worker for worker in self._directory.workers if not worker.draining]
        return bool(workers) and all(version in worker.models.get(model, ()) for worker in workers)

    async def left_behind(self) -> list[str]:
        """What is still queued for a model, when nobody has asked for anything for a while."""
        queued = dict.fromkeys(models.MODELS, 0)
        give_up = time.monotonic() + _EMPTY_SECONDS
        while time.monotonic() < give_up:
            queued = {model: await self._bus.queued(model, "") for model in models.MODELS}
            if not any(queued.values()):
                break
            await asyncio.sleep(_POLL)
        return [f"{count} frames in the queue of {model}" for model, count in queued.items() if count]

    async def buried(self) -> list[str]:
        """Identifiers of the requests that lie in the dead letters."""
        letters = await self._bus.letters(limit=_LETTERS)
        return [decode_letter(letter.data).request_id for letter in letters]

    async def __aenter__(self) -> System:
        self.journal.mkdir()
        models.build(self.repository, self.journal)
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        await self._launch(self._broker())
        await self._bus.start()
        self._stack.push_async_callback(self._bus.close)
        await self._directory.start()
        self._stack.push_async_callback(self._directory.close)
        names = [f"{role} {number}" for role in ("worker", "gateway") for number in range(COUNT[role])]
        for name in names:
            self.links[name] = await self._stack.enter_async_context(Proxy(self.nats_port))
        for number in range(COUNT["worker"]):
            await self._launch(self._worker(number))
        for number in range(COUNT["gateway"]):
            await self._launch(self._gateway(number))

    async def _launch(self, role: Role) -> None:
        self.roles[role.name] = role
        self._stack.push_async_callback(role.kill)
        await role.start()
        await role.ready()

    def _url(self, port: int) -> str:
        return f"nats://{USER}:{self._password}@{HOST}:{port}"

    def _broker(self) -> Role:
        store = Store(self._folder / "broker")
        self._stack.callback(store.close)
        settings = Settings(
            name=f"chaos-{secrets.token_hex(4)}",
            password=self._password,
            port=self.nats_port,
            max_payload=DEFAULT_MAX_PAYLOAD,
        )
        store.write_configuration(render(settings, store))

        async def ready(_pid: int, _written: str) -> bool:
            info = await read_info(HOST, self.nats_port, timeout=_INFO_SECONDS)
            return info is not None and info.get("server_name") == settings.name

        command = [str(find_binary()), "--config", str(store.configuration)]
        return self._role("broker 0", command, ready, GOMAXPROCS="1")

    def _worker(self, number: int) -> Role:
        async def ready(_pid: int, written: str) -> bool:
            return _WORKER_READY in written

        name = f"worker {number}"
        return self._role(
            name,
            [
                *(sys.executable, "-m", "qinfer", "worker", str(self.repository)),
                *(f"--namespace={NAMESPACE}", f"--drain-timeout={_DRAIN_SECONDS}"),
                *("--model-control-mode=poll", f"--repository-poll-secs={_REPOSITORY_POLL}"),
                *(f"--ack-wait={ACK_WAIT}", "--storage=file", f"--max-queue-messages={MAX_QUEUE_MESSAGES}"),
            ],
            ready,
            QINFER_NATS=self._url(self.links[name].port),
        )

    def _gateway(self, number: int) -> Role:
        async def ready(pid: int, _written: str) -> bool:
            return await listens(pid, (self.http_port, self.grpc_port))

        name = f"gateway {number}"
        return self._role(
            name,
            [
                *(sys.executable, "-m", "qinfer", "gateway", f"--namespace={NAMESPACE}", "--reuse-port"),
                *(f"--http-port={self.http_port}", f"--grpc-port={self.grpc_port}"),
                *(f"--max-in-flight={MAX_IN_FLIGHT}", f"--drain-timeout={_DRAIN_SECONDS}"),
            ],
            ready,
            QINFER_NATS=self._url(self.links[name].port),
        )

    def _role(self, name: str, command: list[str], ready: object, **environment: str) -> Role:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("QINFER_")}
        return Role(
            name,
            command,
            environment={**clean, **environment},
            log=self._folder / f"{name.replace(' ', '-')}.log",
            ready=ready,  # type: ignore[arg-type]
        )


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now. All are held open until chosen, so that they differ."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind((HOST, 0))
            found.append(int(listener.getsockname()[1]))
    return found
