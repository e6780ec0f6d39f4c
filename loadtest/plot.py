"""The plot of a side-by-side run: a column for each load, a row for each figure, a bar for each server.

Each panel has a scale of its own that starts at zero, because a load of one connection and one of a hundred
differ by more than any two servers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadtest.results import Cell, Result, Spread, cells, role_us, select, spread
from qinfer.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from loadtest.measure import Measurement

_COLOURS = ("#1f77b4", "#e07b39", "#2a9d5c", "#8e5ea2", "#8c6d4f", "#777777")
_STRENGTHS = (1.0, 0.7, 0.45, 0.25)
_LABELS = {"http-json": "HTTP", "http-binary": "binary HTTP", "grpc": "gRPC"}
_HEADROOM = 1.22  # above the tallest bar, for its label


def draw(result: Result, path: Path) -> None:
    """Draw throughput, latency and CPU time of every load to a PNG file.

    Raises:
        SetupError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SetupError("the plot needs matplotlib: pip install matplotlib") from None
    groups = cells(result.measurements)
    servers = list(result.servers)
    figure = Figure(figsize=(1 + max(1.7, 1.15 * len(servers)) * len(groups), 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(4, len(groups), squeeze=False)
    for column, cell in enumerate(groups):
        repeats = [select(result.measurements, cell, server) for server in servers]
        _draw_bars(panels[0, column], repeats, lambda item: item.rate, ",.0f")
        _draw_bars(panels[1, column], repeats, lambda item: item.p50_ms, ".2f")
        _draw_bars(panels[2, column], repeats, lambda item: item.p99_ms, ".2f")
        _draw_cpu(panels[3, column], repeats)
        panels[0, column].set_title(_title(cell), fontsize=10)
        for axes in panels[:, column]:
            _finish(axes, [])
        _finish(panels[3, column], servers)
    for row, label in enumerate(("requests/s", "p50, ms", "p99, ms", "CPU µs a request")):
        panels[row, 0].set_ylabel(label)
    figure.suptitle(
        f"{' and '.join(server.title for server in result.servers.values())}\n"
        f"{result.machine.cpu}, {result.machine.cores} cores; medians of {result.settings.repeats}, "
        f"lines from lowest to highest",
        fontsize=9,
    )
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_bars(
    axes: Any, repeats: Sequence[Sequence[Measurement]], value: Callable[[Measurement], float], form: str
) -> None:
    """One bar a server, with the range of its repeats and its value."""
    for position, items in enumerate(repeats):
        if items:
            figure = spread(items, value)
            axes.bar(position, figure.median, 0.7, color=_COLOURS[position % len(_COLOURS)])
            _mark(axes, position, figure, form)


def _draw_cpu(axes: Any, repeats: Sequence[Sequence[Measurement]]) -> None:
    """One bar a server, made of the roles of its processes."""
    for position, items in enumerate(repeats):
        if not items:
            continue
        bottom = 0.0
        total = spread(items, lambda item: item.cpu_us)
        for index, role in enumerate(sorted({role for item in items for role in item.cost})):
            height = spread(items, role_us(role)).median
            axes.bar(
                position,
                height,
                0.7,
                bottom=bottom,
                color=_COLOURS[position % len(_COLOURS)],
                alpha=_STRENGTHS[index % len(_STRENGTHS)],
            )
            if height > total.median / 12:
                middle = bottom + height / 2
                colour = "white" if index == 0 else "black"
                axes.text(position, middle, role, ha="center", va="center", fontsize=6.5, color=colour)
            bottom += height
        _mark(axes, position, total, ".0f")


def _mark(axes: Any, position: int, figure: Spread, form: str) -> None:
    axes.plot([position, position], [figure.low, figure.high], color="black", linewidth=1)
    axes.annotate(
        format(figure.median, form),
        (position, figure.high),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )
    axes.set_ylim(0, max(axes.get_ylim()[1], figure.high * _HEADROOM))


def _title(cell: Cell) -> str:
    wire, connections = cell
    return f"{_LABELS[wire]}\n{connections} connection{'s' if connections > 1 else ''}"


def _finish(axes: Any, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
