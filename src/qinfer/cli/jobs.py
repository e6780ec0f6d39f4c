"""`qinfer jobs`: asynchronous jobs, looked at over the broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from qinfer.bus import connect
from qinfer.cli.broker import broker_option
from qinfer.cli.options import CONTEXT, json_option, namespace_option
from qinfer.errors import DeadlineExceeded, QInferError
from qinfer.jobs import JobPage, JobRecord, JobResult, JobState, JobStore
from qinfer.message import Tensor

_UNKNOWN = "-"
_SHOWN_ELEMENTS = 32
_WAIT = 30.0

T = TypeVar("T")


@click.group(
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  qinfer jobs list --state failed
  qinfer jobs show 19e2f3a4b5c6d7e8f90a1b2c3d4e5f60
  qinfer jobs result 19e2f3a4b5c6d7e8f90a1b2c3d4e5f60 --output y=@y.npy
  qinfer jobs retry 19e2f3a4b5c6d7e8f90a1b2c3d4e5f60
  qinfer jobs list --store-dir /var/lib/qinfer         of a `qinfer serve` with that folder

All of them talk to the broker, which QINFER_NATS, --nats or --store-dir names, and see the jobs of everybody.
Jobs are submitted through a gateway or a client: see docs/jobs.md.""",
)
def jobs() -> None:
    """Look at asynchronous jobs, cancel them, or have them run once more."""


@jobs.command("list", context_settings=CONTEXT)
@click.option(
    "--state", type=click.Choice([state.value for state in JobState]), help="Only those in this state."
)
@click.option("--model", default="", help="Only those of this model.")
@click.option("--owner", help="Only those of this API key or user.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Show at most so many."
)
@click.option("--after", default="", help="Begin behind the one with this id.")
@broker_option
@namespace_option
@json_option
def list_(
    state: str | None,
    model: str,
    owner: str | None,
    limit: int,
    after: str,
    nats: str,
    namespace: str,
    as_json: bool,
) -> None:
    """Show jobs, the newest first."""
    wanted = None if state is None else JobState(state)

    async def read(store: JobStore) -> JobPage:
        return await store.list(state=wanted, model=model, owner=owner, limit=limit, after=after)

    page = _run(nats, namespace, read)
    if as_json:
        click.echo(json.dumps({"jobs": [_told(each) for each in page.jobs], "next": page.next}, indent=2))
        return
    console = Console()
    console.print(_list(page.jobs) if page.jobs else "no jobs")
    if page.next:
        console.print(f"there may be more: --after {page.next}")


@jobs.command(context_settings=CONTEXT)
@click.argument("job_id", metavar="ID")
@click.option(
    "--wait", type=click.FloatRange(0, 86400), default=0.0, help="Wait so many seconds for its end."
)
@broker_option
@namespace_option
@json_option
def show(job_id: str, wait: float, nats: str, namespace: str, as_json: bool) -> None:
    """Show one job: what it asks for, and how it is doing."""
    record = _run(nats, namespace, lambda store: store.wait(job_id, wait))
    _show(record, as_json=as_json)


@jobs.command(context_settings=CONTEXT)
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@broker_option
@namespace_option
@json_option
def cancel(job_ids: tuple[str, ...], nats: str, namespace: str, as_json: bool) -> None:
    """Have jobs not run, or stopped. Those that have ended stay as they are."""
    _each(job_ids, nats, namespace, as_json, lambda store, job_id: store.cancel(job_id))


@jobs.command(context_settings=CONTEXT)
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@broker_option
@namespace_option
@json_option
def retry(job_ids: tuple[str, ...], nats: str, namespace: str, as_json: bool) -> None:
    """Have jobs that failed or were cancelled run once more, from the start."""
    _each(job_ids, nats, namespace, as_json, lambda store, job_id: store.retry(job_id))


@jobs.command(context_settings=CONTEXT)
@click.argument("job_id", metavar="ID")
@click.option(
    "--wait", type=click.FloatRange(0, 86400), default=_WAIT, show_default=True, help="Wait so long."
)
@click.option(
    "--output",
    "outputs",
    metavar="NAME=@FILE.npy",
    multiple=True,
    help="Save an output; NumPy's format, BYTES as objects of bytes. May be repeated.",
)
@broker_option
@namespace_option
@json_option
def result(
    job_id: str, wait: float, outputs: tuple[str, ...], nats: str, namespace: str, as_json: bool
) -> None:
    """Show the result of a job, once it has ended; the error it failed with is this command's."""
    files = dict(map(_file_of, outputs))

    async def read(store: JobStore) -> JobResult | None:
        record = await store.wait(job_id, wait)
        found = await store.result(job_id)
        if found is None and not record.ended_us:
            raise DeadlineExceeded(f"job {job_id} is {record.state.value} after {wait:g} s")
        return found

    found = _run(nats, namespace, read)
    if found is None:
        click.echo("the job has no result of its own: what it made is where it was told to put it")
        return
    tensors = {tensor.name: tensor for tensor in found.response.outputs}
    for name, path in files.items():
        if name not in tensors:
            raise click.UsageError(
                f"the result has no output {name!r}; it has {', '.join(tensors) or 'none'}"
            )
        np.save(path, tensors[name].numpy(), allow_pickle=tensors[name].datatype == "BYTES")
    shown = [tensor for name, tensor in tensors.items() if name not in files]
    if as_json:
        click.echo(json.dumps([_tensor_told(tensor) for tensor in shown], indent=2))
    else:
        for tensor in shown:
            Console(soft_wrap=True).print(_text(_line(tensor)))


