"""The frames a worker has taken and not ended yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from qinfer_workers.batch import HeldFrame

if TYPE_CHECKING:
    from qinfer_workers.served import ServedVersion


class HeldFrames:
    """Keeps the broker told, well within the ack wait, that held frames are being worked on.

    Args:
        ended: called with each frame that is held no longer.
    """

    def __init__(self, ended: Callable[[HeldFrame], None] = lambda _: None) -> None:
        self._ended = ended
        self._frames: set[HeldFrame] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._released = asyncio.Event()

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, frame: HeldFrame) -> bool:
        return frame in self._frames

    def add(self, frame: HeldFrame) -> None:
        """A frame was taken."""
        self._frames.add(frame)
        self._idle.clear()

    def release(self, frame: HeldFrame) -> None:
        """A frame is about to be ended."""
        self._frames.remove(frame)
        self._ended(frame)
        self._released.set()
        if not self._frames:
            self._idle.set()

    async def idle(self, timeout: float) -> bool:
        """Wait until nothing is held; False when that takes more than `timeout` seconds."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def of(self, served: ServedVersion) -> list[HeldFrame]:
        """The frames that a version is to answer."""
        return [frame for frame in self._frames if frame.served is served]

    async def without(self, served: ServedVersion, timeout: float) -> bool:
        """Wait until nothing is held for a version; False when that takes more than `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.of(served):
                    self._released.clear()
                    await self._released.wait()
        except TimeoutError:
            return False
        return True

    def give_back(self) -> None:
        """Return all that is held to the queue."""
        for frame in self._frames:
            frame.delivery.nak()
            self._ended(frame)
        self._frames.clear()
        self._idle.set()

    async def keep_alive(self, ack_wait: float, clock: Callable[[], float]) -> None:
        """Give signs of life until cancelled; `clock` is the one of `HeldFrame.arrived`."""
        period = ack_wait / 3
        while True:
            await asyncio.sleep(period / 2)
            now = clock()
            for frame in self._frames:
                if now - frame.sign_of_life >= period:
                    frame.sign_of_life = now
                    frame.delivery.in_progress()
