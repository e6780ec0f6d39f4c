"""The real thing to test against: `qinfer serve` in processes of its own, or its roles in this one."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import nats

from qinfer.bus import connect
from qinfer.bus.nats import NatsBus
from qinfer.naming import Names
from qinfer_gateway.dispatcher import Dispatcher
from qinfer_gateway.http.front import HttpFront
from qinfer_gateway.options import GatewayOptions
from qinfer_gateway.server import Gateway
from qinfer_workers.options import WorkerOptions
from qinfer_workers.worker import Worker
from tests.helpers.waiting import PATIENCE, eventually

_START_SECONDS = 90.0
_STOP_SECONDS = 30.0
_ADDRESSES = {
    "http_port": re.compile(r"HTTP\s+https?://127\.0\.0\.1:(\d+)"),
    "grpc_port": re.compile(r"gRPC\s+127\.0\.0\.1:(\d+)"),
    "metrics_port": re.compile(r"metrics\s+http://127\.0\.0\.1:(\d+)"),
}
_SHOWN = re.compile(r"qinfer (is ready|runs, but)")


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A running `qinfer serve`, all ports on 127.0.0.1.

    Attributes:
        http_port, grpc_port, metrics_port: where it can be reached.
        repository: the models it serves.
        pid: of its supervisor.
        log: what it has written to its standard error.
    """

    http_port: int
    grpc_port: int
    metrics_port: int
    repository: Path
    pid: int
    log: Path
    _told: Event = field(default_factory=Event)

    def stop(self) -> None:
        """Tell it to stop in order, once: a second signal would cut that short."""
        if not self._told.is_set():
            self._told.set()
            os.kill(self.pid, signal.SIGTERM)

    @property
    def http(self) -> str:
        """Address as `tritonclient` wants it."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}/metrics"


@contextmanager
def serving(repository: Path, *arguments: str) -> Iterator[System]:
    """`qinfer serve` on free ports, from ready until it has stopped in order.

    Raises:
        AssertionError: it did not become ready, or did not end well.
    """
    with tempfile.TemporaryDirectory(prefix="qinfer-test-") as folder:
        screen, log = Path(folder, "screen"), Path(folder, "log")
        command = [
            *(sys.executable, "-m", "qinfer", "serve", str(repository)),
            *("--http-port=0", "--grpc-port=0", "--metrics-port=0", *arguments),
        ]
        with screen.open("wb") as out, log.open("wb") as err:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={key: value for key, value in os.environ.items() if not key.startswith("QINFER_")},
                start_new_session=True,
            )
        try:
            shown = _wait_shown(process, screen, log)
            ports = {name: int(_found(pattern, shown)) for name, pattern in _ADDRESSES.items()}
            system = System(
                http_port=ports["http_port"],
                grpc_port=ports["grpc_port"],
                metrics_port=ports["metrics_port"],
                repository=repository,
                pid=process.pid,
                log=log,
            )
            yield system
            system.stop()
            status = process.wait(_STOP_SECONDS)
            assert status == 0, f"qinfer serve ended with {status}:\n{log.read_text()}"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(_STOP_SECONDS)


def _wait_shown(process: subprocess.Popen[bytes], screen: Path, log: Path) -> str:
    give_up = time.monotonic() + _START_SECONDS
    while not _SHOWN.search(shown := screen.read_text(errors="replace")):
        ended = process.poll() is not None
        assert not ended, f"qinfer serve ended before it was ready:\n{log.read_text()}"
        assert time.monotonic() < give_up, f"qinfer serve was not ready in time:\n{log.read_text()}"
        time.sleep(0.02)
    return shown


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    assert match is not None, f"{pattern.pattern} is not in:\n{text}"
    return match[1]


@dataclass(slots=True, kw_only=True)
class Fleet:
    """A gateway in this process, with workers in this process or in processes of their own."""

    nats: str
    namespace: str
    repository: Path
    gateway: Gateway
    stack: AsyncExitStack
    workers: list[Worker] = field(default_factory=list)

    @property
    def port(self) -> int:
        assert self.gateway.http is not None
        return self.gateway.http.port

    @property
    def front(self) -> HttpFront:
        assert self.gateway.http is not None
        protocol: Any = self.gateway.http._server.config.http
        front: HttpFront = protocol.front
        return front

    @property
    def dispatcher(self) -> Dispatcher:
        return self.front.dispatcher

    @property
    def bus(self) -> NatsBus:
        """The gateway's connection to the broker."""
        bus = self.dispatcher._bus
        assert isinstance(bus, NatsBus)
        return bus

    @property
    def in_flight(self) -> int:
        return sum(self.dispatcher.in_flight.values())

    async def queued(self, model: str) -> int:
        """Messages in a model's queue at the broker, those at workers included."""
        client = await nats.connect(self.nats.split(","))
        try:
            info = await client.jetstream().stream_info(Names(self.namespace).stream(model))
            return int(info.state.messages)
        finally:
            await client.close()

    async def add_worker(self, *models: str, nats: str = "", **options: Any) -> Worker:
        """Start a worker in this process; it is drained at the end of the test.

        Args:
            models: what it serves.
            nats: where it finds the broker, if not where the gateway does.
            options: of `WorkerOptions`.
        """
        bus = connect(nats or self.nats, namespace=self.namespace, name="test-worker")
        await bus.start()
        self.stack.push_async_callback(bus.close)
        worker = Worker(self._worker_options(models, options), bus)
        self.stack.push_async_callback(worker.drain)
        await worker.start()
        self.workers.append(worker)
        await self.known(worker.id)
        return worker

    async def add_worker_process(self, *models: str, **options: Any) -> asyncio.subprocess.Process:
        """Start a worker in a process of its own and wait until the gateway knows it."""
        before = {record.id for record in self._workers_seen()}
        told = {"drain-timeout": "20", "ack-wait": "30", **options}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "qinfer", "worker", str(self.repository)),
            *(f"--model={model}" for model in models),
            *(f"--{name}={value}" for name, value in told.items()),
            *("--storage=memory", f"--namespace={self.namespace}"),
            env={**os.environ, "QINFER_NATS": self.nats},
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self.stack.push_async_callback(_end, process)
        await eventually(
            lambda: {record.id for record in self._workers_seen()} - before or process.returncode is not None,
            "the new worker is known",
        )
        assert process.returncode is None
        return process

    async def known(self, worker: str) -> None:
        """Wait until the gateway knows a worker."""
        await eventually(lambda: worker in {record.id for record in self._workers_seen()}, "worker is known")

    async def unknown(self, worker: str) -> None:
        """Wait until the gateway sends a worker nothing any more."""
        await eventually(
            lambda: worker not in {record.id for record in self._workers_seen() if not record.draining},
            "worker has gone",
        )

    def _workers_seen(self) -> Sequence[Any]:
        return self.front.catalog.directory.workers

    def _worker_options(self, models: Sequence[str], options: dict[str, Any]) -> WorkerOptions:
        # A lost frame would come back after the ack wait: with a long one, tests see that it was lost.
        told: dict[str, Any] = {"ack_wait": 30.0, "drain_timeout": PATIENCE, "storage": "memory", **options}
        return WorkerOptions(
            nats=self.nats,
            namespace=self.namespace,
            repositories=(self.repository,),
            models=tuple(models),
            **told,
        )


