"""The `serve` command."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from qinfer.cli.job_options import job_options
from qinfer.cli.options import (
    CONTEXT,
    Port,
    Size,
    claims_option,
    drain_option,
    gateway_options,
    logging_options,
    namespace_option,
    nats_option,
    worker_options,
)
from qinfer.cli.serve.options import ServeOptions
from qinfer.embedded.server import DEFAULT_MAX_PAYLOAD

_FORCED = 130


@click.command(
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  qinfer serve models/
  qinfer serve models/ --model mlp --http-port 0 --workers 2
  qinfer serve models/ --store-dir /var/lib/qinfer     keep queued requests over a restart
  QINFER_NATS=nats://broker:4222 qinfer serve models/ --gateways 2

\b
Ctrl-C stops in order: the gateways answer what they hold, the workers finish their batches, then the broker.
A second Ctrl-C stops at once. A process that dies is started again; its requests go to another.""",
)
@click.argument(
    "repositories", metavar="REPOSITORY...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--model", "models", multiple=True, help="Serve only this model. May be repeated.")
@nats_option(required=False)
@namespace_option
@gateway_options
@job_options
@click.option(
    "--metrics-port",
    type=Port(lowest=-1),
    default=8002,
    show_default=True,
    help="Port of /metrics on 127.0.0.1, for all processes together; 0 for any, -1 for none.",
)
@click.option(
    "--gateways", type=click.IntRange(1, 64), default=1, show_default=True, help="Gateway processes."
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@worker_options
@claims_option
@drain_option
@click.option(
    "--store-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the broker started here keeps queued requests; a temporary folder when left out.",
)
@click.option(
    "--max-payload",
    type=Size(),
    default=DEFAULT_MAX_PAYLOAD,
    show_default="8MiB",
    help="Largest message of the broker started here.",
)
@click.option(
    "--startup-timeout",
    type=click.FloatRange(1, 86400),
    default=300.0,
    show_default=True,
    help="Seconds until the models must be ready.",
)
@logging_options
def serve(**given: Any) -> None:
    """Serve the models of a repository.

    Runs a broker (unless --nats names one), gateways and workers on this host under one supervisor.
    """
    from qinfer.cli.serve import panel, preflight
    from qinfer.cli.serve.supervisor import Addresses, Supervisor
    from qinfer.telemetry.logs import configure_logging

    options = ServeOptions(**given)
    configure_logging(role="supervisor", level=options.log_level, log_format=options.log_format)
    findings = preflight.check(options)
    console = Console()

    def announce(addresses: Addresses) -> None:
        panel.show(console, addresses, findings.problems)

    async def run() -> bool:
        return await Supervisor(options, findings.models, announce=announce).run()

    if not asyncio.run(run()):
        raise SystemExit(_FORCED)