@asynccontextmanager
async def _open(nats: str, namespace: str) -> AsyncIterator[JobStore]:
    bus = connect(nats, namespace=namespace, name="qinfer jobs")
    await bus.start()
    try:
        yield JobStore(bus)
    finally:
        await bus.close()


def _run(nats: str, namespace: str, act: Callable[[JobStore], Awaitable[T]]) -> T:
    async def run() -> T:
        async with _open(nats, namespace) as store:
            return await act(store)

    return asyncio.run(run())


def _each(
    job_ids: Sequence[str],
    nats: str,
    namespace: str,
    as_json: bool,
    act: Callable[[JobStore, str], Awaitable[JobRecord]],
) -> None:
    """Do something with each job; one that fails keeps nobody from the others."""

    async def run(store: JobStore) -> list[tuple[str, JobRecord | QInferError]]:
        outcomes: list[tuple[str, JobRecord | QInferError]] = []
        for job_id in job_ids:
            try:
                outcomes.append((job_id, await act(store, job_id)))
            except QInferError as error:
                outcomes.append((job_id, error))
        return outcomes

    outcomes = _run(nats, namespace, run)
    failed = [outcome for _, outcome in outcomes if isinstance(outcome, QInferError)]
    if as_json:
        click.echo(json.dumps([_outcome_told(*outcome) for outcome in outcomes], indent=2))
    else:
        for job_id, outcome in outcomes:
            told = outcome.message if isinstance(outcome, QInferError) else outcome.state.value
            Console(soft_wrap=True).print(_text(f"{job_id}: {told}"))
    if failed:
        raise click.exceptions.Exit(1)


# For programs


def _told(record: JobRecord) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(record)
    if record.error is not None:  # a list on the wire
        told["error"] = {"reason": record.error.reason, "message": record.error.message}
    return told


def _outcome_told(job_id: str, outcome: JobRecord | QInferError) -> dict[str, Any]:
    if isinstance(outcome, QInferError):
        return {"id": job_id, "reason": outcome.reason, "error": outcome.message}
    return _told(outcome)


def _tensor_told(tensor: Tensor) -> dict[str, Any]:
    values = tensor.numpy()
    data = (
        [each.decode(errors="backslashreplace") for each in values.ravel()]
        if tensor.datatype == "BYTES"
        else (values.tolist())
    )
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "data": data}


# For people


def _list(records: Sequence[JobRecord]) -> RenderableType:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("id", no_wrap=True)
    shown.add_column("model", overflow="fold")
    shown.add_column("state", no_wrap=True)
    shown.add_column("submitted", no_wrap=True)
    owned = any(record.owner for record in records)
    if owned:
        shown.add_column("owner", overflow="fold")
    for record in records:
        shown.add_row(
            record.id,
            _text(_target(record)),
            _state(record),
            _time(record.created_us),
            *([_text(record.owner or _UNKNOWN)] if owned else []),
        )
    return shown


def _show(record: JobRecord, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_told(record), indent=2))
        return
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    error = record.error
    progress = record.progress
    for name, value in (
        ("job", record.id),
        ("model", _target(record)),
        ("state", _state(record)),
        ("error", f"{error.reason}: {error.message}" if error is not None else ""),
        ("progress", f"{progress.done} of {progress.total}" if progress is not None else ""),
        ("owner", record.owner),
        ("priority", "spare capacity" if record.options.spare else str(record.priority or "the model's")),
        ("submitted", _time(record.created_us)),
        ("begun", _time(record.started_us)),
        ("ended", _time(record.ended_us)),
        ("attempts", f"{record.attempts} of {record.options.max_attempts}"),
        ("webhook", f"{record.options.webhook} ({record.webhook_state})" if record.options.webhook else ""),
    ):
        facts.add_row(name, _text(value or _UNKNOWN))
    Console().print(facts)


def _state(record: JobRecord) -> str:
    place = f", place {record.queue_position}" if record.queue_position is not None else ""
    return f"{record.state.value}{place}"


def _target(record: JobRecord) -> str:
    return f"{record.model} version {record.version}" if record.version else record.model


def _line(tensor: Tensor) -> str:
    values = tensor.numpy()
    shown = np.array2string(values, threshold=_SHOWN_ELEMENTS, separator=", ")
    return f"{tensor.name} {tensor.datatype} {tensor.shape}\n{shown}"


def _time(unix_us: int) -> str:
    if not unix_us:
        return _UNKNOWN
    return datetime.fromtimestamp(unix_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _file_of(argument: str) -> tuple[str, Path]:
    name, separator, path = argument.partition("=@")
    if not (name and separator and path.endswith(".npy")):
        raise click.UsageError(f"--output {argument!r}; expected NAME=@FILE.npy")
    return name, Path(path)


def _text(text: str) -> Text:
    """Text in which what a client wrote can not drive the terminal."""
    return Text("".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text))
