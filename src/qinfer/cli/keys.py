"""`qinfer keys`: the API keys that gateways accept."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qinfer.cli.keysfile import append_entry, remove_entry
from qinfer.cli.options import CONTEXT, ENVIRONMENT, json_option
from qinfer.keys import KeyEntry, Permission, digest, new_key, read_keys

_file_option = click.option(
    "--keys-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar=f"{ENVIRONMENT}_KEYS_FILE",
    show_envvar=True,
    required=True,
    help="The file, as gateways are given it.",
)


@click.group(
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  qinfer keys create ci --keys-file keys.yaml --model 'text-*' --rate 100
  qinfer keys list --keys-file keys.yaml
  qinfer keys revoke ci --keys-file keys.yaml

Gateways read the file again when it changes. It holds no keys, only their SHA-256: a key that was lost cannot
be shown again, only replaced.""",
)
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command(context_settings=CONTEXT)
@click.argument("name")
@_file_option
@click.option(
    "--model", "models", multiple=True, help="Models it may use: a name or a pattern. May be repeated."
)
@click.option(
    "--permission",
    "permissions",
    type=click.Choice([permission.value for permission in Permission]),
    multiple=True,
    default=[Permission.INFERENCE.value],
    show_default=True,
    help="What it may do. May be repeated.",
)
@click.option("--tenant", default="", help="Whom its requests are accounted to.")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Requests a second; no limit if left out."
)
@click.option("--burst", type=click.IntRange(1), help="Requests at once; those of a second if left out.")
@click.option("--priority-ceiling", type=click.IntRange(1), help="The most urgent priority it may ask for.")
@click.option("--days", type=click.IntRange(1), help="Days until it ends; never if left out.")
@click.option("--certificate", default="", help="Name in a client certificate that stands for the key.")
def create(name: str, keys_file: Path, models: tuple[str, ...], days: int | None, **given: Any) -> None:
    """Make a key and show it, this once.

    The key alone goes to standard output; its entry goes into the file, which is made if it is not there.
    """
    if not models:
        raise click.UsageError("no --model: the key could use none; --model '*' lets it use all")
    key = new_key()
    entry: dict[str, Any] = {"name": name, "sha256": digest(key.encode()).hex(), "models": list(models)}
    entry |= {field: _plain(value) for field, value in given.items() if value}
    if days is not None:
        entry["expires"] = (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    append_entry(keys_file, entry)
    click.echo(f"{name} is in {keys_file}; this is its key, which is not kept anywhere:", err=True)
    click.echo(key)


@keys.command("list", context_settings=CONTEXT)
@_file_option
@json_option
def list_keys(keys_file: Path, as_json: bool) -> None:
    """Show which keys there are and what they may do."""
    entries = read_keys(keys_file)
    if as_json:
        click.echo(json.dumps([_row(entry) for entry in entries]))
    else:
        Console().print(_table(entries))


@keys.command(context_settings=CONTEXT)
@click.argument("name")
@_file_option
def revoke(name: str, keys_file: Path) -> None:
    """Take a key away. Gateways refuse it as soon as they have read the file again, within seconds."""
    remove_entry(keys_file, name)
    click.echo(f"{name} is revoked", err=True)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _row(entry: KeyEntry) -> dict[str, Any]:
    """What is shown of an entry. Its hash is of no use to anybody."""
    return {
        "name": entry.name,
        "tenant": entry.tenant,
        "models": list(entry.models),
        "permissions": [permission.value for permission in entry.permissions],
        "rate": entry.rate,
        "burst": entry.burst,
        "priority_ceiling": entry.priority_ceiling,
        "certificate": entry.certificate,
        "expires": None if entry.expires is None else entry.expires.isoformat(),
        "expired": entry.expired,
    }


def _table(entries: tuple[KeyEntry, ...]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "tenant", "models", "permissions", "rate", "expires"):
        shown.add_column(column, overflow="fold")
    for entry in entries:
        ends = "" if entry.expires is None else entry.expires.strftime("%Y-%m-%d")
        rate = "" if entry.rate is None else f"{entry.rate:g}/s"
        allowed = " ".join(permission.value for permission in entry.permissions)
        shown.add_row(
            Text(entry.name),
            Text(entry.tenant),
            Text(" ".join(entry.models)),
            Text(allowed),
            Text(rate),
            Text(ends, style="red" if entry.expired else ""),
        )
    return shown
