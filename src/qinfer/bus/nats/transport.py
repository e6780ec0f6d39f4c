"""The socket under the NATS connection: one that tells signs of life, and that can always be given up.

nats-py closes a connection in order, which on a link whose other end no longer reads waits for ever; and it
leaves the sockets of failed attempts to the garbage collector. This transport drops both at once.
"""

from __future__ import annotations

from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport


class Link(TcpTransport):
    """A TCP connection, encrypted or not.

    Attributes:
        received: bytes read so far, over all connections.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.received = 0

    def __bool__(self) -> bool:
        return True  # also before it is connected, or nats-py would replace it by one of its own

    @property
    def unsent(self) -> int:
        """Bytes that wait in this process because the other end takes no more."""
        return 0 if self._io_writer is None else self._io_writer.transport.get_write_buffer_size()

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        self.close()  # what an attempt that failed has left
        await super().connect(uri, buffer_size, connect_timeout)

    async def read(self, buffer_size: int) -> bytes:
        data: bytes = await super().read(buffer_size)
        self.received += len(data)
        return data

    def close(self) -> None:
        for writer in (self._io_writer, self._bare_io_writer):
            if writer is not None:
                writer.transport.abort()


class Pulse:
    """Tells when a link has been silent for too long, from how it looks every now and then.

    What counts are looks, not time: a process that was stopped itself must not take that for the silence of
    the other. A sign of life is whatever comes in, be it a part of a large message, and whatever leaves this
    process after it had to wait: a link that is merely slow is not given up.

    Args:
        looks: how many of them in a row without a sign of life are too many.
    """

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._silent = 0
        self._received = 0
        self._unsent = 0

    def reset(self) -> None:
        """The link is a new one."""
        self._silent = 0

    def lost(self, link: Link) -> bool:
        """Look at the link; True when it counts as lost."""
        received, unsent = link.received, link.unsent
        alive = received != self._received or unsent < self._unsent
        self._received, self._unsent = received, unsent
        self._silent = 0 if alive else self._silent + 1
        return self._silent > self._looks
