"""The process that runs the others: starts them, keeps them up, and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence, Set
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry

from qinfer.bus import Bus, connect
from qinfer.cli.app import EXIT_SETUP
from qinfer.cli.serve import roles
from qinfer.cli.serve.metrics import FleetCollector, Target
from qinfer.cli.serve.options import ServeOptions
from qinfer.cli.serve.ports import LOOPBACK, Reservation, free_port
from qinfer.cli.v2 import V2Client
from qinfer.embedded import Child, EmbeddedServer
from qinfer.errors import QInferError, SetupError, Unavailable
from qinfer.registry import Directory, forget_models
from qinfer.telemetry.server import MetricsServer

logger = logging.getLogger(__name__)

_POLL = 0.05
_CALL_TIMEOUT = 5.0
_WILDCARDS = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}  # noqa: S104 (read, not bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the server can be reached, once it runs.

    Attributes:
        http: base URL.
        grpc: "host:port"; None without gRPC.
        metrics: URL of the metrics; None without.
        ready: whether all models are ready; else some could not be loaded.
    """

    http: str
    grpc: str | None
    metrics: str | None
    ready: bool


class Supervisor:
    """Runs a broker (unless one is given), gateways and workers until it is told to stop.

    Args:
        options: what to run.
        models: names of the models that are to be served; they decide when the server is ready.
        announce: called once, when the server is ready, on a thread of its own.
        program: command line of the `qinfer` command the roles are started with.
        stop_grace: seconds a role has, beyond its drain timeout, before it is killed.
    """

    def __init__(
        self,
        options: ServeOptions,
        models: Sequence[str],
        *,
        announce: Callable[[Addresses], None],
        program: Sequence[str] = roles.PROGRAM,
        stop_grace: float = 5.0,
    ) -> None:
        self._options = options
        self._models = frozenset(models)
        self._announce = announce
        self._program = program
        self._stop_grace = stop_grace
        self._broker: EmbeddedServer | None = None
        self._gateways: list[Child] = []
        self._workers: list[Child] = []
        self._metrics_ports: dict[str, int] = {}
        self._started = False
        self._stop = asyncio.Event()
        self._force = asyncio.Event()

    async def run(self) -> bool:
        """Run until SIGINT or SIGTERM, then stop everything in order.

        Returns:
            Whether everything could finish its work; False when a second signal cut that short.

        Raises:
            SetupError: something could not be started.
            Unavailable: the models were not ready in time, or a process could not stay up until then.
        """
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            addresses = self._reserve(stack)
            async with AsyncExitStack() as services:
                try:
                    await self._unless_stopped(self._start(addresses, services))
                    await self._stop.wait()
                finally:
                    finished = await self._shut_down()
        return finished

    def targets(self) -> list[Target]:
        """The children as the metrics see them."""
        found = [
            Target(
                role=role,
                instance=str(index),
                port=self._metrics_ports.get(child.name),
                pid=child.pid,
                restarts=child.restarts,
            )
            for role, children in (("gateway", self._gateways), ("worker", self._workers))
            for index, child in enumerate(children)
        ]
        if (broker := self._broker) is not None:
            found.append(
                Target(role="broker", instance="0", port=None, pid=broker.pid, restarts=broker.restarts)
            )
        return found

    def _reserve(self, stack: ExitStack) -> tuple[int, int]:
        """Keep the gateways' ports (HTTP, gRPC); -1 for gRPC stays -1."""
        options = self._options
        http = stack.enter_context(Reservation("--http-port", options.host, options.http_port))
        if options.grpc_port < 0:
            return http.port, -1
        grpc = stack.enter_context(Reservation("--grpc-port", options.host, options.grpc_port))
        return http.port, grpc.port

    async def _start(self, ports: tuple[int, int], services: AsyncExitStack) -> None:
        options = self._options
        http_port, grpc_port = ports
        metrics: MetricsServer | None = None
        if options.metrics_port >= 0:  # first: a port that is taken should stop us before anything runs
            registry = CollectorRegistry()
            registry.register(FleetCollector(self.targets))
            metrics = await services.enter_async_context(
                MetricsServer(LOOPBACK, options.metrics_port, registry)
            )
        nats = options.nats or await self._start_broker()
        async with _registry(nats, options.namespace) as (bus, directory):
            if not options.nats:
                # A kept store remembers models that have left the repository since; nobody else serves them.
                await forget_models(bus, dict(directory.models))
            before = _workers_here(directory)
            await self._start_roles(roles.environment(nats), http_port, grpc_port)
            host = _WILDCARDS.get(options.host, options.host)
            host = f"[{host}]" if ":" in host else host
            ready = await self._wait_settled(f"http://{host}:{http_port}", directory, before)
        self._started = True
        addresses = Addresses(
            http=f"http://{host}:{http_port}",
            grpc=f"{host}:{grpc_port}" if grpc_port > 0 else None,
            metrics=f"http://{metrics.host}:{metrics.port}/metrics" if metrics is not None else None,
            ready=ready,
        )
        await asyncio.to_thread(self._announce, addresses)

    async def _start_roles(self, environment: Mapping[str, str], http_port: int, grpc_port: int) -> None:
        for index in range(self._options.workers):
            name = f"worker {index}"
            self._workers.append(Child(name, partial(self._worker, name), environment=environment))
        for index in range(self._options.gateways):
            name = f"gateway {index}"
            command = partial(self._gateway, name, http_port, grpc_port)
            self._gateways.append(Child(name, command, environment=environment))
        for child in (*self._workers, *self._gateways):
            await child.start()

    async def _start_broker(self) -> str:
        options = self._options
        self._broker = EmbeddedServer(options.store_dir, max_payload=options.max_payload)
        await self._broker.start()
        return self._broker.url

    def _worker(self, name: str) -> list[str]:
        return roles.worker(self._program, self._options, metrics_port=self._metrics_port(name))

    def _gateway(self, name: str, http_port: int, grpc_port: int) -> list[str]:
        return roles.gateway(
            self._program,
            self._options,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=self._metrics_port(name),
        )

    def _metrics_port(self, name: str) -> int:
        """A port for one start of a child; if somebody takes it first, the next start gets another."""
        if self._options.metrics_port < 0:
            return -1
        self._metrics_ports[name] = free_port()
        return self._metrics_ports[name]

    async def _wait_settled(self, url: str, directory: Directory, before: frozenset[str]) -> bool:
        """Wait until the gateway knows what came of every model; returns whether it calls itself ready."""
        watch = asyncio.ensure_future(self._first_fatal_death())
        try:
            async with asyncio.timeout(self._options.startup_timeout):
                while True:
                    # Workers register when they have loaded what they can: what is missing then has failed.
                    if len(_workers_here(directory) - before) >= self._options.workers:
                        served = {model for model in self._models if directory.serving(model)}
                        ready = await asyncio.to_thread(_look, url, served)
                        if ready is not None:
                            return ready
                    await asyncio.wait({watch}, timeout=_POLL)
                    if watch.done():
                        watch.result()
        except TimeoutError:
            missing = ", ".join(sorted(model for model in self._models if not directory.serving(model)))
            raise Unavailable(
                f"not ready within {self._options.startup_timeout:g} s (--startup-timeout): "
                f"{missing or 'the gateway'}"
            ) from None
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _first_fatal_death(self) -> None:
        """Wait for a child that cannot be started as it is configured; others get further tries."""
        deaths = {asyncio.ensure_future(child.died()): child for child in (*self._workers, *self._gateways)}
        try:
            pending = set(deaths)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for death in done:
                    if death.result() == EXIT_SETUP:
                        raise SetupError(f"{deaths[death].name} cannot run; its message is above")
        finally:
            for death in deaths:
                death.cancel()
            await asyncio.gather(*deaths, return_exceptions=True)

    async def _unless_stopped(self, startup: Coroutine[None, None, None]) -> None:
        """Run the startup; a signal in the middle of it ends it."""
        starting = asyncio.ensure_future(startup)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)

    async def _shut_down(self) -> bool:
        """Stop in the order in which requests flow; a second signal kills. False when it had to."""
        draining = asyncio.ensure_future(self._drain())
        forced = asyncio.ensure_future(self._force.wait())
        await asyncio.wait({draining, forced}, return_when=asyncio.FIRST_COMPLETED)
        finished = draining.done()
        if not finished:
            logger.warning("not waiting any longer")
            for child in (*self._gateways, *self._workers):
                child.kill()
            if self._broker is not None:
                self._broker.kill()
        forced.cancel()
        await asyncio.gather(forced, return_exceptions=True)
        await draining
        return finished

    async def _drain(self) -> None:
        # A worker that is still loading cannot be interrupted, and holds nothing that would be lost.
        timeout = self._stop_grace + (self._options.drain_timeout if self._started else 0.0)
        for role, children in (("gateways", self._gateways), ("workers", self._workers)):
            if children:
                logger.info("stopping %s", role)
            await asyncio.gather(*(child.stop(timeout) for child in children))
        if self._broker is not None:
            logger.info("stopping broker")
            await self._broker.stop()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First signal: stop; second: at once. A terminal that closes is a signal too, unless under nohup."""
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _signalled(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            self._force.set()
        else:
            logger.info("%s: stopping; once more to stop at once", number.name)
            self._stop.set()


@asynccontextmanager
async def _registry(nats: str, namespace: str) -> AsyncIterator[tuple[Bus, Directory]]:
    """A connection to the broker and the fleet's registry, for as long as the block runs."""
    bus = connect(nats, namespace=namespace, name="qinfer serve")
    await bus.start()
    try:
        directory = Directory(bus)
        await directory.start()
        try:
            yield bus, directory
        finally:
            await directory.close()
    finally:
        await bus.close()


def _workers_here(directory: Directory) -> frozenset[str]:
    host = socket.gethostname()
    return frozenset(worker.id for worker in directory.workers if worker.host == host)


def _look(url: str, served: Set[str]) -> bool | None:
    """Whether the gateway is ready; None while it has not heard yet of models that workers serve."""
    client = V2Client(url, timeout=_CALL_TIMEOUT)
    try:
        ready = {str(model.get("name")) for model in client.models() if model.get("state") == "READY"}
        return client.is_ready() if ready >= served else None
    except QInferError:
        return None
