"""Processes that are killed, stopped and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qinfer.embedded.child import describe
from qinfer.embedded.guard import guarded
from qinfer.errors import Unavailable

_READY_SECONDS = 30.0
_END_SECONDS = 40.0
_POLL = 0.02
_RESPAWN_PAUSE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A process that ended without being told to; times are of `time.monotonic`."""

    role: str
    at: float
    how: str


class Role:
    """One process of the system, in a session of its own; it never outlives this one.

    One that ends without being told to is started again, as an operator's supervisor would, and remembered.

    Args:
        name: for reports and the log's name.
        command: the command line.
        environment: all of it.
        log: file that its standard output and error are appended to.
        ready: whether a process, by its id, is ready; given what it has written since its start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        ready: Callable[[int, str], Awaitable[bool]],
    ) -> None:
        self.name = name
        self.deaths: list[Death] = []
        self._command = list(command)
        self._environment = dict(environment)
        self._log = log
        self._ready = ready
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._log_start = 0
        self._told = False

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process; `ready` tells when it can be used."""
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *guarded(self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self._told = False
        self._watching = asyncio.create_task(self._watch(self._process))

    async def ready(self) -> None:
        """Wait until the process is ready.

        Raises:
            Unavailable: it was not in time.
        """
        give_up = time.monotonic() + _READY_SECONDS
        while not (self.alive and self._process is not None and await self._is_ready(self._process.pid)):
            if time.monotonic() > give_up:
                raise Unavailable(f"{self.name} was not ready within {_READY_SECONDS:.0f} s:\n{self.tail()}")
            await asyncio.sleep(_POLL)

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and wait for the end.

        Raises:
            Unavailable: it did not end in time; it has been killed.
        """
        await self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def tail(self) -> str:
        """The last it has written."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    async def _is_ready(self, pid: int) -> bool:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            written = log.read().decode(errors="replace")
        return await self._ready(pid, written)

    async def _end(self, number: signal.Signals) -> None:
        self._told = True
        process = self._process
        if process is None:
            return
        self._signal(number)
        try:
            await asyncio.wait_for(process.wait(), _END_SECONDS)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await process.wait()
            raise Unavailable(f"{self.name} did not end on {number.name}:\n{self.tail()}") from None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        if self._told:
            return
        self.deaths.append(Death(role=self.name, at=time.monotonic(), how=describe(status)))
        await asyncio.sleep(_RESPAWN_PAUSE)
        if not self._told:
            await self.start()


async def listens(pid: int, ports: Sequence[int]) -> bool:
    """Whether a process itself listens on all the ports, which others may share with it."""
    return await asyncio.to_thread(_listening, pid, frozenset(ports))


def _listening(pid: int, ports: frozenset[int]) -> bool:
    inodes = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                target = str(handle.readlink())
                if target.startswith("socket:["):
                    inodes.add(target[len("socket:[") : -1])
    found = set()
    lines = [
        line for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    for line in lines:  # grpcio listens on IPv4 addresses with IPv6 sockets
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:  # TCP_LISTEN
            found.add(int(fields[1].rpartition(":")[2], 16))
    return ports <= found
