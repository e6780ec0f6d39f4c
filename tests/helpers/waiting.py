"""Waiting for conditions instead of for time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 20.0
"""Seconds after which a condition counts as never coming true. Generous: machines are busy."""


async def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Return once `condition()` is true; fail after `PATIENCE` seconds."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + PATIENCE
    while not condition():
        if loop.time() > give_up:
            raise AssertionError(f"never became true: {what or condition}")
        await asyncio.sleep(0.005)


class Mailbox:
    """Collects what a handler is called with."""

    def __init__(self) -> None:
        self.items: list = []

    def __call__(self, *args: object) -> None:
        self.items.append(args[0] if len(args) == 1 else args)

    async def take(self, count: int = 1) -> list:
        """The first `count` items, removed."""
        await eventually(lambda: len(self.items) >= count, f"{count} items, have {len(self.items)}")
        taken, self.items = self.items[:count], self.items[count:]
        return taken