async def _forget(nats_url: str, namespace: str) -> None:
    client = await nats.connect(nats_url.split(","))
    try:
        stream = client.jetstream()
        for info in await stream.streams_info():
            name = str(info.config.name)
            if name.startswith(
                (f"QINFER_{namespace}=", f"KV_qinfer_{namespace}_", f"OBJ_qinfer_{namespace}_")
            ):
                await stream.delete_stream(name)
    finally:
        await client.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@asynccontextmanager
async def fleet(
    nats_url: str, namespace: str, repository: Path, **gateway_options: Any
) -> AsyncIterator[Fleet]:
    """A gateway without workers; the test adds them."""
    told: dict[str, Any] = {"http_port": 0, "grpc_port": -1, "drain_timeout": PATIENCE, **gateway_options}
    gateway = Gateway(GatewayOptions(nats=nats_url, namespace=namespace, **told))
    async with AsyncExitStack() as stack:
        if not nats_url.startswith("kafka"):
            # Queues reserve room at the broker, which is shared: no test may leave its own behind.
            stack.push_async_callback(_forget, nats_url, namespace)
        try:
            await gateway.start()
            yield Fleet(
                nats=nats_url, namespace=namespace, repository=repository, gateway=gateway, stack=stack
            )
        finally:
            await gateway.stop()
