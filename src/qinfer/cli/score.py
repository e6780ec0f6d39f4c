"""`qinfer score`: a file of rows through a model, into another file."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from qinfer.cli.options import CONTEXT, json_option, namespace_option, nats_option, prefers_broker, url_option
from qinfer.errors import InvalidRequest, QInferError, Retry, SetupError
from qinfer.lifecycle import cancelled, until_stopped

if TYPE_CHECKING:
    from qinfer.client import AsyncClient, ConnectOptions
    from qinfer.scoring import Plan, Progress, Settings

EXIT_INCOMPLETE = 3
"""Exit status when the output is there, but rows that could not be scored are not in it."""

_SIGNALLED = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """How the model is asked."""

    model: str
    version: str
    timeout: float
    priority: int
    in_flight: int
    patience: float
    restart: bool


@dataclass(frozen=True, slots=True)
class _Way:
    """Where the models are: an address, and what it takes to connect there."""

    address: str
    options: ConnectOptions


@click.command(
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  qinfer score points.npy answers.npy --model mlp
  qinfer score people.parquet scores.parquet --model churn --map x=age,income,visits --keep id
  qinfer score reviews.jsonl labels.jsonl --model sentiment --map input=text --on-error record
  qinfer score photos/ labels.csv --model classify --keep file --map-output label=probabilities
  qinfer score reviews.jsonl labels.jsonl --model sentiment --dry-run
  qinfer score data/reviews.jsonl data/labels.jsonl --model sentiment --batch

\b
Formats, by suffix (docs/scoring.md):
  .npy       one array, a row for each index of its first dimension
  .jsonl     a JSON object a line
  .parquet   columns (pip install 'qinfer[parquet]')
  .csv       columns, named in the first line
  a folder   each file a row: .npy an array, others their bytes; as OUTPUT, a name without suffix

\b
Exit status:
  0  all rows are scored
  1  it ended early; the same command goes on
  2  the command line, the files or the mapping are wrong; nothing was asked
  3  the output is there, without rows that could not be scored (--on-error)
  130, 143  stopped by Ctrl-C or SIGTERM; the same command goes on""",
)
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model.")
@click.option("--version", default="", help="Its version; the newest at the start when left out.")
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="INPUT=COLUMN[,...]",
    help="The column an input is made of; several make a vector. May be repeated. Columns that are called "
    "as the input need none, nor does a lone input with a lone column.",
)
@click.option(
    "--map-output",
    "output_maps",
    multiple=True,
    metavar="COLUMN[=OUTPUT]",
    help="A column of OUTPUT and the output it holds. May be repeated. All outputs by their own names when "
    "left out.",
)
@click.option("--keep", default="", metavar="COLUMN[,...]", help="Columns of INPUT that OUTPUT has, too.")
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip", "record"]),
    default="fail",
    show_default=True,
    help="What a row that cannot be scored does: end the run, be left out, or be left out and written down "
    "in OUTPUT.errors.jsonl.",
)
@click.option(
    "--bytes",
    "bytes_as",
    type=click.Choice(["text", "binary"]),
    default="text",
    show_default=True,
    help="How BYTES are written: as UTF-8 text, or as they are (base64 in .jsonl and .csv).",
)
@click.option(
    "--chunk",
    type=click.IntRange(0),
    default=0,
    help="Rows of a request; as many as the model takes when left out.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Requests at once, and chunks of rows in memory.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.001, 86400),
    default=30.0,
    show_default=True,
    help="Deadline of a request in seconds.",
)
@click.option(
    "--patience",
    type=click.FloatRange(0, 604800),
    default=300.0,
    show_default=True,
    help="Seconds in which a server that is away or busy is asked again.",
)
@click.option("--priority", type=click.IntRange(0), default=0, help="Of the requests; 1 is the highest.")
@click.option("--restart", is_flag=True, help="Forget what was done before, and replace OUTPUT.")
@click.option(
    "--batch",
    is_flag=True,
    help="Have the server do it, as a batch job: INPUT and OUTPUT are references, NAME/path, below its "
    "--batch-root.",
)
@click.option("--dry-run", is_flag=True, help="Show the mapping with the first row, and ask nothing.")
@url_option
@nats_option(required=False)
@namespace_option
@json_option
def score(
    source: Path,
    target: Path,
    model: str,
    version: str,
    maps: tuple[str, ...],
    output_maps: tuple[str, ...],
    keep: str,
    on_error: str,
    bytes_as: str,
    chunk: int,
    in_flight: int,
    timeout: float,
    patience: float,
    priority: int,
    restart: bool,
    batch: bool,
    dry_run: bool,
    url: str,
    nats: str | None,
    namespace: str,
    as_json: bool,
) -> None:
    """Have a model score the rows of INPUT, and write its answers to OUTPUT.

    Rows keep their order, and memory is bounded whatever the size of the file. What is interrupted, by Ctrl-C
    or by a crash, is gone on with by the same command: what is done so far lies in OUTPUT.progress. OUTPUT
    itself appears when it is complete.

    The requests go through a gateway (--url), or over the broker straight to the workers (--nats).
    """
    from qinfer.scoring import Columns, OnError, Settings

    settings = Settings(
        columns=Columns(inputs=_maps(maps), outputs=_output_maps(output_maps), keep=_names(keep)),
        on_error=OnError(on_error),
        binary=bytes_as == "binary",
        chunk=chunk,
    )
    call = _Call(
        model=model,
        version=version,
        timeout=timeout,
        priority=priority,
        in_flight=in_flight,
        patience=patience,
        restart=restart,
    )
    if batch:
        if dry_run:
            raise click.UsageError(
                "--batch and --dry-run exclude each other: the server checks what it accepts"
            )
        from qinfer.cli.batch import submit_batch

        submit_batch(
            url,
            str(source),
            str(target),
            settings,
            model=model,
            version=version,
            replace=restart,
            as_json=as_json,
        )
        return
    if nats and prefers_broker():
        way = _Way(nats, {"namespace": namespace, "name": "qinfer score"})
    else:
        way = _Way(url if "://" in url else f"http://{url}", {})
    if dry_run:
        asyncio.run(_show(way, source, target, settings, call))
    else:
        asyncio.run(_score(way, source, target, settings, call, as_json=as_json))


