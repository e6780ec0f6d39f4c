"""The scorer's process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qinfer.lifecycle import LOADED, READY, cancelled, notify, until_stopped
from qinfer.telemetry.metrics import WorkerCollector, new_registry
from qinfer.telemetry.server import MetricsServer
from qinfer.telemetry.stats import ModelStats
from qinfer.telemetry.tracing import tracing_from_env
from qinfer_workers.backends.python.triton.metrics import ModelMetrics
from qinfer_workers.kafka.contract import Pipeline
from qinfer_workers.kafka.engine import Engine
from qinfer_workers.kafka.fleet import FleetScorer
from qinfer_workers.kafka.local import LocalScorer
from qinfer_workers.kafka.scoring import Scorer
from qinfer_workers.kafka.stats import PipelineStats, ScorerCollector

logger = logging.getLogger(__name__)

# A model's thread that comes back from native code would wait 5 ms for the interpreter, several times a
# batch, while the event loop and the codec keep it busy.
_SWITCH_INTERVAL = 0.0005
_LOOK = 0.05  # seconds between two looks at whether the scorer has its partitions


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerOptions:
    """Options of one scorer process.

    Attributes:
        metrics_host, metrics_port: address of `/metrics`, `/health/live` and `/health/ready`; port -1 for
            none.
        namespace: of the fleet, where one scores.
    """

    metrics_host: str = "127.0.0.1"
    metrics_port: int = -1
    namespace: str = "default"


async def serve(pipeline: Pipeline, options: ScorerOptions) -> None:
    """Run a pipeline until SIGTERM or SIGINT, then finish what is in flight and leave the group.

    A second signal ends the process at once.

    Raises:
        QInferError: it cannot be started, or cannot go on (see `Engine.run`).
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    stats = PipelineStats()
    async with AsyncExitStack() as stack, until_stopped() as stopped:
        tracing = tracing_from_env("kafka-score", instance=f"{socket.gethostname()}-{os.getpid()}")
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        scorer, models = _scorer(pipeline, options.namespace)
        engine = Engine(pipeline, scorer, stats, tracing)
        if options.metrics_port >= 0:
            registry = new_registry(
                "kafka-score", ScorerCollector(stats), WorkerCollector(models), ModelMetrics()
            )
            server = MetricsServer(
                options.metrics_host, options.metrics_port, registry, routes=health_routes(engine)
            )
            await stack.enter_async_context(server)
        telling = asyncio.create_task(_tell(engine), name="kafka tell")
        stack.push_async_callback(cancelled, telling)
        await engine.run(stopped)
        logger.info("the scorer of group %s has stopped", pipeline.group)


def health_routes(engine: Engine) -> Sequence[Route]:
    """`/health/live`: the process works. `/health/ready`: it is a member of its group, and reads."""

    async def live(_: Request) -> Response:
        return JSONResponse({"state": engine.health.state})

    async def ready(_: Request) -> Response:
        health = engine.health
        body = {"state": health.state, **({"problem": health.problem} if health.problem else {})}
        return JSONResponse(body, status_code=200 if health.state == "running" else 503)

    return [Route("/health/live", live), Route("/health/ready", ready)]


def _scorer(pipeline: Pipeline, namespace: str) -> tuple[Scorer, Callable[[], Sequence[ModelStats]]]:
    """What scores, and the counters of its models."""
    if not pipeline.fleet:
        local = LocalScorer(
            pipeline.repositories, pipeline.models, close_timeout=pipeline.limits.drain_timeout
        )
        return local, local.stats
    from qinfer.client import connect

    client = connect(pipeline.fleet, namespace=namespace)
    return FleetScorer(client, pipeline.models, timeout=pipeline.limits.score_timeout), list


async def _tell(engine: Engine) -> None:
    """Tell whoever started this process when it has loaded, and when it has its partitions."""
    await engine.loaded.wait()
    notify(LOADED)
    while engine.health.state != "running":  # noqa: ASYNC110 (asked now and then by probes, too)
        await asyncio.sleep(_LOOK)
    gc.freeze()  # models and modules live as long as the process: keep the collector off them
    notify(READY)
