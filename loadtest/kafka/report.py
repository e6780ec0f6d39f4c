"""The figures of the stream scorer, as docs/kafka.md has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from loadtest import environment
from loadtest.chaos.report import replaced
from loadtest.kafka.chaos import FAULTS, Outcome
from loadtest.kafka.throughput import Throughput

CHAOS, THROUGHPUT = "kafka-chaos", "kafka-throughput"
"""Marks in docs/kafka.md: what lies from `<!-- name -->` to `<!-- /name -->` is written here."""

_RESULTS = environment.ROOT / "loadtest" / "results"
_RECORDS = {"raw": "Records of 64 raw numbers", "json": "Records of JSON with 64 numbers"}
_PAGE = environment.ROOT / "docs" / "kafka.md"


class ChaosResult(msgspec.Struct, frozen=True, kw_only=True):
    """A chaos run, and where it was made."""

    day: str
    commit: str
    machine: environment.Machine
    seed: int
    outcomes: list[Outcome]


class ThroughputResult(msgspec.Struct, frozen=True, kw_only=True):
    """A throughput run, and where it was made."""

    day: str
    commit: str
    machine: environment.Machine
    throughput: Throughput


def keep(result: ChaosResult | ThroughputResult, *, page: Path = _PAGE, results: Path = _RESULTS) -> None:
    """Store a result as JSON, and its figures in the page.

    Raises:
        ConfigError: the page has no marks for them.
    """
    name, text = (
        (CHAOS, "\n".join(_chaos(result)))
        if isinstance(result, ChaosResult)
        else (THROUGHPUT, "\n".join(_throughput(result)))
    )
    data = msgspec.json.format(msgspec.json.encode(result), indent=1)
    (results / f"{result.day}-{name}.json").write_bytes(data + b"\n")
    page.write_text(replaced(page.read_text(encoding="utf-8"), name, text + "\n"), encoding="utf-8")


def _where(result: ChaosResult | ThroughputResult) -> str:
    machine = result.machine
    load = machine.load_average[0]
    return (
        f"{result.day}, commit `{result.commit}`, {machine.cores} cores of {machine.cpu}, which scorers, "
        f"brokers and the program that measures share; load average before it {load}."
    )


def _chaos(result: ChaosResult) -> Iterator[str]:
    yield from (
        "",
        _where(result) + f" Seed {result.seed}; three brokers, three scorers, six partitions.",
        "",
    )
    yield "| | " + " | ".join(outcome.delivery for outcome in result.outcomes) + " |"
    yield "|---" * (len(result.outcomes) + 1) + "|"
    rows: Sequence[tuple[str, Sequence[str]]] = (
        ("records", [f"{outcome.records:,}" for outcome in result.outcomes]),
        *((fault, [str(o.faults.get(fault, 0)) for o in result.outcomes]) for fault in FAULTS),
        ("records without a score", [str(outcome.missing) for outcome in result.outcomes]),
        ("scores too many", [f"{outcome.doubled:,}" for outcome in result.outcomes]),
        ("wrong scores", [str(outcome.wrong) for outcome in result.outcomes]),
        ("out of order", [str(outcome.disordered) for outcome in result.outcomes]),
        ("dead letters", [str(outcome.dead) for outcome in result.outcomes]),
        ("seconds", [f"{outcome.seconds:.0f}" for outcome in result.outcomes]),
    )
    for name, cells in rows:
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def _throughput(result: ThroughputResult) -> Iterator[str]:
    figures = result.throughput
    plain, *_ = figures.systems
    yield from ("", _where(result), "")
    for written_as, backlog in figures.backlog.items():
        yield f"{_RECORDS[written_as]}, a backlog of {backlog:,}:"
        yield ""
        yield "| | records/s, median | times the plain loop | CPU µs a record | memory, MB |"
        yield "|---|---|---|---|---|"
        loop = figures.median(plain, written_as)
        for system in figures.systems:
            rates = figures.of(system, written_as)
            cpu = min(rate.cpu_us for rate in rates)
            memory = max(rate.peak_mb for rate in rates)
            yield _row(system, figures.median(system, written_as), loop, cpu, memory)
        whole = figures.whole
        if whole is not None and whole.written_as == written_as:
            name = f"{whole.system}, to the end of the backlog"
            yield _row(name, whole.records_per_second, loop, whole.cpu_us, whole.peak_mb)
        yield ""


def _row(name: str, rate: float, loop: float, cpu_us: float, memory_mb: float) -> str:
    return f"| {name} | {rate:,.0f} | {rate / loop:.1f} | {cpu_us:.0f} | {memory_mb:.0f} |"
