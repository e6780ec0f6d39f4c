"""How much waits behind what a worker has taken, as far as it can know."""

from __future__ import annotations

from collections.abc import Callable

_AVERAGE = 0.1  # weight of the latest frame in the average size of frames
_SILENCE = 1.0  # seconds after which a line that was asked for frames, and has sent none, is empty


class Backlog:
    """Requests in a model's queue at the broker.

    Each frame comes with the number of frames behind it; their size is taken to be that of recent ones. Other
    workers take frames, too, of which nothing is heard here: a line that has none for who asks is empty.

    Args:
        asked: whether this worker has credit for frames of a version that have not come, or cannot have any.
    """

    __slots__ = ("_asked", "_frame_size", "_lines")

    def __init__(self, asked: Callable[[str], bool]) -> None:
        self._asked = asked
        self._lines: dict[str, tuple[int, float]] = {}  # by wanted version: each has a line of its own
        self._frame_size = 1.0

    def arrived(self, version: str, requests: int, pending: int, now: float) -> None:
        """A frame came at `now`, in seconds of any steady clock, with so many frames behind it."""
        self._lines[version] = pending, now
        self._frame_size += _AVERAGE * (requests - self._frame_size)

    def requests(self, now: float) -> int:
        """How many wait."""
        frames = 0
        for version, (pending, heard) in self._lines.items():
            if pending and (now - heard <= _SILENCE or not self._asked(version)):
                frames += pending
        return int(frames * self._frame_size)
