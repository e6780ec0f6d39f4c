"""`qinfer dlq`: requests that were given up because they killed every worker that ran them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qinfer.cli.broker import broker_option
from qinfer.cli.infer import in_json
from qinfer.cli.infer import show as show_answer
from qinfer.cli.letters import Entry, open_letters
from qinfer.cli.options import CONTEXT, json_option, namespace_option
from qinfer.client import Result
from qinfer.deadletter import DeadLetter, summary
from qinfer.errors import NotFound, Poisoned, QInferError

_UNKNOWN = "-"
_YEAR_9999 = 253_370_764_800_000_000


@click.group(
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  qinfer dlq list
  qinfer dlq show 17
  qinfer dlq replay 17 --timeout 60
  qinfer dlq purge --model mlp
  qinfer dlq list --store-dir /var/lib/qinfer          of a `qinfer serve` with that folder

All of them talk to the broker, which QINFER_NATS, --nats or --store-dir names.""",
)
def dlq() -> None:
    """Look at requests that were given up, replay them, or remove them."""


@dlq.command("list", context_settings=CONTEXT)
@click.option("--model", default="", help="Only those of this model.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Show at most so many.")
@click.option("--after", type=click.IntRange(0), default=0, help="Begin behind the one with this id.")
@broker_option
@namespace_option
@json_option
def list_(model: str, limit: int, after: int, nats: str, namespace: str, as_json: bool) -> None:
    """Show dead letters, the oldest first."""

    async def read() -> list[Entry]:
        async with open_letters(nats, namespace) as letters:
            return await letters.page(model, after=after, limit=limit + 1)

    found = asyncio.run(read())
    entries, more = found[:limit], len(found) > limit
    if as_json:
        click.echo(json.dumps([_told(entry) for entry in entries], indent=2))
        return
    console = Console()
    console.print(_list(entries) if entries else "no dead letters")
    if more:
        console.print(f"there are more: --after {entries[-1].id}")


