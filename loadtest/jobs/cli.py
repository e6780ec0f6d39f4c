"""Command line of the jobs under fire."""

from __future__ import annotations

import asyncio

import click
from rich.console import Console
from rich.table import Table

from loadtest.jobs.fire import Fire, rows
from qinfer.errors import QInferError


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--jobs", type=click.IntRange(1), default=10_000, show_default=True, help="Jobs to submit.")
@click.option(
    "--rounds",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="How often a gateway, a worker and the broker are killed.",
)
@click.option("--timeout", type=float, default=240.0, show_default=True, help="Seconds until it is given up.")
def main(jobs: int, rounds: int, timeout: float) -> None:
    """Submit jobs with webhooks while processes are killed with SIGKILL, and count what is lost: nothing."""
    try:
        report = asyncio.run(Fire(jobs, rounds=rounds, timeout=timeout).run())
    except QInferError as error:
        raise click.ClickException(error.message) from error
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows(report):
        table.add_row(name, value)
    Console().print(table)
    if not report.well:
        raise click.exceptions.Exit(1)
