"""Showing how far a run is: a bar on a terminal, a line now and then elsewhere. On standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TypeAlias

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from qinfer.scoring import Progress

Show: TypeAlias = Callable[[Progress], None]

LINE_SECONDS = 10.0
"""Between two lines where there is no terminal."""


@contextmanager
def showing() -> Iterator[Show]:
    """Something to call with every progress."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        rate = _Rate()

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.fraction, description=_told(progress, rate(progress)))

        yield show


class _Lines:
    def __init__(self) -> None:
        self._rate = _Rate()
        self._last: float | None = None

    def __call__(self, progress: Progress) -> None:
        rate = self._rate(progress)
        now = monotonic()
        if self._last is None:
            if progress.rows:
                click.echo(f"going on behind {progress.rows} rows", err=True)
            self._last = now
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            click.echo(f"{progress.fraction:.0%}: {_told(progress, rate)}", err=True)


class _Rate:
    """Rows a second since this process began."""

    def __init__(self) -> None:
        self._begun: tuple[float, int] | None = None

    def __call__(self, progress: Progress) -> float:
        now = monotonic()
        if self._begun is None:
            self._begun = (now, progress.rows)
        seconds = now - self._begun[0]
        return (progress.rows - self._begun[1]) / seconds if seconds else 0.0


def _told(progress: Progress, rate: float) -> str:
    total = f" of {progress.total}" if progress.total is not None else ""
    failed = f", {progress.failed} failed" if progress.failed else ""
    return f"{progress.rows}{total} rows, {rate:.0f} rows/s{failed}"
