"""`qinfer kafka-score`: score a Kafka topic."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import click

from qinfer.cli.options import CONTEXT, logging_options, metrics_options, namespace_option

_MOST_PROCESSES = 64


def _show_schema(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import msgspec

        from qinfer_workers.kafka.settings import json_schema

        click.echo(msgspec.json.format(msgspec.json.encode(json_schema())))
        context.exit()


class _Processes(click.ParamType[int]):
    """A number of processes, or "auto"."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "auto":
            from qinfer_workers.backends.threads import available_cpus

            return min(_MOST_PROCESSES, available_cpus())
        return click.IntRange(1, _MOST_PROCESSES).convert(value, param, ctx)


@click.command(
    "kafka-score",
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  qinfer kafka-score pipeline.yaml
  qinfer kafka-score pipeline.yaml --check
  qinfer kafka-score pipeline.yaml --metrics-port 8002
  qinfer kafka-score pipeline.yaml --processes auto

Any number of scorers may share a pipeline: Kafka gives each its part of the partitions. SIGTERM stops one
when what it has in hand is committed, and its partitions go to the others; a second one stops it at once.
docs/kafka.md describes the file.""",
)
@click.argument("pipeline", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--check", is_flag=True, help="Only look whether the file is right; nothing is connected to.")
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_schema,
    help="Print the JSON Schema of the file.",
)
@click.option(
    "--processes",
    type=_Processes(),
    default=1,
    show_default=True,
    help="Scorer processes, which share the partitions; auto for one a CPU.",
)
@namespace_option
@metrics_options
@logging_options
def kafka_score(
    pipeline: Path, check: bool, processes: int, log_level: str, log_format: Any, **given: Any
) -> None:
    """Score a Kafka topic: read records, have models score them, write the results."""
    from qinfer_workers.kafka.clients import require
    from qinfer_workers.kafka.pipeline import read

    loaded = read(pipeline)
    if check:
        click.echo(f"{pipeline}: ok")
        return
    require()
    import uvloop

    from qinfer.telemetry.logs import configure_logging
    from qinfer_workers.kafka.server import ScorerOptions, serve

    options = ScorerOptions(**given)
    instance = str(os.getpid()) if processes == 1 else "supervisor"
    configure_logging(role="kafka-score", instance=instance, level=log_level, log_format=log_format)
    if processes == 1:
        uvloop.run(serve(loaded, options))
        return
    from qinfer_workers.kafka.processes import Scorers

    arguments = [str(pipeline), f"--log-level={log_level}", f"--log-format={log_format}"]
    status = asyncio.run(Scorers(loaded, arguments, options, processes).run())
    if status:
        raise SystemExit(status)