def _maps(arguments: Sequence[str]) -> dict[str, list[str]]:
    maps: dict[str, list[str]] = {}
    for argument in arguments:
        name, _, columns = argument.partition("=")
        if not name or not all(columns.split(",")):
            raise click.UsageError(f"--map {argument}: expected INPUT=COLUMN or INPUT=COLUMN,COLUMN,…")
        if name in maps:
            raise click.UsageError(f"--map {argument}: input {name!r} is given twice")
        maps[name] = columns.split(",")
    return maps


def _output_maps(arguments: Sequence[str]) -> dict[str, str]:
    maps: dict[str, str] = {}
    for argument in arguments:
        column, separator, output = argument.partition("=")
        if not column or (separator and not output):
            raise click.UsageError(f"--map-output {argument}: expected COLUMN or COLUMN=OUTPUT")
        if column in maps:
            raise click.UsageError(f"--map-output {argument}: column {column!r} is given twice")
        maps[column] = output or column
    return maps


def _names(argument: str) -> list[str]:
    names = argument.split(",") if argument else []
    if not all(names) or len(set(names)) != len(names):
        raise click.UsageError(f"--keep {argument}: expected names of columns, each once")
    return names


@asynccontextmanager
async def _planned(
    way: _Way, source: Path, target: Path, settings: Settings, call: _Call
) -> AsyncIterator[tuple[AsyncClient, Plan]]:
    from qinfer.client import connect
    from qinfer.scoring import make_plan

    async with connect(way.address, **way.options) as client:
        info = await client.model(call.model, call.version)
        version = call.version or (info.versions[-1] if info.versions else "")
        try:
            plan = make_plan(source, target, replace(info, versions=(version,)), settings)
        except InvalidRequest as error:
            raise SetupError(error.message) from error
        yield client, plan


async def _score(
    way: _Way,
    source: Path,
    target: Path,
    settings: Settings,
    call: _Call,
    *,
    as_json: bool,
) -> None:
    from qinfer.cli.progress import showing

    begun = monotonic()
    async with until_stopped() as stopped:
        with showing() as show:
            running = asyncio.create_task(_run(way, source, target, settings, call, show))
            waiting = asyncio.create_task(stopped.wait())
            try:
                await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancelled(waiting, *(() if running.done() else (running,)))
        if running.cancelled():
            click.echo(f"stopped; the same command goes on where {target} ends so far", err=True)
            number = signal.SIGTERM if stopped.handing_over else signal.SIGINT
            raise click.exceptions.Exit(_SIGNALLED + number)
        ended = _ended(running)
    _report(target, ended, monotonic() - begun, as_json=as_json)
    if ended.failed:
        raise click.exceptions.Exit(EXIT_INCOMPLETE)


def _ended(running: asyncio.Task[Progress]) -> Progress:
    from qinfer.scoring import Refused

    try:
        return running.result()
    except Refused as error:
        raise SetupError(error.message) from error
    except SetupError:
        raise
    except QInferError as error:
        again = "" if error.retry is Retry.NEVER else "; the same command goes on"
        error.message = f"{error.message} ({error.reason}){again}"
        raise


async def _run(
    way: _Way,
    source: Path,
    target: Path,
    settings: Settings,
    call: _Call,
    show: Any,
) -> Progress:
    from qinfer.client.base import Options
    from qinfer.scoring import Run

    async with _planned(way, source, target, settings, call) as (client, plan):
        options = Options(
            version=plan.version,
            outputs=plan.wanted,
            timeout=call.timeout,
            priority=call.priority,
        )

        async def infer(inputs: Any) -> Any:
            return (await client.infer(call.model, inputs, options)).tensors

        run = Run(
            plan,
            infer,
            in_flight=call.in_flight,
            patience=call.patience,
            restart=call.restart,
            told=show,
        )
        return await run()


def _report(target: Path, ended: Progress, seconds: float, *, as_json: bool) -> None:
    from qinfer.scoring import ERRORS

    if as_json:
        told = {"output": str(target), "rows": ended.rows, "written": ended.written, "failed": ended.failed}
        click.echo(json.dumps({**told, "seconds": round(seconds, 3)}))
        return
    left_out = f", {ended.failed} left out" if ended.failed else ""
    click.echo(f"{target}: {ended.written} of {ended.rows} rows{left_out}, in {seconds:.1f} s")
    errors = target.with_name(target.name + ERRORS)
    if ended.failed and errors.exists():
        click.echo(f"{errors}: which, and why")


async def _show(way: _Way, source: Path, target: Path, settings: Settings, call: _Call) -> None:
    from qinfer.cli.plan import show_plan

    async with _planned(way, source, target, settings, call) as (_, plan):
        try:
            show_plan(plan)
        finally:
            plan.reader.close()
