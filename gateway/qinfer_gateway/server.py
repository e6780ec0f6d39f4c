"""The gateway process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

from prometheus_client.registry import Collector

from qinfer.bus import connect
from qinfer.gateways import STATE, state_of
from qinfer.lifecycle import READY, notify, until_stopped
from qinfer.registry import Directory
from qinfer.telemetry.gateway import GatewayStats
from qinfer.telemetry.logs import log_handler
from qinfer.telemetry.metrics import GatewayCollector, new_registry
from qinfer.telemetry.request_log import RequestLog
from qinfer.telemetry.server import MetricsServer
from qinfer.telemetry.tracing import Tracing, tracing_from_env
from qinfer_gateway.auth.reload import Watch
from qinfer_gateway.catalog import Catalog
from qinfer_gateway.dispatcher import Dispatcher
from qinfer_gateway.front import Front
from qinfer_gateway.grpc.server import GrpcServer
from qinfer_gateway.http import jobs as job_routes
from qinfer_gateway.http.app import make_app
from qinfer_gateway.http.deferred import Deferred
from qinfer_gateway.http.front import HttpFront
from qinfer_gateway.http.server import HttpServer
from qinfer_gateway.jobs.opening import open_jobs
from qinfer_gateway.jobs.service import JobService
from qinfer_gateway.jobs.stats import JobsCollector
from qinfer_gateway.observer import Observer
from qinfer_gateway.options import GatewayOptions
from qinfer_gateway.security import Security, open_security

logger = logging.getLogger(__name__)

_CONVERSION_THREADS = 2
_JOBS_FAREWELL = 2.0  # seconds that jobs have to end when the gateway stops: others go on with them
# The objects of a request live for milliseconds and are freed by reference count; the collector only has to
# look for cycles now and then.
_GC_THRESHOLD = 50_000


class Gateway:
    """One gateway: bus, registry view, HTTP and gRPC servers."""

    def __init__(self, options: GatewayOptions) -> None:
        self._options = options
        self._bus = connect(options.nats, namespace=options.namespace, name="qinfer-gateway")
        self._stack = AsyncExitStack()
        self.http: HttpServer | None = None
        self.grpc: GrpcServer | None = None
        self._front: Front | None = None
        self.jobs: JobService | None = None

    async def start(self) -> None:
        """Connect and listen. What was started is stopped again by `stop`, also after a failure.

        Raises:
            BusUnavailable: the broker does not answer.
            SetupError: an address cannot be bound.
        """
        options, stack, bus = self._options, self._stack, self._bus
        self._security = await self._open_security()
        await bus.start()
        stack.push_async_callback(bus.close)
        directory = Directory(bus)
        await directory.start()
        stack.push_async_callback(directory.close)
        catalog = Catalog(directory, bus.names)
        stats = GatewayStats(lambda model: model in directory.models, queues=lambda: dispatcher.flights)
        observer = Observer(stats, self._tracing(), self._request_log())
        dispatcher = Dispatcher(
            bus,
            observer,
            max_in_flight=options.max_in_flight,
            max_queue_rows=options.max_queue_rows,
            timeout=options.request_timeout,
            patience=options.broker_patience,
            max_claim_bytes=options.max_claim_bytes,
        )
        front = self._front = Front(bus, directory, catalog)
        collectors: list[Collector] = [GatewayCollector(stats)]
        opened = open_jobs(options, bus, catalog, dispatcher)
        if opened is not None:
            self.jobs = opened.service
            collectors.append(JobsCollector(opened.stats))
            await stack.enter_async_context(Watch(opened.watched))
        if options.metrics_port >= 0:
            registry = new_registry("gateway", *collectors)
            await stack.enter_async_context(
                MetricsServer(options.metrics_host, options.metrics_port, registry)
            )
        await bus.answer(STATE, _teller(front))
        threads = ThreadPoolExecutor(_CONVERSION_THREADS, thread_name_prefix="convert")
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        stack.push_async_callback(self._drain, front, dispatcher)
        if options.http_port >= 0:
            await self._start_http(front, catalog, dispatcher, threads)
        if options.grpc_port >= 0:
            await self._start_grpc(front, catalog, dispatcher, threads)
        if self.jobs is not None:
            self.jobs.start()

    @property
    def addresses(self) -> str:
        """Where its servers listen, for people."""
        servers = {"HTTP": self.http, "gRPC": self.grpc}
        return ", ".join(
            f"{self._options.host}:{server.port} ({name})" for name, server in servers.items() if server
        )

    async def hand_over(self) -> None:
        """Be ready no more, and serve on until clients have gone elsewhere, or the lame duck time is over."""
        if self._front is not None:
            self._front.draining = True
        if self.jobs is not None:
            self.jobs.leave()
        waits = []
        if self.http is not None:
            waits.append(self.http.hand_over(self._options.lame_duck))
        if self.grpc is not None:
            waits.append(self.grpc.hand_over())
        await asyncio.gather(*waits)

    async def stop(self) -> None:
        """Stop accepting, answer what is in flight, leave. Idempotent."""
        await self._stack.aclose()

    async def _open_security(self) -> Security:
        """Read what the options name, and watch it for changes."""
        security = open_security(self._options)
        await self._stack.enter_async_context(Watch(security.watched))
        return security

    def _tracing(self) -> Tracing | None:
        tracing = tracing_from_env("gateway", instance=f"{socket.gethostname()}-{os.getpid()}")
        if tracing is not None:
            self._stack.push_async_callback(asyncio.to_thread, tracing.close)
        return tracing

    def _request_log(self) -> RequestLog | None:
        if not self._options.log_requests:
            return None
        log = RequestLog(log_handler())
        self._stack.push_async_callback(asyncio.to_thread, log.close)
        return log

    async def _start_http(
        self, front: Front, catalog: Catalog, dispatcher: Dispatcher, threads: ThreadPoolExecutor
    ) -> None:
        options, jobs = self._options, self.jobs
        security = self._security
        http_front = HttpFront(
            catalog,
            dispatcher,
            max_body_bytes=options.max_body_bytes,
            threads=threads,
            access=security.access,
            limits=security.limits,
            ids_are_keys=options.idempotent_request_ids,
            deferred=None if jobs is None else Deferred(jobs, ids_are_keys=options.idempotent_request_ids),
        )
        self.http = HttpServer(
            make_app(
                front,
                security.access,
                job_routes.routes(jobs, http_front),
                inference=http_front,
            ),
            http_front,
            host=options.host,
            port=options.http_port,
            reuse_port=options.reuse_port,
            tls=security.tls,
        )
        await self.http.start()

    async def _start_grpc(
        self, front: Front, catalog: Catalog, dispatcher: Dispatcher, threads: ThreadPoolExecutor
    ) -> None:
        options = self._options
        self.grpc = GrpcServer(
            front,
            catalog,
            dispatcher,
            threads,
            host=options.host,
            port=options.grpc_port,
            reuse_port=options.reuse_port,
            max_body_bytes=options.max_body_bytes,
            max_in_flight=options.max_in_flight,
            access=self._security.access,
            tls=self._security.tls,
            limits=self._security.limits,
            lame_duck=options.lame_duck,
            ids_are_keys=options.idempotent_request_ids,
        )
        await self.grpc.start()

    async def _drain(self, front: Front, dispatcher: Dispatcher) -> None:
        front.draining = True
        timeout = self._options.drain_timeout
        if self.jobs is not None:
            self.jobs.leave()
        servers = (self.http, self.grpc)
        await asyncio.gather(*(server.stop(timeout) for server in servers if server is not None))
        if self.jobs is not None:
            await self.jobs.close(_JOBS_FAREWELL)
        await dispatcher.drain(timeout)


def _teller(front: Front) -> Callable[[bytes], Awaitable[bytes]]:
    """Answers the question for this gateway's state."""

    async def tell(_: bytes) -> bytes:
        served = [row["name"] for row in front.models() if row["state"] == "READY"]
        return state_of(ready=front.ready, models=served)

    return tell


async def serve(options: GatewayOptions) -> None:
    """Run one gateway until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

    At SIGTERM others take over: clients are given time to find them. SIGINT is the end.

    Raises:
        BusUnavailable: the broker does not answer.
        SetupError: an address cannot be bound.
    """
    gateway = Gateway(options)
    async with until_stopped() as stopped:
        try:
            await gateway.start()
            logger.info("listening on %s", gateway.addresses)
            gc.freeze()
            gc.set_threshold(_GC_THRESHOLD, 20, 20)
            notify(READY)
            await stopped.wait()
            logger.info("draining")
            if stopped.handing_over:
                await gateway.hand_over()
        finally:
            await gateway.stop()
