"""The process that runs the others: starts them, keeps them up, and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence, Set
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from qinfer.bus import Bus, connect
from qinfer.cli.app import EXIT_SETUP
from qinfer.cli.models import ModelRow, registered
from qinfer.cli.options import NATS_VARIABLE
from qinfer.cli.serve import roles
from qinfer.cli.serve.metrics import FleetCollector, Target
from qinfer.cli.serve.options import ServeOptions
from qinfer.cli.serve.ports import LOOPBACK, Reservation
from qinfer.cli.serve.process import Command, Notice, Role, RoleName
from qinfer.cli.serve.rolling import Rolling, workers_here
from qinfer.cli.v2 import V2Client
from qinfer.embedded import EmbeddedServer
from qinfer.errors import QInferError, SetupError, Unavailable
from qinfer.gateways import gateways_here
from qinfer.lifecycle import READY, notify, on_hangup
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
        models: what is served, where gateways answer only who has credentials; None where they can be asked.
    """

    http: str
    grpc: str | None
    metrics: str | None
    ready: bool
    models: Sequence[ModelRow] | None = None


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
        self._gateways: list[Role] = []
        self._workers: list[Role] = []
        self._rolling = Rolling(stop_timeout=stop_grace + options.drain_timeout + options.lame_duck)
        self._ports = (0, 0)
        self._environment: Mapping[str, str] = {}
        self._started = False
        self._again = asyncio.Event()
        self._stop = asyncio.Event()
        self._force = asyncio.Event()

    async def run(self) -> bool:
        """Run until SIGINT or SIGTERM, then stop everything in order; SIGHUP replaces gateways and workers.

        Returns:
            Whether everything could finish its work; False when a second signal cut that short.

        Raises:
            SetupError: something could not be started.
            Unavailable: the models were not ready in time, or a process could not stay up until then.
        """
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            self._ports = self._reserve(stack)
            async with on_hangup(self._again.set, self._stop.set), AsyncExitStack() as services:
                try:
                    await self._unless_stopped(self._start(services))
                    await self._unless_stopped(self._follow())
                finally:
                    finished = await self._shut_down()
        return finished

    def targets(self) -> list[Target]:
        """The children as the metrics see them."""
        found = [
            Target(
                role=role.role,
                instance=str(role.index),
                port=role.metrics_port,
                pid=role.child.pid,
                restarts=role.child.restarts,
            )
            for role in (*self._gateways, *self._workers)
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

    async def _start(self, services: AsyncExitStack) -> None:
        options = self._options
        http_port, grpc_port = self._ports
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
            before = {worker.id for worker in workers_here(directory)}
            self._environment = roles.environment(nats)
            await self._start_roles()
            host = _WILDCARDS.get(options.host, options.host)
            host = f"[{host}]" if ":" in host else host
            http = f"{'https' if options.tls_cert else 'http'}://{host}:{http_port}"
            ready = await self._wait_settled(http, bus, directory, before)
            models = registered(directory) if options.guarded else None
        self._started = True
        addresses = Addresses(
            http=http,
            grpc=f"{host}:{grpc_port}" if grpc_port > 0 else None,
            metrics=f"http://{metrics.host}:{metrics.port}/metrics" if metrics is not None else None,
            ready=ready,
            models=models,
        )
        await asyncio.to_thread(self._announce, addresses)
        notify(READY)

    async def _start_roles(self) -> None:
        self._workers += [self._worker(index) for index in range(self._options.workers)]
        self._gateways += [self._gateway(index) for index in range(self._options.gateways)]
        for role in (*self._workers, *self._gateways):
            await role.start()

    async def _follow(self) -> None:
        """Replace gateways and workers whenever SIGHUP asks for it."""
        while True:
            await self._again.wait()
            self._again.clear()
            logger.info("restarting workers and gateways one after the other")
            try:
                await self._roll()
            except (QInferError, OSError) as error:
                logger.error("what is not restarted yet goes on as it is: %s", error)
            else:
                logger.info("all workers and gateways are restarted")

    async def _roll(self) -> None:
        async with _registry(self._environment[NATS_VARIABLE], self._options.namespace) as (bus, directory):
            await self._rolling.replace_workers(self._workers, self._worker, directory)
            if not self._options.nats:
                # Models that have left the repository are not served by the new workers, nor by anybody else.
                gone = {
                    name: versions
                    for name, versions in directory.models.items()
                    if not directory.serving(name)
                    and not any(name in worker.problems for worker in directory.workers)
                }
                await forget_models(bus, gone)
        await self._rolling.replace_gateways(self._gateways, self._gateway)

    async def _start_broker(self) -> str:
        options = self._options
        self._broker = EmbeddedServer(options.store_dir, max_payload=options.max_payload)
        await self._broker.start()
        return self._broker.url

    def _worker(self, index: int, notice: Notice | None = None) -> Role:
        return self._role(
            "worker",
            index,
            lambda port: roles.worker(self._program, self._options, metrics_port=port),
            notice,
        )

    def _gateway(self, index: int, notice: Notice | None = None) -> Role:
        http_port, grpc_port = self._ports

        def command(port: int) -> list[str]:
            return roles.gateway(
                self._program,
                self._options,
                http_port=http_port,
                grpc_port=grpc_port,
                metrics_port=port,
            )

        return self._role("gateway", index, command, notice)

    def _role(self, role: RoleName, index: int, command: Command, notice: Notice | None) -> Role:
        return Role(
            role,
            index,
            command,
            self._environment,
            metrics=self._options.metrics_port >= 0,
            notice=notice,
            startup_timeout=self._options.startup_timeout,
        )

    async def _wait_settled(self, url: str, bus: Bus, directory: Directory, before: Set[str]) -> bool:
        """Wait until the gateway knows what came of every model; returns whether it calls itself ready."""
        watch = asyncio.ensure_future(self._first_fatal_death())
        try:
            async with asyncio.timeout(self._options.startup_timeout):
                while True:
                    # Workers register when they have loaded what they can: what is missing then has failed.
                    here = {worker.id for worker in workers_here(directory)}
                    if len(here - before) >= self._options.workers:
                        served = {model for model in self._models if directory.serving(model)}
                        if self._options.guarded:  # to those who have no key, it tells nothing
                            ready = await self._ask_gateways(bus, served)
                        else:
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

    async def _ask_gateways(self, bus: Bus, served: Set[str]) -> bool | None:
        """Whether the gateways are ready; None while one has not heard yet of models that workers serve."""
        alone = 0 if self._options.nats else self._options.gateways
        states = await gateways_here(bus, alone=alone)
        if len(states) < self._options.gateways or any(served - set(state.models) for state in states):
            return None
        return all(state.ready for state in states)

    async def _first_fatal_death(self) -> None:
        """Wait for a child that cannot be started as it is configured; others get further tries."""
        children = [role.child for role in (*self._workers, *self._gateways)]
        deaths = {asyncio.ensure_future(child.died()): child for child in children}
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
        """Run what a signal to stop ends in the middle."""
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
            for role in (*self._gateways, *self._workers, *self._rolling.between):
                role.child.kill()
            if self._broker is not None:
                self._broker.kill()
        forced.cancel()
        await asyncio.gather(forced, return_exceptions=True)
        await draining
        return finished

    async def _drain(self) -> None:
        # A worker that is still loading cannot be interrupted, and holds nothing that would be lost.
        timeout = self._stop_grace + (self._options.drain_timeout if self._started else 0.0)
        between = self._rolling.between
        for name, running in (("gateway", self._gateways), ("worker", self._workers)):
            leaving = [*running, *(role for role in between if role.role == name)]
            if leaving:
                logger.info("stopping %ss", name)
            # SIGINT: nobody takes over, so there is no use in having clients look for another.
            await asyncio.gather(*(role.child.stop(timeout, signal.SIGINT) for role in leaving))
        if self._broker is not None:
            logger.info("stopping broker")
            await self._broker.stop()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First signal: stop; second: at once."""
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGINT, signal.SIGTERM]
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


def _look(url: str, served: Set[str]) -> bool | None:
    """Whether the gateway is ready; None while it has not heard yet of models that workers serve."""
    client = V2Client(url, timeout=_CALL_TIMEOUT)
    try:
        ready = {str(model.get("name")) for model in client.models() if model.get("state") == "READY"}
        return client.is_ready() if ready >= served else None
    except QInferError:
        return None
