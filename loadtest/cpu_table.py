"""The cost of a request, process by process, as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from loadtest.peers import PEERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.measure import Measurement
    from loadtest.processes import Process

_SMALLEST_THREAD = 0.01  # of all CPU time


def cpu_table(measurement: Measurement, spent: Sequence[Process], *, threads: bool) -> Table:
    """Lay out what each process spent on a request. A wait is a voluntary context switch.

    Args:
        measurement: the measurement.
        spent: what each process spent in it.
        threads: also show each thread that took a percent of the CPU time or more.
    """
    served = measurement.served
    table = _empty(measurement)
    total_us = sum(process.cpu_us for process in spent)
    for process in sorted(spent, key=lambda process: -process.cpu_us):
        table.add_row(
            process.role,
            str(process.pid),
            f"{process.cpu_us / served:.1f}",
            f"{process.user_us / served:.1f}",
            f"{process.system_us / served:.1f}",
            f"{process.switches / served:.3f}",
            f"{process.rss_mb:.0f}",
        )
        for tid, thread in sorted(process.threads.items(), key=lambda item: -item[1].cpu_us):
            if threads and thread.cpu_us >= total_us * _SMALLEST_THREAD:
                cpu, waits = f"{thread.cpu_us / served:.1f}", f"{thread.switches / served:.3f}"
                table.add_row(f"  {thread.name}", str(tid), cpu, "", "", waits, "", style="dim")
    table.add_section()
    table.add_row(
        "all",
        "",
        f"{total_us / served:.1f}",
        f"{sum(process.user_us for process in spent) / served:.1f}",
        f"{sum(process.system_us for process in spent) / served:.1f}",
        f"{sum(process.switches for process in spent) / served:.3f}",
        f"{measurement.rss_mb:.0f}",
    )
    return table


def _empty(measurement: Measurement) -> Table:
    """The table without rows: title, columns and, below, what the clients saw."""
    batch = "" if measurement.mean_batch is None else f"mean batch {measurement.mean_batch:.1f}, "
    server = PEERS[measurement.server].title
    table = Table(
        title=f"{server}, {measurement.wire}, {measurement.connections} connections: "
        "CPU time and waits for each request",
        caption=f"{measurement.rate:,.0f} requests/s, p50 {measurement.p50_ms:.2f} ms, "
        f"p99 {measurement.p99_ms:.2f} ms, {batch}errors: {measurement.errors or 'none'}\n"
        f"load generator {measurement.client_us:.1f} µs a request; "
        f"everything else {measurement.foreign_cpu:.1%} of the machine",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("process")
    for heading in ("pid", "CPU µs", "user", "system", "waits", "RSS MB"):
        table.add_column(heading, justify="right")
    return table
