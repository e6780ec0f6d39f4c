"""Files that are read again when they change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qinfer.errors import QInferError
from qinfer.lifecycle import cancelled

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two looks."""

# Not only the time: a mount of a Kubernetes secret is swapped as a whole, with times that may be older.
_State = tuple[tuple[int, int, int] | None, ...]


class Watched:
    """One or more files that belong together. A version that cannot be read changes nothing.

    Args:
        what: what messages call them.
        paths: the files.
        read: reads them; called in a thread, except for the first time.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], Any]) -> None:
        self._what = what
        self._paths = paths
        self._read = read
        self._use: Callable[[Any], None] = lambda _: None
        self._state: _State = ()

    def first(self) -> Any:
        """Read the files for the first time.

        Raises:
            QInferError: they are wrong.
        """
        self._state = self._look()
        return self._read()

    def on_change(self, use: Callable[[Any], None]) -> None:
        """Give `use` what is read from now on."""
        self._use = use

    async def check(self) -> None:
        """Read the files if they changed since they were read last, and were wrong or right then."""
        state = await asyncio.to_thread(self._look)
        if state == self._state:
            return
        self._state = state
        try:
            self._use(await asyncio.to_thread(self._read))
        except QInferError as error:
            logger.error("%s changed and is NOT used, what was read before stays: %s", self._what, error)
        except Exception:  # the next version has to be looked at all the same
            logger.exception("%s changed and is NOT used, what was read before stays", self._what)
        else:
            logger.info("%s changed and was read again", self._what)

    def _look(self) -> _State:
        return tuple(map(_state, self._paths))


class Watch:
    """Looks at files every `INTERVAL` seconds, for as long as it is entered."""

    def __init__(self, watched: Iterable[Watched]) -> None:
        self._watched = tuple(watched)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        if self._watched:
            self._task = asyncio.create_task(self._run(), name="watch files")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await cancelled(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            for watched in self._watched:
                await watched.check()


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
