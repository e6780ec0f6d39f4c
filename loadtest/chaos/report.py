"""What a run has shown, as tables: in Markdown, for a file and for docs/reliability.md, and on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from loadtest.chaos.faults import CONNECTION, FAULTS, PROCESSES, Fault
from loadtest.chaos.records import Outcome
from loadtest.chaos.result import CALM, Result, Row
from qinfer.errors import ConfigError

FIGURES, ALLOWED = "chaos", "faults"
"""Marks in docs/reliability.md: what lies from `<!-- name -->` to `<!-- /name -->` is written here."""

_BAD = (Outcome.LOST.value, Outcome.WRONG.value, Outcome.DUPLICATE.value)
_FAULTS_HEAD = (
    *("fault", "caused", "requests", "right", "refused", "hurried", "sent again", "run again"),
    *("longest gap, s: p50", "max", "recovery, s: p50", "max"),
)


def markdown(result: Result) -> str:
    """The report of one run."""
    return "\n".join(_report(result)) + "\n"


def section(results: Sequence[Result]) -> str:
    """The figures of several runs, as docs/reliability.md has them."""
    return "\n".join(_section(results)) + "\n"


def allowed() -> str:
    """What each kind of fault allows, as docs/reliability.md has it."""
    head = ("to", "fault", "lasts, s", "allowed", "on", "with key, too")
    return "\n".join(_table(head, (_allowance(fault) for fault in FAULTS.values()))) + "\n"


def update(page: Path, results: Sequence[Result]) -> None:
    """Write what is allowed, and the figures where there are results, into a page.

    Raises:
        ConfigError: the page has no such marks.
    """
    text = replaced(page.read_text(encoding="utf-8"), ALLOWED, allowed())
    if results:
        text = replaced(text, FIGURES, section(results))
    page.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, content: str) -> str:
    """The text with another content between two marks.

    Raises:
        ConfigError: there are no such marks.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ConfigError(f"expected a page with the lines {begin.strip()} and {end.strip()}")
    return f"{before}{begin}{content}{end}{after}"


def show(result: Result, console: Console) -> None:
    """The outcome on a terminal."""
    table = Table(*_FAULTS_HEAD, title=f"seed {result.seed}")
    for name, row in result.rows.items():
        table.add_row(*_cells(name, row))
    console.print(table)
    console.print(_requests(result))
    for text in result.shown:
        console.print(f"not allowed: {text}", style="red", markup=False)
    verdict = "passed" if result.passed else f"FAILED: {_counted(result.violations)}"
    console.print(verdict, style="bold green" if result.passed else "bold red")


def _report(result: Result) -> Iterator[str]:
    yield f"# Chaos, seed {result.seed}"
    yield ""
    yield _where(result)
    yield ""
    yield _requests(result)
    yield ""
    yield from _faults([result])
    yield ""
    yield "## Not allowed"
    yield ""
    if not result.shown:
        yield "Nothing."
    for text in result.shown:
        yield f"- {' '.join(text.split())}"


def _section(results: Sequence[Result]) -> Iterator[str]:
    first = results[0]
    yield _where(first)
    yield ""
    yield from _table(
        (
            *("seed", "faults", "requests", "right", "refused", "lost", "wrong", "duplicate", "not allowed"),
            *("recovery, s: p50", "max"),
        ),
        (_run(result) for result in results),
        numbers=True,
    )
    yield ""
    yield from _faults(results)


def _run(result: Result) -> Sequence[str]:
    requests = result.requests
    rows = list(result.rows.values())
    recoveries = [seconds for row in rows for seconds in row.recoveries]
    bad = [str(max(requests.get(kind, 0), result.violations.get(kind, 0))) for kind in _BAD]
    return (
        str(result.seed),
        str(result.faults),
        _number(sum(requests.values())),
        _number(requests.get(Outcome.RIGHT.value, 0)),
        _number(requests.get(Outcome.REFUSED.value, 0)),
        *bad,
        str(sum(count for kind, count in result.violations.items() if kind not in _BAD)),
        *_spread(recoveries, sum(row.unrecovered for row in rows)),
    )


