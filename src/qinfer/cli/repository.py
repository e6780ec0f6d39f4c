"""`qinfer models load`, `unload` and `index`: the workers' model repositories."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qinfer.bus import connect
from qinfer.cli.options import CONTEXT, json_option, namespace_option, nats_option, prefers_broker, url_option
from qinfer.cli.v2 import V2Client
from qinfer.control import FleetRepository, ModelState
from qinfer.registry import Directory

_CALL_TIMEOUT = 10.0
_GRACE = 5.0  # the gateway's own answer to a passed timeout says more than ours
_COLOURS = {"READY": "green", "UNAVAILABLE": "red", "LOADING": "yellow", "UNLOADING": "yellow"}

T = TypeVar("T")

timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(0.1, 86400),
    default=300.0,
    show_default=True,
    help="Seconds to wait for it; the workers go on with it in any case.",
)


@click.command(context_settings=CONTEXT)
@click.argument("model")
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A model configuration as JSON, to be used instead of the one in the repository.",
)
@timeout_option
@url_option
@nats_option(required=False)
@namespace_option
def load(model: str, config: Path | None, timeout: float, url: str, nats: str | None, namespace: str) -> None:
    """Have the workers load a model, or what has changed of it.

    They do it in --model-control-mode explicit. A version that is replaced serves until the new one does.
    """
    override = config.read_text(encoding="utf-8") if config is not None else ""
    if nats and prefers_broker():
        _over_broker(nats, namespace, lambda fleet: fleet.load(model, config=override, timeout=timeout))
    else:
        V2Client(url, timeout=timeout + _GRACE).load(model, override)
    click.echo(f"{model} is loaded", err=True)


@click.command(context_settings=CONTEXT)
@click.argument("model")
@timeout_option
@url_option
@nats_option(required=False)
@namespace_option
def unload(model: str, timeout: float, url: str, nats: str | None, namespace: str) -> None:
    """Have the workers finish what they hold of a model and forget it."""
    if nats and prefers_broker():
        _over_broker(nats, namespace, lambda fleet: fleet.unload(model, timeout=timeout))
    else:
        V2Client(url, timeout=timeout + _GRACE).unload(model)
    click.echo(f"{model} is unloaded", err=True)


@click.command(context_settings=CONTEXT)
@click.option("--ready", is_flag=True, help="Only what is ready.")
@url_option
@nats_option(required=False)
@namespace_option
@json_option
def index(ready: bool, url: str, nats: str | None, namespace: str, as_json: bool) -> None:
    """Show the workers' repositories: what is there, in which state, and why."""
    if nats and prefers_broker():
        states = _over_broker(nats, namespace, lambda fleet: fleet.index(ready=ready))
    else:
        told = V2Client(url, timeout=_CALL_TIMEOUT).repository_index()
        states = [
            msgspec.convert({"version": "", "reason": "", **row}, _Row).state_of()
            for row in told
            if row.get("state") == "READY" or not ready
        ]
    if as_json:
        click.echo(json.dumps([msgspec.structs.asdict(state) for state in states], indent=2))
    else:
        Console().print(_table(states) if states else "no models")


class _Row(msgspec.Struct):
    """A row of the index as a server tells it; of other servers than qinfer fields may be missing."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""

    def state_of(self) -> ModelState:
        """The same as a state; one that is not known here is UNKNOWN."""
        known = self.state if self.state in _COLOURS else "UNKNOWN"
        return msgspec.convert([self.name, self.version, known, self.reason], ModelState)


def _over_broker(nats: str, namespace: str, act: Callable[[FleetRepository], Awaitable[T]]) -> T:
    async def run() -> T:
        bus = connect(nats, namespace=namespace, name="qinfer models")
        await bus.start()
        try:
            directory = Directory(bus)
            await directory.start()
            try:
                return await act(FleetRepository(bus, directory))
            finally:
                await directory.close()
        finally:
            await bus.close()

    return asyncio.run(run())


def _table(states: list[ModelState]) -> RenderableType:
    """The states for a terminal, and below them the reasons, which are too long for a column."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("model", overflow="fold")
    shown.add_column("version", justify="right")
    shown.add_column("state")
    for one in states:
        state = Text(one.state.lower(), style=_COLOURS.get(one.state, ""))
        shown.add_row(Text(one.name), Text(one.version), state)
    reasons = [
        Text(f"{one.name} {one.version}: {one.reason}".replace(" :", ":"), overflow="fold")
        for one in states
        if one.reason
    ]
    return Group(shown, *(["", *reasons] if reasons else ()))
