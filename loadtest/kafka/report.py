"""The figures of the stream scorer, as docs/kafka.md has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from loadtest import environment
from loadtest.chaos.report import replaced
from loadtest.kafka.chaos import FAULTS, Outcome
from loadtest.kafka.throughput import SYSTEMS, Throughput

CHAOS, THROUGHPUT = "kafka-chaos", "kafka-throughput"
"""Marks in docs/kafka.md: what lies from `<!-- name -->` to `<!-- /name -->` is written here."""

_RESULTS = environment.ROOT / "loadtest" / "results"
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
    records = "64 raw numbers" if figures.written_as == "raw" else "JSON with 64 numbers"
    yield from ("", _where(result) + f" Records are {records}.", "")
    yield "| | records/s, median | times the plain loop | CPU µs a record | memory, MB |"
    yield "|---|---|---|---|---|"
    for system in SYSTEMS:
        rates = [rate for rate in figures.rates if rate.system == system]
        cpu = min(rate.cpu_us for rate in rates)
        memory = max(rate.peak_mb for rate in rates)
        yield _row(system, figures.median(system), figures.factor(system), cpu, memory)
    long = figures.backlog
    if long is not None:
        factor = long.records_per_second / figures.median("plain loop")
        name = f"{long.system}, backlog of {figures.backlog_records:,}"
        yield _row(name, long.records_per_second, factor, long.cpu_us, long.peak_mb)
    yield ""


def _row(name: str, rate: float, factor: float, cpu_us: float, memory_mb: float) -> str:
    return f"| {name} | {rate:,.0f} | {factor:.1f} | {cpu_us:.0f} | {memory_mb:.0f} |"