def _where(result: Result) -> str:
    machine = result.machine
    return (
        f"{result.started[:10]}, commit {result.commit}, {result.seconds / 60:g} minutes a seed; clients, "
        f"faults and system on one machine: {machine.cpu}, {machine.cores} cores, {machine.memory_gb:g} GB, "
        f"{machine.system}, Python {machine.python}."
    )


def _requests(result: Result) -> str:
    total = sum(result.requests.values())
    return (
        f"{result.faults} faults, {_number(total)} requests ({_counted(result.ways)}): "
        f"{_counted(result.requests)}. Refused: {_counted(result.refused) or 'none'}. "
        f"{_number(result.keyed)} had an idempotency key, {_number(result.replayed)} of them were asked "
        f"again after their answer. The models counted {_number(result.executions)} executions; raw clients "
        f"got {_number(result.spare)} further answers. Steady requests took "
        f"{result.p50 * 1000:.0f} ms (p50), {result.p99:.2f} s (p99), {result.slowest:.2f} s (slowest)."
    )


def _faults(results: Sequence[Result]) -> Iterator[str]:
    rows = {
        name: _sum([result.rows[name] for result in results if name in result.rows])
        for name in (CALM, *FAULTS)
        if any(name in result.rows for result in results)
    }
    yield from _table(_FAULTS_HEAD, (_cells(name, row) for name, row in rows.items()), numbers=True)


def _allowance(fault: Fault) -> Sequence[str]:
    shortest, longest = fault.lasts
    reasons = ", ".join(f"`{reason}`" if reason != CONNECTION else reason for reason in sorted(fault.allows))
    return (
        fault.role,
        fault.title,
        f"{shortest:g} to {longest:g}" if longest else "",
        reasons or "nothing",
        ", ".join(sorted(fault.ways)) if reasons else "",
        ("yes" if fault.keyed else "no") if reasons else "",
    )


def _sum(rows: Sequence[Row]) -> Row:
    total = Row()
    for row in rows:
        total.caused += row.caused
        total.requests += row.requests
        total.right += row.right
        total.hurried += row.hurried
        total.again += row.again
        total.reruns += row.reruns
        total.unrecovered += row.unrecovered
        total.gaps = [*total.gaps, *row.gaps]
        total.recoveries = [*total.recoveries, *row.recoveries]
        for reason, count in row.refused.items():
            total.refused[reason] = total.refused.get(reason, 0) + count
    return total


def _cells(name: str, row: Row) -> Sequence[str]:
    if name == CALM:
        title = "none"
    else:
        fault = FAULTS[name]
        title = f"{fault.role}: {fault.title}" if fault.role in PROCESSES else fault.title
    return (
        title,
        str(row.caused or ""),
        _number(row.requests),
        _number(row.right),
        _counted(row.refused),
        _number(row.hurried),
        _number(row.again),
        _number(row.reruns),
        *_spread(row.gaps, 0),
        *_spread(row.recoveries, row.unrecovered),
    )


def _spread(seconds: Sequence[float], missing: int) -> tuple[str, str]:
    """Median and maximum; a run's end that came before the recovery is no maximum."""
    if not seconds:
        return ("", "not seen") if missing else ("", "")
    highest = f"{max(seconds):.1f}" + (f" ({missing} not seen)" if missing else "")
    return f"{median(seconds):.1f}", highest


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{_number(count)} {name}" for name, count in sorted(counts.items()))


def _number(value: int) -> str:
    return f"{value:,}".replace(",", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" + ("|--:" if numbers else "|---") * (len(head) - 1) + "|"
    for row in rows:
        yield "|" + "".join(f" {cell} |" if cell else " |" for cell in row)
