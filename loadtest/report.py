"""The report of a side-by-side run: JSON with every measurement, Markdown with medians, and a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from loadtest import plot
from loadtest.results import FORMAT, Cell, Result, Spread, cells, ratio, role_us, select, spread
from qinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadtest.measure import Measurement

DISTURBED = 0.05
"""Share of the machine taken by other processes above which a measurement counts as disturbed."""

WIRES = {
    "http-json": "HTTP, JSON (wrk)",
    "http-binary": "HTTP, binary tensors (perf_analyzer)",
    "grpc": "gRPC (perf_analyzer)",
}


def write(result: Result, folder: Path, name: str) -> list[Path]:
    """Write `name`.json, .md and .png into `folder`, which is made if missing; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    data, text, image = (folder / f"{name}.{suffix}" for suffix in ("json", "md", "png"))
    data.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    plot.draw(result, image)
    text.write_text(markdown(result, image.name) + "\n")
    return [data, text, image]


def read(path: Path) -> Result:
    """Read the JSON of an earlier run.

    Raises:
        ConfigError: it is not such a file, or of another version.
    """
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}; expected the JSON file of a side-by-side run") from None
    if result.format != FORMAT:
        raise ConfigError(f"{path}: format: {result.format}; expected {FORMAT}")
    return result


def markdown(result: Result, image: str) -> str:
    """The report as Markdown; `image` is the file name of the plot."""
    return "\n".join(_lines(result, image))


def _lines(result: Result, image: str) -> Iterator[str]:
    servers = list(result.servers.values())
    yield f"# {' and '.join(server.title for server in servers)}, {result.started[:10]}"
    yield ""
    for server in servers:
        yield server.remark
        yield ""
    yield (
        f"Medians of {result.settings.repeats} repeats of {result.settings.duration:g} s, lowest and highest "
        f"in brackets. The servers were measured in turn on one machine that also ran the load generator; "
        f"each client sends its next request when it has its answer. CPU time is user and system time of all "
        f"the server's processes."
    )
    yield ""
    yield f"![requests per second, latency and CPU time of the servers]({image})"
    yield ""
    present = cells(result.measurements)
    for wire in dict.fromkeys(cell[0] for cell in present):
        chosen = [cell for cell in present if cell[0] == wire]
        yield f"## {WIRES[wire]}"
        yield ""
        yield from _table(result, chosen)
        yield ""
        if len(servers) > 1:
            yield from _ratios(result, chosen)
            yield ""
    yield from _conditions(result)


def _table(result: Result, chosen: list[Cell]) -> Iterator[str]:
    yield (
        "| connections | server | requests/s | p50 ms | p99 ms | errors | mean batch | CPU µs/request | "
        "of which | client µs | RSS MB |"
    )
    yield "|--:|---|--:|--:|--:|--:|--:|--:|---|--:|--:|"
    for cell in chosen:
        for name in result.servers:
            repeats = select(result.measurements, cell, name)
            if repeats:
                yield _row(cell, name, repeats)


def _row(cell: Cell, name: str, repeats: list[Measurement]) -> str:
    batches = [item.mean_batch for item in repeats if item.mean_batch is not None]
    roles = {
        role: spread(repeats, role_us(role)).median
        for role in sorted({role for item in repeats for role in item.cost})
    }
    values = [
        str(cell[1]),
        name,
        _range(spread(repeats, lambda item: item.rate), ",.0f"),
        _range(spread(repeats, lambda item: item.p50_ms), ".2f"),
        _range(spread(repeats, lambda item: item.p99_ms), ".2f"),
        str(sum(sum(item.errors.values()) for item in repeats)),
        f"{sum(batches) / len(batches):.1f}" if batches else "unknown",
        _range(spread(repeats, lambda item: item.cpu_us), ".0f"),
        ", ".join(f"{role} {value:.0f}" for role, value in roles.items() if value >= 0.5),
        f"{spread(repeats, lambda item: item.client_us).median:.0f}",
        f"{spread(repeats, lambda item: item.rss_mb).median:.0f}",
    ]
    return f"| {' | '.join(values)} |"


def _ratios(result: Result, chosen: list[Cell]) -> Iterator[str]:
    """The first server against each other one."""
    first, *others = result.servers
    yield f"How many times the other server's figure that of {first} is, pair by pair:"
    yield ""
    yield "| connections | servers | requests/s | p50 | p99 | CPU µs/request |"
    yield "|--:|---|--:|--:|--:|--:|"
    for cell in chosen:
        ours = select(result.measurements, cell, first)
        for other in others:
            theirs = select(result.measurements, cell, other)
            if not ours or not theirs:
                continue
            figures = [
                _range(ratio(ours, theirs, lambda item: item.rate), ".2f"),
                _range(ratio(ours, theirs, lambda item: item.p50_ms), ".2f"),
                _range(ratio(ours, theirs, lambda item: item.p99_ms), ".2f"),
                _range(ratio(ours, theirs, lambda item: item.cpu_us), ".2f"),
            ]
            yield f"| {cell[1]} | {first} / {other} | {' | '.join(figures)} |"


def _conditions(result: Result) -> Iterator[str]:
    machine = result.machine
    yield "## Conditions"
    yield ""
    yield f"- Command: `{result.command}`, started {result.started}, commit `{result.commit}`."
    yield (
        f"- Machine: {machine.cpu}, {machine.cores} cores, {machine.memory_gb:g} GB, {machine.system}, Linux "
        f"{machine.kernel}, Python {machine.python}; load average before the run "
        f"{machine.load_average[0]:g} (1 min), {machine.load_average[1]:g} (5 min)."
    )
    disturbed = [item for item in result.measurements if item.foreign_cpu > DISTURBED]
    worst = max(item.foreign_cpu for item in result.measurements)
    yield (
        f"- Other processes took up to {worst:.1%} of the machine; in {len(disturbed)} of "
        f"{len(result.measurements)} measurements it was more than {DISTURBED:.0%}."
    )
    speeds = [item.speed for item in result.measurements]
    yield (
        f"- The speed of a fixed computation on one core, timed before each measurement, varied by "
        f"{max(speeds) / min(speeds) - 1:.0%}: so much the machine itself varied."
    )
    tools = ", ".join(f"{name} {version}" for name, version in result.settings.clients.items())
    yield f"- Load generators: {tools}; {result.settings.warmup:g} s of warm-up before each measurement."
    for name, server in result.servers.items():
        versions = ", ".join(f"{package} {version}" for package, version in server.versions.items())
        yield (
            f"- {name}: `{' '.join(server.arguments)}`; {versions}; without load {server.idle_ms:.1f} ms of "
            f"CPU time a second and {server.idle_rss_mb:.0f} MB."
        )


def _range(value: Spread, form: str) -> str:
    median, low, high = (format(part, form) for part in (value.median, value.low, value.high))
    return f"{median} ({low} to {high})" if low != high else median
