"""One process of a role under a supervisor, and how it says how far it is."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from qinfer.cli.serve.ports import free_port
from qinfer.embedded import Child
from qinfer.errors import SetupError
from qinfer.lifecycle import LOADED, NOTIFY_VARIABLE, READY

RoleName: TypeAlias = Literal["gateway", "worker", "kafka-score"]
Command: TypeAlias = "Callable[[int], Sequence[str]]"
"""Command line of a role that serves its metrics on the given port; -1 for none."""


class Notice:
    """A place where a process says that it has loaded, where it does, and that it is ready.

    Args:
        folder: where the socket is put; only its owner may enter it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{secrets.token_hex(4)}.sock"
        self._heard = {message: asyncio.Event() for message in (LOADED, READY)}
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self) -> None:
        """Listen."""
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.setblocking(False)
        receiver.bind(str(self.path))
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Receiver(self._heard), sock=receiver
        )

    async def wait(self, message: bytes = READY) -> None:
        """Wait until the process has said `READY`, or `LOADED`."""
        await self._heard[message].wait()

    def close(self) -> None:
        """Listen no more. Idempotent."""
        if self._transport is not None:
            self._transport.close()
            self.path.unlink(missing_ok=True)


class _Receiver(asyncio.DatagramProtocol):
    def __init__(self, heard: Mapping[bytes, asyncio.Event]) -> None:
        self._heard = heard

    def datagram_received(self, data: bytes, _: object) -> None:
        for line in data.split(b"\n"):
            if line in self._heard:
                self._heard[line].set()


class Role:
    """A gateway, a worker or a scorer of Kafka topics.

    Args:
        role: which of them.
        index: which one of its kind; a successor has its predecessor's.
        command: makes its command line.
        environment: its whole environment.
        metrics: whether it serves metrics.
        notice: where it says that it is ready; `start` waits for that, if it is given.
        startup_timeout: seconds that may take.
        on_death: called with the exit status whenever the process ended unasked.
    """

    def __init__(
        self,
        role: RoleName,
        index: int,
        command: Command,
        environment: Mapping[str, str],
        *,
        metrics: bool,
        notice: Notice | None = None,
        startup_timeout: float = 0.0,
        on_death: Callable[[int], None] | None = None,
    ) -> None:
        self.role = role
        self.index = index
        self.metrics_port: int | None = None
        self._command = command
        self._metrics = metrics
        self._notice = notice
        self._startup_timeout = startup_timeout
        told = {NOTIFY_VARIABLE: str(notice.path)} if notice is not None else {}
        self.child = Child(
            f"{role} {index}",
            self._command_line,
            environment={**environment, **told},
            ready=self._wait_ready if notice is not None else None,
            on_death=on_death,
        )

    async def start(self) -> None:
        """Start the process.

        Raises:
            SetupError: it cannot be run, ended, or was not ready in time.
        """
        await self.child.start()

    def _command_line(self) -> Sequence[str]:
        # If somebody takes the port before the process does, its next start gets another.
        self.metrics_port = free_port() if self._metrics else None
        return self._command(-1 if self.metrics_port is None else self.metrics_port)

    async def _wait_ready(self) -> None:
        assert self._notice is not None
        try:
            await asyncio.wait_for(self._notice.wait(), self._startup_timeout)
        except TimeoutError:
            raise SetupError(
                f"{self.child.name} was not ready within {self._startup_timeout:g} s (--startup-timeout)"
            ) from None
