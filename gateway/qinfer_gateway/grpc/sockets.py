"""The sockets of a gRPC server, which grpcio keeps to itself.

grpcio can end a server, but not let its callers go first: ending it cancels RPCs whose callers have not read
the GOAWAY yet. So a server that is to be followed by another stops listening, by shutting down the sockets
themselves, and answers on until its connections, whose age it bounds, are gone.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_DESCRIPTORS = Path("/dev/fd")  # of this process, on Linux and the BSDs
_INTERNET = (socket.AF_INET, socket.AF_INET6)


def stop_listening(port: int) -> int:
    """Have the kernel refuse, or send to other processes, new connections to a port this process listens on.

    Returns:
        How many sockets were listening.
    """
    stopped = 0
    for one in _sockets(port):
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            one.shutdown(socket.SHUT_RDWR)
            stopped += 1
    return stopped


def connections(port: int) -> int:
    """How many connections to a port of this process are open."""
    return sum(_connected(one) for one in _sockets(port))


def _connected(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError:
        return False
    return True


def _sockets(port: int) -> Iterator[socket.socket]:
    """The TCP sockets of this process with that local port, one after the other."""
    try:
        names = [path.name for path in _DESCRIPTORS.iterdir()]
    except OSError as error:
        logger.warning("open connections are not known: %s: %s", _DESCRIPTORS, error.strerror)
        return
    for name in names:
        with _duplicate(int(name)) as one:
            if one is not None and one.family in _INTERNET and one.getsockname()[1] == port:
                yield one


@contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket | None]:
    """A second handle on a socket, closed at the end; None for what is none, or is gone."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            yield None
            return
        one = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        yield None
        return
    with one:
        yield one
