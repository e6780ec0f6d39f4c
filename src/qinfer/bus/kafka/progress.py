"""How far the frames of one partition are done, in a form that the next owner can go on from.

Kafka keeps one number for a group and partition, the offset before which all is done, and a short text
beside it. Frames are done in any order, though, and whoever takes over has to know which ones were out at a
worker that died: one of them may have killed it. So the text tells which later frames are done already, how
often others were delivered, and up to where frames may have been delivered at all: that border is committed
*before* a frame behind it is handed out, some frames ahead, so that it costs no round trip a frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_FORMAT = "1"
_MAX_TEXT = 3500  # a broker takes 4096 bytes unless it is told otherwise
_STATE = re.compile(r"1;[0-9a-f]+;[0-9a-f]+;[0-9a-f]+;[0-9a-f+,]*;[0-9a-f:,]*")
_MAX_ENTRIES = _MAX_TEXT // 4
_LEAST_AHEAD = 8

State = tuple[int, str]
"""An offset and the text beside it, as they are committed."""


class Progress:
    """What is done of one partition.

    Attributes:
        done: everything before this offset is done.
        reserved: the border that is committed: frames behind it must not be handed out yet.
    """

    def __init__(self, state: State, *, start: int = 0) -> None:
        """Go on from what the last owner committed.

        Args:
            state: what is committed; offset -1 for nothing.
            start: the first offset there is.
        """
        offset, text = state
        self.done = max(offset, start)
        self._inherited = self.done
        self._ended: set[int] = set()
        self._attempts: dict[int, int] = {}
        self._deliveries = 0
        self._highest = self.done  # behind all that was handed out
        if offset >= 0 and _STATE.fullmatch(text):
            self._read(offset, text)
        self._inherited = max(self._inherited, self.done)
        self.reserved = self._inherited
        self._since = 0  # frames handed out since the last commit
        self._advance()

    def is_done(self, offset: int) -> bool:
        """Whether a frame needs not be delivered (any more)."""
        return offset < self.done or offset in self._ended

    def handed_out(self, offset: int) -> int:
        """A frame is delivered; returns how often it was, this time included."""
        attempt = self._count(offset) + 1
        self._attempts[offset] = attempt
        self._highest = max(self._highest, offset + 1)
        self._since += 1
        self._deliveries += 1
        return attempt

    def end(self, offset: int) -> None:
        """A frame is done."""
        if offset >= self.done:
            self._ended.add(offset)
            self._advance()

    def skip(self, first: int, last: int) -> None:
        """There are no frames with these offsets, `last` not included."""
        if first <= self.done < last:
            self.done = last
            self._ended = {offset for offset in self._ended if offset >= last}
        else:
            self._ended.update(range(max(first, self.done), last))
        self._advance()

    def approach(self, offset: int) -> None:
        """This is the next frame in turn: what lies before it is out or done."""
        self._highest = max(self._highest, offset)

    @property
    def ended_ahead(self) -> int:
        """Frames done although one before them is not."""
        return len(self._ended)

    @property
    def wants_reservation(self) -> bool:
        """Whether the border is so near that it should be moved."""
        return self.reserved - self._highest < _LEAST_AHEAD // 2

    def snapshot(self, *, final: bool = False) -> tuple[State, int]:
        """What to commit now, and the border it sets.

        Args:
            final: nothing more is handed out, so that the border can be exact.
        """
        ahead = 0 if final else max(_LEAST_AHEAD, 2 * self._since)
        self._since = 0
        border = max(self._highest + ahead, self._inherited)
        if not final:
            border = max(border, self.reserved)
        return (self.done, self._write(border)), border

    def confirm(self, border: int) -> None:
        """A snapshot is committed."""
        self.reserved = border

    def _count(self, offset: int) -> int:
        known = self._attempts.get(offset)
        if known is not None:
            return known
        return 1 if offset < self._inherited else 0

    def _advance(self) -> None:
        while self.done in self._ended:
            self._ended.remove(self.done)
            self._attempts.pop(self.done, None)
            self.done += 1

    def _write(self, border: int) -> str:
        highest = max(self._highest, self.done)
        head = f"{_FORMAT};{border - self.done:x};{highest - self.done:x};{self._deliveries:x}"
        ranges = [f"{first - self.done:x}+{count:x}" for first, count in _ranges(self._ended)[:_MAX_ENTRIES]]
        # One delivery is what the border says of every frame before it.
        counts = [
            f"{offset - self.done:x}:{count:x}"
            for offset, count in sorted(self._attempts.items())
            if count > 1 and offset not in self._ended
        ][:_MAX_ENTRIES]
        while True:
            text = f"{head};{','.join(ranges)};{','.join(counts)}"
            if len(text) <= _MAX_TEXT:
                return text
            # What is not told is done again, or counted less: neither loses anything.
            (ranges if ranges else counts).pop()

    def _read(self, base: int, text: str) -> None:
        _, border, highest, deliveries, ranges, counts = text.split(";")
        self._inherited = base + int(border, 16)
        self._highest = max(self._highest, base + int(highest, 16))
        self._deliveries = int(deliveries, 16)
        for entry in filter(None, ranges.split(",")):
            first, count = (int(part, 16) for part in entry.split("+"))
            self._ended.update(range(base + first, base + first + count))
        for entry in filter(None, counts.split(",")):
            offset, count = (int(part, 16) for part in entry.split(":"))
            self._attempts[base + offset] = count
        self._ended = {offset for offset in self._ended if offset >= self.done}


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a partition is, by what is committed for it.

    Attributes:
        done_before: all frames before this offset are done.
        done: frames done behind it.
        highest: the offset before which every frame has been delivered.
        deliveries: so far, second ones included.
    """

    done_before: int
    done: int
    highest: int
    deliveries: int


def extent(state: State, *, start: int) -> Extent:
    """Read what is committed for a partition whose first frame is at `start`."""
    offset, text = state
    if offset < 0 or not _STATE.fullmatch(text):
        return Extent(max(offset, start), 0, max(offset, start), 0)
    _, _, highest, deliveries, ranges, _ = text.split(";")
    ahead = sum(int(entry.split("+")[1], 16) for entry in ranges.split(",") if entry)
    return Extent(offset, ahead, offset + int(highest, 16), int(deliveries, 16))


def _ranges(offsets: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for offset in sorted(offsets):
        if found and found[-1][0] + found[-1][1] == offset:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((offset, 1))
    return found
