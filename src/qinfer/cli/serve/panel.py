"""What `qinfer serve` shows when it is ready."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qinfer.cli.models import ModelRow, from_gateway, table
from qinfer.cli.serve.supervisor import Addresses
from qinfer.cli.v2 import V2Client
from qinfer.errors import QInferError
from qinfer.repository import Problem

_CALL_TIMEOUT = 10.0
_MAX_VALUES = 16


def show(console: Console, addresses: Addresses, problems: Sequence[Problem]) -> None:
    """Print addresses, models and something to try."""
    rows = _rows(addresses, problems)
    places = Table.grid(padding=(0, 2))
    for name, address in (
        ("HTTP", addresses.http),
        ("gRPC", addresses.grpc),
        ("metrics", addresses.metrics),
    ):
        if address is not None:
            places.add_row(Text(name, style="bold"), address)
    parts: list[RenderableType] = [places, "", table(rows) if rows else "no models"]
    title = "qinfer is ready" if addresses.ready else "qinfer runs, but not all models are ready"
    style = "green" if addresses.ready else "yellow"
    console.print(Panel(Group(*parts), title=title, border_style=style, expand=False))
    line = curl_line(addresses.http, rows) if addresses.models is None else None
    if line is not None:
        # Outside the frame and unwrapped, so that it can be copied.
        console.print("Try it:", style="dim")
        console.print(Text(f"  {line}"), soft_wrap=True)


def _rows(addresses: Addresses, problems: Sequence[Problem]) -> list[ModelRow]:
    try:
        rows = from_gateway(addresses.http) if addresses.models is None else list(addresses.models)
    except QInferError:  # it answered a moment ago; the log says what happened since
        rows = []
    told = {row.name for row in rows}
    rows += [
        ModelRow(name=problem.model, state="UNAVAILABLE", reason=problem.error.message)
        for problem in problems
        if problem.model not in told
    ]
    return rows


def curl_line(url: str, rows: Sequence[ModelRow]) -> str | None:
    """A command line that asks the first ready model that has a small input; None when there is none."""
    client = V2Client(url, timeout=_CALL_TIMEOUT)
    for row in rows:
        if row.state != "READY":
            continue
        try:
            body = _example(client.metadata(row.name).get("inputs", ()))
        except (QInferError, KeyError, TypeError, ValueError):
            continue
        if body is not None:
            # quote() leaves nothing in a path that a shell could misread.
            return f"curl {url}/v2/models/{quote(row.name, safe='')}/infer -d {_shell(body)}"
    return None


def _example(inputs: Sequence[dict[str, Any]]) -> str | None:
    tensors = []
    for spec in inputs:
        shape = [1 if size < 0 else int(size) for size in spec["shape"]]
        count = 1
        for size in shape:
            count *= size
        value = {"BYTES": "hello", "BOOL": True}.get(spec["datatype"], 0)
        if count > _MAX_VALUES * _MAX_VALUES or spec["datatype"] in ("FP16", "BF16"):
            return None
        tensors.append(
            {"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": [value] * count}
        )
    return json.dumps({"inputs": tensors}) if tensors else None


def _shell(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
