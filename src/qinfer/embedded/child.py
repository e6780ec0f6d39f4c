"""A child process that is started again when it dies, and stopped in good order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from qinfer.embedded.backoff import Backoff
from qinfer.embedded.guard import guarded
from qinfer.errors import SetupError

logger = logging.getLogger(__name__)

_KILL_TIMEOUT = 10.0


class ChildExited(SetupError):
    """A child ended before it was ready.

    Attributes:
        status: its exit status; negative for a signal.
    """

    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name} {describe(status)} before it was ready")
        self.status = status


def _append(path: Path) -> IO[bytes]:
    return path.open("ab")


def describe(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exited with status {status}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"


class Child:
    """One supervised process, which never outlives this one.

    It runs in a session of its own: Ctrl-C in a terminal reaches only the supervisor, which then stops its
    children in order.

    Args:
        name: for logs, for instance "gateway 0".
        command: makes the command line, anew for each start.
        environment: the child's whole environment; None to inherit.
        output: file that its standard output and error are appended to; None to inherit ours.
        pass_fds: file descriptors the child inherits.
        ready: waits until the process just started is ready, with a deadline of its own; raises `SetupError`.
        on_death: called with the exit status whenever a process ended unasked after it was ready.
        on_restart: called when the process is back after a death.
        backoff: delays between starts.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        *,
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
        pass_fds: Sequence[int] = (),
        ready: Callable[[], Awaitable[None]] | None = None,
        on_death: Callable[[int], None] | None = None,
        on_restart: Callable[[], None] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._command = command
        self._environment = environment
        self._output = output
        self._pass_fds = tuple(pass_fds)
        self._ready = ready
        self._on_death = on_death
        self._on_restart = on_restart
        self._backoff = backoff or Backoff()
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._died = asyncio.Event()
        self._last_status: int | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None while there is no process."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def last_status(self) -> int | None:
        """Exit status of the last process that ended unasked; negative for a signal."""
        return self._last_status

    async def start(self) -> None:
        """Start the process, wait until it is ready and supervise it from then on.

        Raises:
            ChildExited: it ended before it was ready.
            SetupError: it cannot be run or was not ready in time; it has been killed.
        """
        if self._supervision is not None:
            raise RuntimeError(f"{self.name} was started before")
        started = asyncio.get_running_loop().time()
        await self._spawn()
        self._supervision = asyncio.create_task(self._supervise(started), name=f"supervise {self.name}")
        self._supervision.add_done_callback(self._report)

    async def stop(self, timeout: float, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask the process to end, kill it after `timeout` seconds, and do not start it again. Idempotent.

        Args:
            timeout: seconds it may take.
            number: the signal that asks it.
        """
        asked = self._stopping.is_set()  # roles take a second signal as an order to be quick
        self._stopping.set()
        if self._supervision is None:
            return
        if not asked:
            self._signal(number)
        try:
            await asyncio.wait_for(asyncio.shield(self._supervision), timeout)
        except TimeoutError:
            logger.warning("%s did not stop within %.0f s and is killed", self.name, timeout)
            self.kill()
            await asyncio.wait_for(asyncio.shield(self._supervision), _KILL_TIMEOUT)

    def kill(self) -> None:
        """Kill the process and all it started at once; `stop` still has to be awaited."""
        self._stopping.set()
        self._kill_group()

    def restart(self) -> None:
        """Kill the process and all it started; it is started again as after any death."""
        self._kill_group()

    async def died(self) -> int:
        """Wait until a process ended unasked; returns its exit status. Restarts go on regardless."""
        await self._died.wait()
        assert self._last_status is not None
        return self._last_status

    async def _spawn(self) -> None:
        """Start a process and wait until it is ready."""
        try:
            command = guarded(list(self._command()))
            with ExitStack() as stack:
                output = stack.enter_context(_append(self._output)) if self._output is not None else None
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment,
                    pass_fds=self._pass_fds,
                    start_new_session=True,
                )
        except OSError as error:
            raise SetupError(f"{self.name} cannot be started: {error}") from None
        self._process = process
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        elif self._ready is not None:
            try:
                await self._wait_ready(process, self._ready)
            except BaseException:
                await self._discard(process)
                raise

    async def _wait_ready(
        self, process: asyncio.subprocess.Process, ready: Callable[[], Awaitable[None]]
    ) -> None:
        waits = [
            asyncio.ensure_future(ready()),
            asyncio.ensure_future(process.wait()),
            asyncio.ensure_future(self._stopping.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if process.returncode is not None and not self._stopping.is_set():
                raise ChildExited(self.name, process.returncode)
            if waits[0].done():
                waits[0].result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _discard(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def _supervise(self, started: float) -> None:
        loop = asyncio.get_running_loop()
        while self._process is not None:
            status = await self._process.wait()
            if self._stopping.is_set():
                return
            self._last_status = status
            self._died.set()
            logger.error("%s (pid %d) %s", self.name, self._process.pid, describe(status))
            if self._on_death is not None:
                self._on_death(status)
            if not await self._bring_back(loop.time() - started):
                return
            started = loop.time()

    async def _bring_back(self, uptime: float) -> bool:
        """Start the process until that works; False when the child is to be stopped instead."""
        while True:
            delay = self._backoff.next(uptime)
            logger.info("starting %s again in %.1f s", self.name, delay)
            if await self._stopped_within(delay):
                return False
            try:
                await self._spawn()
            except SetupError as error:
                logger.error("%s did not come back: %s", self.name, error)
                uptime = 0.0
                continue
            if not self._stopping.is_set():
                self.restarts += 1
                logger.warning("%s is back (pid %s)", self.name, self.pid)
                if self._on_restart is not None:
                    self._on_restart()
            return True

    def _report(self, supervision: asyncio.Task[None]) -> None:
        if not supervision.cancelled() and (error := supervision.exception()) is not None:
            logger.critical("%s is no longer supervised", self.name, exc_info=error)

    async def _stopped_within(self, delay: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), delay)
        except TimeoutError:
            return False
        return True

    def _kill_group(self) -> None:
        pid = self.pid
        if pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(number)
