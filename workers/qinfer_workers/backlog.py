"""How much waits behind what a worker has taken, as far as it can know."""

from __future__ import annotations

_AVERAGE = 0.1  # weight of the latest frame in the average size of frames


class Backlog:
    """Requests in a model's queue at the broker.

    Each frame comes with the number of frames behind it; their size is taken to be that of recent ones.
    """

    __slots__ = ("_frame_size", "_pending")

    def __init__(self) -> None:
        self._pending: dict[str, int] = {}  # by wanted version: each has a line of its own
        self._frame_size = 1.0

    def arrived(self, version: str, requests: int, pending: int) -> None:
        """A frame came, with so many frames behind it."""
        self._pending[version] = pending
        self._frame_size += _AVERAGE * (requests - self._frame_size)

    @property
    def requests(self) -> int:
        return int(sum(self._pending.values()) * self._frame_size)
