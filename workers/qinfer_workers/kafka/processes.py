"""Several scorer processes of one consumer group under one supervisor."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qinfer.cli.app import EXIT_FAILURE, EXIT_SETUP
from qinfer.cli.serve.metrics import FleetCollector, Target
from qinfer.cli.serve.ports import LOOPBACK
from qinfer.cli.serve.process import Notice, Role
from qinfer.cli.serve.roles import PROGRAM
from qinfer.errors import QInferError
from qinfer.lifecycle import LOADED, NOTIFY_VARIABLE, READY, cancelled, notify
from qinfer.telemetry.server import MetricsServer
from qinfer_workers.backends.threads import SHARED_BY_VARIABLE
from qinfer_workers.kafka.contract import Pipeline
from qinfer_workers.kafka.server import ScorerOptions
from qinfer_workers.kafka.topics import source_partitions

logger = logging.getLogger(__name__)

_STOP_GRACE = 15.0  # seconds beyond the drain, to close clients and models
_ASK_TIMEOUT = 2.0


class Scorers:
    """Runs scorer processes and keeps them up, until it is told to stop.

    A process that crashes is started again after a pause. The first is started alone: what is wrong with
    the set-up is told once, and topics are created by one.

    Args:
        pipeline: what they run.
        arguments: what the `kafka-score` command of each gets: the pipeline's file, options for its logs.
        options: metrics and health of all of them together; the namespace.
        processes: how many.
    """

    def __init__(
        self, pipeline: Pipeline, arguments: Sequence[str], options: ScorerOptions, processes: int
    ) -> None:
        self._pipeline = pipeline
        self._arguments = tuple(arguments)
        self._options = options
        self._processes = processes
        self._roles: list[Role] = []
        self._notices: list[Notice] = []
        self._told: list[signal.Signals] = []
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._fatal: int | None = None

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT, then have each finish what it has; a second signal kills.

        Returns:
            The exit status: 0; that of a process which cannot go on and told why; 128 and the signal's
            number, when a second one cut short what was to be finished.

        Raises:
            SetupError: a process cannot be started, or the port of the metrics is taken.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self._signals())
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qinfer-kafka-score-")))
            if self._options.metrics_port >= 0:
                await stack.enter_async_context(self._metrics())
            stack.callback(self._close_notices)
            running = asyncio.create_task(self._start(folder), name="kafka scorers")
            stopping = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    running.result()
                    await stopping
            finally:
                await cancelled(running, stopping)
                finished = await self._shut_down()
        if self._fatal is not None:
            return self._fatal
        return 0 if finished else 128 + self._told[-1]

    async def _start(self, folder: Path) -> None:
        """Start all; returns when all have joined their group."""
        for index in range(self._processes):
            notice = Notice(folder)
            await notice.open()
            self._notices.append(notice)
            role = self._role(index, notice)
            self._roles.append(role)
            await role.start()
            if index == 0:
                await notice.wait(LOADED)
                await self._compare_partitions()
        for notice in self._notices:
            await notice.wait()
        logger.info("all %d scorers of group %s are running", self._processes, self._pipeline.group)
        notify(READY)

    def _role(self, index: int, notice: Notice) -> Role:
        def command(port: int) -> list[str]:
            # Each option is named: what it is in the environment is meant for this process.
            return [
                *PROGRAM,
                "kafka-score",
                *self._arguments,
                "--processes=1",
                f"--metrics-host={LOOPBACK}",
                f"--metrics-port={port}",
                f"--namespace={self._options.namespace}",
            ]

        environment = {
            **os.environ,
            NOTIFY_VARIABLE: str(notice.path),
            SHARED_BY_VARIABLE: str(self._processes),
        }
        return Role(
            "kafka-score",
            index,
            command,
            environment,
            metrics=self._options.metrics_port >= 0,
            on_death=self._died,
        )

    async def _compare_partitions(self) -> None:
        try:
            partitions = await source_partitions(self._pipeline)
        except QInferError as error:
            logger.info("the number of partitions is not known: %s", error)
            return
        if self._processes > partitions:
            logger.warning(
                "%d processes for %d partitions of %s: the others stand by",
                self._processes,
                partitions,
                ", ".join(self._pipeline.topics.sources),
            )

    def _died(self, status: int) -> None:
        """A process ended unasked: another cannot help where it told what is wrong, and stopped of it."""
        given_up = status == EXIT_FAILURE and not self._pipeline.topics.dead
        if (status == EXIT_SETUP or given_up) and self._fatal is None:
            self._fatal = status
            self._stop.set()

    # The end

    async def _shut_down(self) -> bool:
        """Stop all; a second signal kills them. False when it had to."""
        draining = asyncio.create_task(self._drain())
        forced = asyncio.create_task(self._force.wait())
        await asyncio.wait({draining, forced}, return_when=asyncio.FIRST_COMPLETED)
        finished = draining.done()
        if not finished:
            logger.warning("not waiting any longer")
            for role in self._roles:
                role.child.kill()
        await cancelled(forced)
        await draining
        return finished

    async def _drain(self) -> None:
        timeout = self._pipeline.limits.drain_timeout + _STOP_GRACE
        await asyncio.gather(*(role.child.stop(timeout) for role in self._roles))

    def _close_notices(self) -> None:
        for notice in self._notices:
            notice.close()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _signalled(self, number: signal.Signals) -> None:
        if self._told:
            self._force.set()
        else:
            logger.info("%s: stopping; once more to stop at once", number.name)
            self._stop.set()
        self._told.append(number)

    # What others see

    def _metrics(self) -> MetricsServer:
        registry = CollectorRegistry()
        registry.register(FleetCollector(self._targets))
        routes = [Route("/health/live", self._live), Route("/health/ready", self._ready)]
        return MetricsServer(self._options.metrics_host, self._options.metrics_port, registry, routes=routes)

    def _targets(self) -> list[Target]:
        return [
            Target(
                role=role.role,
                instance=str(role.index),
                port=role.metrics_port,
                pid=role.child.pid,
                restarts=role.child.restarts,
            )
            for role in tuple(self._roles)
        ]

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"processes": self._processes})

    async def _ready(self, _: Request) -> Response:
        """200 while all are members of their group."""
        asked = [asyncio.to_thread(_state, target) for target in self._targets()]
        states = list(await asyncio.gather(*asked))
        states += [{"state": "starting"}] * (self._processes - len(states))
        ready = not self._stop.is_set() and all(state["state"] == "running" for state in states)
        return JSONResponse({"processes": states}, status_code=200 if ready else 503)


def _state(target: Target) -> Mapping[str, Any]:
    """How a process is doing, in its own words."""
    if target.pid is None or target.port is None:
        return {"state": "starting"}
    connection = http.client.HTTPConnection(LOOPBACK, target.port, timeout=_ASK_TIMEOUT)
    try:
        connection.request("GET", "/health/ready")
        found = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return {"state": "starting"}
    else:
        return found if isinstance(found, dict) and "state" in found else {"state": "starting"}
    finally:
        connection.close()
