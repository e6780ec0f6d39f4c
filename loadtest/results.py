"""What a side-by-side run found: the form of its JSON file, and how repeats are summed up."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from loadtest.clients import Wire
from loadtest.environment import Machine
from loadtest.measure import Measurement

FORMAT = 1
"""Version of the JSON file."""

Cell: TypeAlias = tuple[Wire, int]
"""What one group of comparable measurements has in common: wire and connections."""


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A server that took part.

    Attributes:
        title: what reports call it.
        remark: what a reader must know to judge its numbers.
        arguments: its command line; FOLDER stands for the folder of the run, CACHE for where peers are
            installed, VENV for the Python environment.
        versions: the software it consists of.
        idle_ms: CPU time its processes take without any load, in milliseconds a second.
        idle_rss_mb: resident memory before the first load, in megabytes.
    """

    title: str
    remark: str
    arguments: list[str]
    versions: dict[str, str]
    idle_ms: float
    idle_rss_mb: float


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How it was measured; times in seconds."""

    repeats: int
    duration: float
    warmup: float
    clients: dict[str, str]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One whole run."""

    started: str
    commit: str
    command: str
    machine: Machine
    settings: Settings
    servers: dict[str, ServerInfo]
    measurements: list[Measurement]
    format: int = FORMAT


class Spread(msgspec.Struct, frozen=True):
    """Median, least and greatest of some repeats."""

    median: float
    low: float
    high: float


def cells(measurements: Iterable[Measurement]) -> list[Cell]:
    """The groups of comparable measurements, in the order they were first measured."""
    return list(dict.fromkeys((item.wire, item.connections) for item in measurements))


def select(measurements: Iterable[Measurement], cell: Cell, server: str) -> list[Measurement]:
    """The repeats of one server in one cell, in order."""
    found = [item for item in measurements if (item.wire, item.connections) == cell and item.server == server]
    return sorted(found, key=lambda item: item.repeat)


def spread(repeats: Iterable[Measurement], value: Callable[[Measurement], float]) -> Spread:
    """Sum up one figure of some repeats; there must be at least one."""
    values = [value(item) for item in repeats]
    return Spread(statistics.median(values), min(values), max(values))


def role_us(role: str) -> Callable[[Measurement], float]:
    """The figure "CPU time a request of the processes of this role", for `spread`."""
    return lambda item: item.cost[role].cpu_us if role in item.cost else 0.0


def ratio(
    first: Iterable[Measurement], second: Iterable[Measurement], value: Callable[[Measurement], float]
) -> Spread:
    """How many times the figure of `second` that of `first` is, repeat by repeat.

    Repeats are paired because they were measured right after each other: what disturbs the machine for longer
    than that disturbs both.
    """
    others = {item.repeat: item for item in second}
    pairs = [(item, others[item.repeat]) for item in first if item.repeat in others]
    values = [value(one) / value(other) for one, other in pairs if value(other)]
    return Spread(statistics.median(values), min(values), max(values))
