"""Ports that are kept."""

from __future__ import annotations

import socket

import pytest

from qinfer.cli.security import is_loopback
from qinfer.cli.serve.ports import Reservation
from qinfer.errors import SetupError


def listener(port: int, *, shared: bool) -> socket.socket:
    found = socket.socket()
    try:
        if shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(("127.0.0.1", port))
        found.listen()
    except OSError:
        found.close()
        raise
    return found


def test_children_listen_on_a_reserved_port_and_get_all_connections() -> None:
    with Reservation("--http-port", "127.0.0.1", 0) as reserved:
        for _ in range(2):  # as when a child dies and another takes its place
            with listener(reserved.port, shared=True) as child:
                for _ in range(20):
                    with socket.create_connection(("127.0.0.1", reserved.port), timeout=5):
                        child.settimeout(5)
                        child.accept()[0].close()


def test_nobody_else_gets_a_reserved_port() -> None:
    with Reservation("--http-port", "127.0.0.1", 0) as reserved:
        with pytest.raises(OSError, match="in use"):
            listener(reserved.port, shared=False)
        with pytest.raises(
            SetupError, match=rf"--http-port {reserved.port} on 127\.0\.0\.1: Address already in use"
        ):
            Reservation("--http-port", "127.0.0.1", reserved.port)
    with listener(reserved.port, shared=False):
        pass


@pytest.mark.parametrize("shared", [True, False])
def test_a_port_of_another_server_is_taken_even_if_it_shares(shared: bool) -> None:
    with listener(0, shared=shared) as other, pytest.raises(SetupError, match="Address already in use"):
        Reservation("--grpc-port", "127.0.0.1", other.getsockname()[1])


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(SetupError, match="--host no-such-host"):
        Reservation("--http-port", "no-such-host.invalid", 0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("0.0.0.0", False), ("192.0.2.1", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
