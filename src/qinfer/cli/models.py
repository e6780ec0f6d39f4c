"""`qinfer models`: what is being served."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qinfer.bus import connect
from qinfer.cli.options import CONTEXT, json_option, namespace_option, nats_option, prefers_broker, url_option
from qinfer.cli.repository import index, load, unload
from qinfer.cli.v2 import V2Client
from qinfer.registry import Directory

_CALL_TIMEOUT = 10.0
_COLOURS = {"READY": "green", "UNAVAILABLE": "red"}


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one model.

    Attributes:
        name, version: which one; no version for a model that could not be loaded.
        backend: backend name; empty when unknown.
        state: READY or UNAVAILABLE.
        reason: why it is not ready.
        workers: live workers that serve it.
    """

    name: str
    version: str = ""
    backend: str = ""
    state: str = "UNKNOWN"
    reason: str = ""
    workers: int = 0


@click.group(
    invoke_without_command=True,
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  qinfer models
  qinfer models index
  qinfer models load mlp
  qinfer models --url http://gpu-1:8000 --json
  QINFER_NATS=nats://broker:4222 qinfer models --namespace vision""",
)
@url_option
@nats_option(required=False)
@namespace_option
@json_option
@click.pass_context
def models(context: click.Context, url: str, nats: str | None, namespace: str, as_json: bool) -> None:
    """Show what a gateway (--url) or a fleet (--nats) serves; load and unload models."""
    if context.invoked_subcommand is not None:
        return
    rows = asyncio.run(from_broker(nats, namespace)) if nats and prefers_broker() else from_gateway(url)
    if as_json:
        click.echo(json.dumps([msgspec.structs.asdict(row) for row in rows], indent=2))
    else:
        Console().print(table(rows) if rows else "no models")


models.add_command(load)
models.add_command(unload)
models.add_command(index)


def from_gateway(url: str) -> list[ModelRow]:
    """Ask a gateway over HTTP.

    Raises:
        QInferError: it cannot be reached, or refuses.
    """
    found = V2Client(url, timeout=_CALL_TIMEOUT).models()
    return sorted((row for entry in found for row in _told(entry)), key=_order)


def _told(entry: dict[str, Any]) -> list[ModelRow]:
    return [
        ModelRow(
            name=str(entry.get("name", "")),
            version=str(version),
            backend=str(entry.get("backend", "")),
            state=str(entry.get("state", "UNKNOWN")),
            reason=str(entry.get("reason", "")),
            workers=len(entry.get("workers", ())),
        )
        for version in entry.get("versions") or [""]
    ]


async def from_broker(nats: str, namespace: str) -> list[ModelRow]:
    """Read the fleet's registry from the broker.

    Raises:
        BusUnavailable: the broker does not answer.
    """
    bus = connect(nats, namespace=namespace, name="qinfer models")
    async with asyncio.timeout(2 * _CALL_TIMEOUT):
        await bus.start()
        try:
            directory = Directory(bus)
            await directory.start()
            try:
                return registered(directory)
            finally:
                await directory.close()
        finally:
            await bus.close()


def registered(directory: Directory) -> list[ModelRow]:
    """The models of a fleet, as its registry has them."""
    rows = []
    for name, versions in directory.models.items():
        for version, record in versions.items():
            serving = sum(version in worker.models.get(name, ()) for worker in directory.workers)
            rows.append(
                ModelRow(
                    name=name,
                    version=version,
                    backend=record.backend,
                    state="READY" if serving else "UNAVAILABLE",
                    reason="" if serving else "no live worker serves it",
                    workers=serving,
                )
            )
    loaded = {row.name for row in rows if row.workers}
    problems = {name: text for worker in directory.workers for name, text in worker.problems.items()}
    rows.extend(
        ModelRow(name=name, state="UNAVAILABLE", reason=text)
        for name, text in problems.items()
        if name not in loaded
    )
    return sorted(rows, key=_order)


def _order(row: ModelRow) -> tuple[str, int]:
    return row.name, int(row.version) if row.version.isdigit() else -1


def table(rows: list[ModelRow]) -> RenderableType:
    """The rows for a terminal, and below them the reasons, which are too long for a column."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("model", overflow="fold")
    shown.add_column("version", justify="right")
    shown.add_column("backend")
    shown.add_column("state")
    shown.add_column("workers", justify="right")
    for row in rows:
        state = Text(row.state.lower(), style=_COLOURS.get(row.state, ""))
        shown.add_row(Text(row.name), Text(row.version), Text(row.backend), state, Text(str(row.workers)))
    reasons = [Text(f"{row.name}: {row.reason}", overflow="fold") for row in rows if row.reason]
    return Group(shown, *(["", *reasons] if reasons else ()))
