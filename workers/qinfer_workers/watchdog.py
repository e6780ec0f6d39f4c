"""Notices instances that hang.

A batch may take as long as it likes while somebody waits for it. Once all its members are cancelled or past
their deadlines the model is asked to stop (`is_cancelled`); an instance that goes on for long after that is
taken to hang. Its thread cannot be ended from outside, so that its process has to be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from qinfer_workers.batch import Batch
from qinfer_workers.served import ServedVersion

_LOOKS = 4  # within the timeout


class Watchdog:
    """Watches the instances of a worker.

    Args:
        versions: what is loaded at the moment.
        timeout: seconds that an instance may go on with a batch nobody waits for.
    """

    def __init__(self, versions: Callable[[], Iterable[ServedVersion]], *, timeout: float) -> None:
        self._versions = versions
        self._timeout = timeout

    async def hung(self) -> str:
        """Return the name of an instance that hangs, as soon as there is one."""
        loop = asyncio.get_running_loop()
        since: dict[Batch, float] = {}
        while True:
            await asyncio.sleep(self._timeout / _LOOKS)
            now = loop.time()
            before, since = since, {}
            for served in self._versions():
                for instance in served.instances:
                    batch = instance.batch
                    if batch is None or not batch.is_cancelled():
                        continue
                    since[batch] = before.get(batch, now)
                    if now - since[batch] >= self._timeout:
                        return instance.name
