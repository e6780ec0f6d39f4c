"""`qinfer worker`: one worker process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from qinfer.cli.options import (
    CONTEXT,
    claims_option,
    drain_option,
    logging_options,
    metrics_options,
    namespace_option,
    nats_option,
    worker_options,
)
from qinfer_workers.options import WorkerOptions


@click.command(
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  QINFER_NATS=nats://broker:4222 qinfer worker models/
  QINFER_NATS=nats://broker:4222 qinfer worker models/ --model mlp --model minilm
  qinfer worker models/ --nats nats://broker:4222 --storage memory --metrics-port 8002

Any number of workers may serve the same model; each takes as much as it has room for. SIGTERM stops the
process when its batches are done and gives the rest back to the queue; a second one stops it at once.""",
)
@click.argument(
    "repositories",
    metavar="REPOSITORY...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
)
@click.option("--model", "models", multiple=True, help="Load only this model. May be repeated.")
@nats_option(required=True)
@namespace_option
@worker_options
@claims_option
@metrics_options
@drain_option
@logging_options
def worker(log_level: str, log_format: Any, **given: Any) -> None:
    """Run a worker: load models and serve their queues."""
    import uvloop

    from qinfer.telemetry.logs import configure_logging
    from qinfer_workers.server import serve

    options = WorkerOptions(**given)
    configure_logging(role="worker", instance=str(os.getpid()), level=log_level, log_format=log_format)
    uvloop.run(serve(options))
