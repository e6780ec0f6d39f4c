"""`qinfer infer`: ask a model from a shell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qinfer.cli.options import CONTEXT, json_option, namespace_option, nats_option, prefers_broker, url_option
from qinfer.cli.tensors import Wanted, parse_inputs, parse_output, preview, save, to_json
from qinfer.client import AsyncClient, Options, Result, connect
from qinfer.errors import InvalidRequest


@click.command(
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  qinfer infer minilm_tokenizer --input 'text=[["A man is eating food."]]'
  qinfer infer mlp --input x=@batch.npy --output y=@answers.npy
  qinfer infer minilm --input input_ids=@ids.json --input attention_mask=@mask.json --json
  QINFER_NATS=nats://broker:4222 qinfer infer mlp --input x=@x.npy --version 2

A .json file holds the (nested) list of values, or an object with "shape" and "data". The shape is the
model's, with the batch dimension where the model has one.""",
)
@click.argument("model")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=VALUE",
    help="An input: NAME=@FILE.npy, NAME=@FILE.json or NAME=JSON. May be repeated.",
)
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="NAME[=@FILE]",
    help="An output to ask for (all, when none is named), saved in a .npy or .json file. May be repeated.",
)
@click.option("--version", default="", help="The model's version; the newest when left out.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.001, 86400),
    default=30.0,
    show_default=True,
    help="Deadline in seconds.",
)
@url_option
@nats_option(required=False)
@namespace_option
@json_option
def infer(
    model: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    version: str,
    timeout: float,
    url: str,
    nats: str | None,
    namespace: str,
    as_json: bool,
) -> None:
    """Ask a model and show its answer.

    The request goes through a gateway (--url), or over the broker straight to the workers (--nats).
    """
    wanted = [parse_output(output) for output in outputs]
    options = Options(version=version, outputs=[output.name for output in wanted], timeout=timeout)
    result, seconds = asyncio.run(_ask(_client(url, nats, namespace), model, inputs, options))
    _save(result, wanted)
    if as_json:
        click.echo(json.dumps(in_json(result)))
    else:
        show(result, seconds)


def _client(url: str, nats: str | None, namespace: str) -> AsyncClient:
    if nats and prefers_broker():
        return connect(nats, namespace=namespace, name="qinfer infer", retries=0)
    return connect(url if "//" in url else f"http://{url}", retries=0)


async def _ask(
    client: AsyncClient, model: str, inputs: Sequence[str], options: Options
) -> tuple[Result, float]:
    """The answer, and the seconds it took."""
    async with client:
        info = await client.model(model, options.version)
        tensors = parse_inputs(inputs, info.inputs)
        started = perf_counter()
        return await client.infer(model, tensors, options), perf_counter() - started


def _save(result: Result, wanted: Sequence[Wanted]) -> None:
    for output in wanted:
        if output.file is not None:
            tensor = next((tensor for tensor in result.tensors if tensor.name == output.name), None)
            if tensor is None:
                raise InvalidRequest(f"the answer has no output {output.name!r}")
            save(tensor, output.file)


def in_json(result: Result) -> dict[str, Any]:
    """An answer, for programs."""
    return {
        "model_name": result.model,
        "model_version": result.version,
        "parameters": dict(result.parameters),
        "outputs": [to_json(output) for output in result.tensors],
    }


def show(result: Result, seconds: float) -> None:
    """An answer that took so long, for people."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("output", "datatype", "shape", "values"):
        table.add_column(column, overflow="fold")
    for output in result.tensors:
        table.add_row(Text(output.name), output.datatype, str(output.shape), Text(preview(output)))
    console.print(table)
    console.print(Text(f"{result.model} version {result.version}, {seconds * 1000:.1f} ms", style="dim"))
