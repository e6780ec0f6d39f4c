"""The `doctor` command."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qinfer.cli.app import EXIT_FAILURE
from qinfer.cli.doctor import broker, host, packages
from qinfer.cli.doctor.findings import Finding, Status
from qinfer.cli.options import CONTEXT, json_option, nats_option

_MARKS = {
    Status.OK: ("ok", "green"),
    Status.INFO: ("-", "dim"),
    Status.WARN: ("warn", "yellow"),
    Status.FAIL: ("FAIL", "bold red"),
}


@click.command(
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  qinfer doctor
  qinfer doctor models/                             and can these models be served?
  QINFER_NATS=nats://broker:4222 qinfer doctor      and does this broker have what it takes?

The exit status is 1 when something fails.""",
)
@click.argument("repositories", metavar="[REPOSITORY]...", nargs=-1, type=click.Path(path_type=Path))
@nats_option(required=False)
@json_option
def doctor(repositories: tuple[Path, ...], nats: str | None, as_json: bool) -> None:
    """Find out what is missing, and what to do.

    Looks at this installation, the host, the broker and, where given, model repositories.
    """
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # what it logs is said better below
    findings = asyncio.run(examine(repositories, nats))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        show(Console(), findings)
    if any(finding.status is Status.FAIL for finding in findings):
        raise SystemExit(EXIT_FAILURE)


async def examine(repositories: Sequence[Path], nats: str | None) -> list[Finding]:
    """Run all checks."""
    from qinfer.cli.doctor import models

    findings = list(packages.check())
    findings += await asyncio.to_thread(lambda: list(host.check()))
    findings += [finding async for finding in broker.check(nats)]
    findings += await asyncio.to_thread(lambda: list(models.check(repositories)))
    return findings


def show(console: Console, findings: Sequence[Finding]) -> None:
    """Print the findings, each with its advice below."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.status]
        text = Text(finding.detail)
        if finding.advice:
            text.append(f"\n→ {finding.advice}", style="dim" if finding.status is Status.INFO else style)
        table.add_row(Text(mark, style=style), Text(finding.check), text)
    console.print(table)
    failed = sum(finding.status is Status.FAIL for finding in findings)
    warned = sum(finding.status is Status.WARN for finding in findings)
    if failed or warned:
        console.print(f"\n{failed} failed, {warned} warned", style="bold")
    else:
        console.print("\nall is well", style="bold green")
