"""The plots of overload runs: goodput and latency over load, memory over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qinfer.errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.overload import Result

_BLUE, _ORANGE, _GREY = "#1f77b4", "#e07b39", "#777777"


def draw(result: Result, path: Path) -> None:
    """Draw a run to a PNG file.

    Raises:
        SetupError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SetupError("the plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    if result.points:
        left, right = figure.subplots(1, 2)
        _goodput(left, result)
        _latency(right, result)
    if result.memory is not None:
        _memory(figure.subplots(1, 1), result)
    settings = result.settings
    figure.suptitle(
        f"A model that takes {settings.batch_ms:g} ms for {settings.batch} rows; every request has "
        f"{settings.deadline_ms:g} ms\n{result.machine.cpu}, {result.machine.cores} cores",
        fontsize=9,
    )
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _goodput(axes: Any, result: Result) -> None:
    offered = [point.offered for point in result.points]
    axes.plot(offered, offered, color=_GREY, linestyle="--", linewidth=1, label="offered")
    axes.axhline(result.capacity, color=_GREY, linewidth=1, label="capacity")
    axes.plot(offered, [point.goodput for point in result.points], "o-", color=_BLUE, label="in time")
    axes.set_ylim(0, 1.6 * result.capacity)
    axes.set_ylabel("answers in time/s")
    _finish(axes, "offered requests/s")


def _latency(axes: Any, result: Result) -> None:
    offered = [point.offered for point in result.points]
    axes.axhline(result.settings.deadline_ms, color=_GREY, linewidth=1, label="deadline")
    axes.plot(offered, [point.p99_ms for point in result.points], "o-", color=_ORANGE, label="p99")
    axes.plot(offered, [point.p50_ms for point in result.points], "o-", color=_BLUE, label="p50")
    axes.set_ylim(0, 1.3 * result.settings.deadline_ms)
    axes.set_ylabel("latency of what is let in, ms")
    _finish(axes, "offered requests/s")


def _memory(axes: Any, result: Result) -> None:
    assert result.memory is not None
    samples = result.memory.samples
    minutes = [sample.seconds / 60 for sample in samples]
    for name in samples[-1].rss_mb:
        axes.plot(minutes, [sample.rss_mb.get(name, float("nan")) for sample in samples], label=name)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("resident MB")
    _finish(axes, f"minutes of {result.memory.times:g} times the capacity")


def _finish(axes: Any, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
