"""Ports: free ones found, wanted ones kept."""

from __future__ import annotations

import socket
from types import TracebackType

from qinfer.errors import SetupError

LOOPBACK = "127.0.0.1"


class Reservation:
    """Keeps a port for child processes that listen on it with SO_REUSEPORT.

    The socket is bound but never listens, so it gets no connections; but as long as it is there, nobody else
    gets the port, not even while a child that died is started again.

    Args:
        name: what the port is for, as the option is called, for messages.
        host: address to listen on.
        port: 0 for any free one.

    Raises:
        SetupError: the address is not one of this host, or the port is in use.
    """

    def __init__(self, name: str, host: str, port: int) -> None:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise SetupError(f"--host {host}: {error.strerror or error}") from None
        # First without sharing: a port that another server shares with its own children is taken for us.
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind(name, probe, address)
            self.port: int = probe.getsockname()[1]
        self._socket = socket.socket(family, kind, protocol)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _bind(name, self._socket, (address[0], self.port, *address[2:]))
        except SetupError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Give the port up. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _bind(name: str, listener: socket.socket, address: tuple[object, ...]) -> None:
    try:
        listener.bind(address)
    except OSError as error:
        raise SetupError(
            f"{name} {address[1]} on {address[0]}: {error.strerror}; "
            f"choose another with {name}, 0 for any free one"
        ) from None
