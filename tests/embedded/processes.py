"""What tests of processes wait for and look at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

DEADLINE = 30.0


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; fails after `DEADLINE` seconds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - a condition of the system, which sets no event
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process runs; one of which only the entry for its parent is left does not count."""
    try:
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0]
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return states != ["Z"]


def command_line(pid: int | None) -> str:
    """The process's arguments, NUL-terminated."""
    return Path(f"/proc/{pid}/cmdline").read_text()
