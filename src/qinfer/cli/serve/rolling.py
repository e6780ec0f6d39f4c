"""Replaces the processes of a server one by one: no request notices.

A process goes when its successor is there: a worker that has loaded what its predecessor serves and is
registered, a gateway that listens on the same ports.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from qinfer.cli.serve.process import Notice, Role
from qinfer.errors import SetupError
from qinfer.registry import Directory, WorkerRecord

logger = logging.getLogger(__name__)

_KNOWN_SECONDS = 10.0  # until a worker that is registered is known here, too
_POLL = 0.05


class Rolling:
    """Replaces processes.

    Args:
        stop_timeout: seconds a process that is replaced may take to finish.
    """

    def __init__(self, *, stop_timeout: float) -> None:
        self._stop_timeout = stop_timeout
        self.between: list[Role] = []
        """Processes that start or stop at the moment, and are in no list of the server."""

    async def replace_workers(
        self, roles: list[Role], make: Callable[[int, Notice], Role], directory: Directory
    ) -> None:
        """Replace each worker by one that `make` makes, in the list.

        Raises:
            SetupError: a successor did not come up, or cannot load a model that is served; what is not
                replaced yet goes on.
        """
        for index in range(len(roles)):
            before = {worker.id for worker in workers_here(directory)}
            served = {name for worker in directory.workers if not worker.draining for name in worker.models}

            async def check(before: set[str] = before, served: set[str] = served) -> None:
                worker = await _newcomer(directory, before)
                lost = sorted(served & worker.problems.keys() - worker.models.keys())
                if lost:
                    reasons = "; ".join(f"{name}: {worker.problems[name]}" for name in lost)
                    raise SetupError(f"it cannot load what is served now: {reasons}")

            await self._replace(roles, index, make, check)

    async def replace_gateways(self, roles: list[Role], make: Callable[[int, Notice], Role]) -> None:
        """Replace each gateway by one that `make` makes, in the list.

        Raises:
            SetupError: a successor did not come up; what is not replaced yet goes on.
        """

        async def nothing() -> None:
            """A gateway that listens has read the registry."""

        for index in range(len(roles)):
            await self._replace(roles, index, make, nothing)

    async def _replace(
        self,
        roles: list[Role],
        index: int,
        make: Callable[[int, Notice], Role],
        check: Callable[[], Awaitable[None]],
    ) -> None:
        old = roles[index]
        with tempfile.TemporaryDirectory(prefix="qinfer-") as folder:
            notice = Notice(Path(folder))
            await notice.open()
            new = make(index, notice)
            self.between.append(new)
            logger.info("%s: starting its successor", old.child.name)
            try:
                await new.start()
                await check()
            except Exception as error:
                logger.error("%s: its successor cannot take over: %s", old.child.name, error)
                await new.child.stop(self._stop_timeout)
                self.between.remove(new)
                raise
            finally:
                notice.close()
        new.child.restarts = old.child.restarts
        logger.info("%s: pid %s takes over from pid %s", old.child.name, new.child.pid, old.child.pid)
        roles[index] = new
        self.between[self.between.index(new)] = old
        await old.child.stop(self._stop_timeout, signal.SIGTERM)
        self.between.remove(old)


def workers_here(directory: Directory) -> list[WorkerRecord]:
    """Live workers of this host."""
    host = socket.gethostname()
    return [worker for worker in directory.workers if worker.host == host]


async def _newcomer(directory: Directory, before: set[str]) -> WorkerRecord:
    """The worker of this host that was not there before."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _KNOWN_SECONDS
    while True:
        for worker in workers_here(directory):
            if worker.id not in before:
                return worker
        if loop.time() > give_up:
            raise SetupError("it is running but not registered")
        await asyncio.sleep(_POLL)
