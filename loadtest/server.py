"""A server under test: started in a folder of its own, and stopped again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from loadtest import processes
from loadtest.peers.base import Peer, Ports
from qinfer.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_START_SECONDS = 120.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.1


class Server:
    """One running server. A context manager: it is started on entry, stopped on exit.

    Args:
        peer: what to run; it must be prepared.
        cache: where peers are installed.
        folder: a folder for this server's model, log and requests; made if missing.
    """

    def __init__(self, peer: Peer, *, cache: Path, folder: Path) -> None:
        self.peer = peer
        self.folder = folder
        self.log = folder / "server.log"
        self.ports = _free_ports()
        folder.mkdir(parents=True)
        self.command = peer.command(cache, folder, self.ports)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command.arguments,
                env={**os.environ, **self.command.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this program, which stops the servers itself
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """Process id of the server's first process.

        Raises:
            Unavailable: the server is not running.
        """
        if self._process is None:
            raise Unavailable(f"{self.peer.name} is not running")
        return self._process.pid

    @property
    def infer_url(self) -> str:
        return self.ports.base + self.peer.infer_path

    def snapshot(self) -> processes.Snapshot:
        """What the server's processes have spent so far.

        Raises:
            Unavailable: the server is not running any more.
        """
        return processes.snapshot(self.pid, self.peer.role)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in reversed(processes.tree_pids(process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(_STOP_SECONDS)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while not self.peer.is_ready(self.ports.base):
            if self._process.poll() is not None:
                raise Unavailable(
                    f"{self.peer.name} ended with status {self._process.returncode} before it was ready; "
                    f"the end of {self.log}:\n{self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{self.peer.name} was not ready within {_START_SECONDS:.0f} s; "
                    f"the end of {self.log}:\n{self._log_tail()}"
                )
            time.sleep(_POLL_SECONDS)

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def _free_ports() -> Ports:
    """Three ports nobody listens on now. All are held open until chosen, so that they differ."""
    with ExitStack() as stack:
        found = []
        for _ in range(3):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            found.append(int(listener.getsockname()[1]))
    return Ports(http=found[0], grpc=found[1], metrics=found[2])