@dlq.command(context_settings=CONTEXT)
@click.argument("number", metavar="ID", type=click.IntRange(1))
@broker_option
@namespace_option
@json_option
def show(number: int, nats: str, namespace: str, as_json: bool) -> None:
    """Show one dead letter: what it asked for, and what became of it."""

    async def read() -> DeadLetter:
        async with open_letters(nats, namespace) as letters:
            return await letters.get(number)

    letter = asyncio.run(read())
    if as_json:
        click.echo(json.dumps(_told(Entry(number, letter)), indent=2))
    else:
        Console().print(_details(number, letter))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a replay.

    Attributes:
        id: the letter's.
        answer: None where it failed.
        seconds: that it took.
        error: None where it was answered.
        removed: whether the letter is gone.
    """

    id: int
    answer: Result | None = None
    seconds: float = 0.0
    error: QInferError | None = None
    removed: bool = False


@dlq.command(context_settings=CONTEXT)
@click.argument("numbers", metavar="ID...", type=click.IntRange(1), nargs=-1, required=True)
@click.option(
    "--timeout",
    type=click.FloatRange(0.001, 86400),
    default=30.0,
    show_default=True,
    help="Deadline of each in seconds.",
)
@click.option("--keep", is_flag=True, help="Keep a letter that is answered.")
@broker_option
@namespace_option
@json_option
def replay(
    numbers: tuple[int, ...], timeout: float, keep: bool, nats: str, namespace: str, as_json: bool
) -> None:
    """Ask again, one after the other, and show the answers.

    A letter whose request is answered is removed. One that kills workers still kills them again, and becomes
    one more dead letter.
    """
    outcomes = asyncio.run(_replay(nats, namespace, numbers, timeout=timeout, keep=keep))
    if as_json:
        click.echo(json.dumps([_outcome_told(outcome) for outcome in outcomes], indent=2))
    else:
        for outcome in outcomes:
            _show_outcome(outcome)
    if any(outcome.error is not None for outcome in outcomes):
        raise click.exceptions.Exit(1)


async def _replay(
    nats: str, namespace: str, numbers: Sequence[int], *, timeout: float, keep: bool
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    async with open_letters(nats, namespace) as letters:
        for number in numbers:
            try:
                started = perf_counter()
                answer = await letters.replay(number, timeout=timeout)
                seconds = perf_counter() - started
                removed = not keep and await letters.remove(number)
            except QInferError as error:
                outcomes.append(Outcome(number, error=error))
            else:
                outcomes.append(Outcome(number, answer, seconds, removed=removed))
    return outcomes


@dlq.command(context_settings=CONTEXT)
@click.argument("numbers", metavar="[ID]...", type=click.IntRange(1), nargs=-1)
@click.option("--model", default="", help="All those of this model.")
@click.option("--all", "everything", is_flag=True, help="All there are.")
@click.option("--yes", is_flag=True, help="Do not ask whether that is meant.")
@broker_option
@namespace_option
def purge(
    numbers: tuple[int, ...], model: str, everything: bool, yes: bool, nats: str, namespace: str
) -> None:
    """Remove dead letters for good: those with the ids, those of a model, or all."""
    if bool(numbers) + bool(model) + everything != 1:
        raise click.UsageError("name either ids, or --model, or --all")
    if not numbers:
        numbers = asyncio.run(_numbers(nats, namespace, model))
    if not numbers:
        click.echo("no dead letters")
        return
    if not yes:
        click.confirm(f"Remove {_count(len(numbers))} for good?", abort=True)
    missing = asyncio.run(_purge(nats, namespace, numbers))
    click.echo(f"removed {_count(len(set(numbers)) - len(missing))}")
    if missing:
        raise NotFound(f"there is no dead letter {', '.join(map(str, missing))} (any more)")


async def _numbers(nats: str, namespace: str, model: str) -> tuple[int, ...]:
    async with open_letters(nats, namespace) as letters:
        return tuple([entry.id async for entry in letters.all(model)])


async def _purge(nats: str, namespace: str, numbers: Sequence[int]) -> list[int]:
    """Remove letters; returns the ids there are none of."""
    async with open_letters(nats, namespace) as letters:
        return [number for number in dict.fromkeys(numbers) if not await letters.remove(number)]


# For programs


def _told(entry: Entry) -> dict[str, Any]:
    if entry.letter is None:
        return {"id": entry.id, "problem": entry.problem}
    return {"id": entry.id, **summary(entry.letter)}


def _outcome_told(outcome: Outcome) -> dict[str, Any]:
    told: dict[str, Any] = {"id": outcome.id, "removed": outcome.removed}
    if outcome.answer is not None:
        told["answer"] = in_json(outcome.answer)
    if outcome.error is not None:
        told |= {"reason": outcome.error.reason, "error": outcome.error.message}
    return told


# For people


def _list(entries: Sequence[Entry]) -> RenderableType:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("id", justify="right")
    shown.add_column("model", overflow="fold")
    shown.add_column("given up", no_wrap=True)
    shown.add_column("reason")
    shown.add_column("attempts", justify="right")
    shown.add_column("request id", overflow="fold")
    for entry in entries:
        letter = entry.letter
        if letter is None:
            shown.add_row(str(entry.id), _UNKNOWN, "", _text(entry.problem))
        else:
            shown.add_row(
                str(entry.id),
                _text(_target(letter)),
                _time(letter.buried_us),
                _text(letter.reason),
                str(len(letter.attempts)),
                _text(letter.request_id),
            )
    return shown


def _details(number: int, letter: DeadLetter) -> RenderableType:
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, value in (
        ("dead letter", str(number)),
        ("model", _target(letter)),
        ("given up", f"{_time(letter.buried_us)} by worker {letter.worker or _UNKNOWN}"),
        ("reason", letter.reason),
        ("error", letter.error),
        ("request id", letter.request_id),
        ("tenant", letter.tenant),
        ("trace id", letter.trace_id),
        ("replay", "possible" if letter.complete else "impossible: its data were too large to keep"),
    ):
        facts.add_row(name, _text(value or _UNKNOWN))
    return Group(facts, "", _attempts(letter), "", _inputs(letter))


def _attempts(letter: DeadLetter) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("attempt", justify="right")
    shown.add_column("worker", overflow="fold")
    shown.add_column("began", no_wrap=True)
    shown.add_column("together with", overflow="fold")
    for number, attempt in enumerate(letter.attempts, 1):
        mates = ", ".join(mate or _UNKNOWN for mate in attempt.mates) or "nobody"
        if not attempt.worker:  # nothing is written down before a request is suspected
            mates = mates if attempt.mates else _UNKNOWN
        shown.add_row(
            str(number), _text(attempt.worker or "not recorded"), _time(attempt.at_us), _text(mates)
        )
    return shown


def _inputs(letter: DeadLetter) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("input", "datatype", "shape"):
        shown.add_column(column, overflow="fold")
    for tensor in letter.request.inputs:
        shown.add_row(_text(tensor.name), _text(tensor.datatype), str(tensor.shape))
    return shown


def _show_outcome(outcome: Outcome) -> None:
    console = Console(soft_wrap=True)
    if outcome.answer is not None:
        fate = "removed" if outcome.removed else "kept"
        console.print(_text(f"dead letter {outcome.id}: answered, and {fate}"))
        show_answer(outcome.answer, outcome.seconds)
    if outcome.error is not None:
        again = "; it lies there once more, under another id" if isinstance(outcome.error, Poisoned) else ""
        told = f"{outcome.error.reason}: {outcome.error.message}{again}"
        console.print(_text(f"dead letter {outcome.id}: {told}"))


def _target(letter: DeadLetter) -> str:
    return f"{letter.model} version {letter.version}" if letter.version else letter.model


def _time(unix_us: int) -> str:
    if not 0 < unix_us < _YEAR_9999:
        return _UNKNOWN
    return datetime.fromtimestamp(unix_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _count(number: int) -> str:
    return "1 dead letter" if number == 1 else f"{number} dead letters"


def _text(text: str) -> Text:
    """Text in which what a client wrote can not drive the terminal."""
    return Text("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))
