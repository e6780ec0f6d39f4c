"""The worker process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from contextlib import AsyncExitStack
from typing import Any

from qinfer.bus import connect
from qinfer.errors import InternalError
from qinfer.lifecycle import READY, cancelled, notify, on_hangup, until_stopped
from qinfer.telemetry.metrics import WorkerCollector, new_registry
from qinfer.telemetry.server import MetricsServer
from qinfer.telemetry.tracing import tracing_from_env
from qinfer_workers.backends.python.triton.metrics import ModelMetrics
from qinfer_workers.options import WorkerOptions
from qinfer_workers.worker import Worker

logger = logging.getLogger(__name__)


async def serve(options: WorkerOptions) -> None:
    """Run one worker until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

    Raises:
        BusUnavailable: the broker does not answer.
        InternalError: an instance hangs; whoever started the process should start it anew.
    """
    bus = connect(options.nats, namespace=options.namespace, name="qinfer-worker")
    async with AsyncExitStack() as stack, until_stopped() as stopped:
        tracing = tracing_from_env("worker", instance=f"{socket.gethostname()}-{os.getpid()}")
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        worker = Worker(options, bus, tracing)
        if options.metrics_port >= 0:
            registry = new_registry("worker", WorkerCollector(worker.stats), ModelMetrics())
            await stack.enter_async_context(
                MetricsServer(options.metrics_host, options.metrics_port, registry)
            )
        await bus.start()
        stack.push_async_callback(bus.close)
        stack.push_async_callback(worker.drain)
        await stack.enter_async_context(on_hangup(worker.look, stopped.set))
        await worker.start()
        gc.freeze()  # models and modules live as long as the process: keep the collector off them
        notify(READY)
        try:
            await _until_stopped(worker, stopped, watched=options.hang_timeout > 0)
        finally:
            logger.info("worker %s drains", worker.id)


async def _until_stopped(worker: Worker, stopped: asyncio.Event, *, watched: bool) -> None:
    """Wait until the process is told to stop.

    Raises:
        InternalError: an instance hangs, if it is `watched` for.
    """
    stopping = asyncio.ensure_future(stopped.wait())
    tasks: set[asyncio.Future[Any]] = {stopping}
    if watched:
        tasks.add(asyncio.ensure_future(worker.hung()))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancelled(*tasks)
    if stopping not in done:
        (hung,) = done
        raise InternalError(
            f"instance {hung.result()} hangs: nobody has waited for its batch for --hang-timeout seconds"
        )
