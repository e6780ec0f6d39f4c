"""Having a server score a file: `qinfer score --batch` submits a batch job."""

from __future__ import annotations

import json
from typing import Any

import click

from qinfer.cli.v2 import V2Client
from qinfer.errors import InternalError
from qinfer.scoring import Settings


def submit_batch(
    url: str,
    source: str,
    target: str,
    settings: Settings,
    *,
    model: str,
    version: str,
    replace: bool,
    as_json: bool,
) -> None:
    """Submit a batch job, and show it.

    Args:
        url: of a gateway.
        source, target: references, `NAME/path/of/file`.
        settings: mapping and the like.
        model, version: what is asked; version "" for the newest.
        replace: an output that is there is replaced.
        as_json: show the whole job object.

    Raises:
        QInferError: the server does not take it.
    """
    columns = settings.columns
    batch: dict[str, Any] = {
        "input": source,
        "output": target,
        "map": {name: list(chosen) for name, chosen in columns.inputs.items()},
        "outputs": dict(columns.outputs),
        "keep": list(columns.keep),
        "on_error": settings.on_error.value,
        "bytes": "binary" if settings.binary else "text",
        "chunk": settings.chunk,
        "replace": replace,
    }
    job = V2Client(url).submit({"model": model, "model_version": version, "batch": batch})
    if as_json:
        click.echo(json.dumps(job))
        return
    if not isinstance(job.get("id"), str):
        raise InternalError(f"{url} answered with no job")
    click.echo(f"job {job['id']} is {job.get('state')}; {url}{job.get('status_url')} tells how far it is")
