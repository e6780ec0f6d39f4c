"""`qinfer kafka-score`: score a Kafka topic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from qinfer.cli.options import CONTEXT, logging_options, metrics_options, namespace_option


def _show_schema(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import msgspec

        from qinfer_workers.kafka.settings import json_schema

        click.echo(msgspec.json.format(msgspec.json.encode(json_schema())))
        context.exit()


@click.command(
    "kafka-score",
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  qinfer kafka-score pipeline.yaml
  qinfer kafka-score pipeline.yaml --check
  qinfer kafka-score pipeline.yaml --metrics-port 8002

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
@namespace_option
@metrics_options
@logging_options
def kafka_score(pipeline: Path, check: bool, log_level: str, log_format: Any, **given: Any) -> None:
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

    configure_logging(role="kafka-score", instance=str(os.getpid()), level=log_level, log_format=log_format)
    uvloop.run(serve(loaded, ScorerOptions(**given)))
