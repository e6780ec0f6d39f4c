"""Tells the broker how far a queue's partitions are: soon after something changed, at once where frames wait.

Answers go first: what was published before a frame was ended is stored before its end is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

from qinfer.bus.kafka.connection import ANSWER_TIMEOUT, Connection
from qinfer.bus.kafka.sender import Sender
from qinfer.bus.kafka.share import Share
from qinfer.errors import QInferError
from qinfer.lifecycle import cancelled

logger = logging.getLogger(__name__)

_EVERY = 0.05  # seconds between two commits of the same queue
_PAUSE = 0.2  # after one that failed
_DELETE_EVERY = 10.0  # seconds between two deletions of what is done


class Commits:
    """The commits of one group member.

    Args:
        member: aiokafka's consumer.
        committed: called after each commit: frames may be free now.
    """

    def __init__(
        self, connection: Connection, sender: Sender, member: Any, *, committed: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._sender = sender
        self._member = member
        self._committed = committed
        self._changed: set[Share] = set()
        self._settled: set[Share] = set()  # committed since the last deletion
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self.still = asyncio.Lock()  # nothing is being committed while somebody has it
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._work(), name="kafka commits")]

    def soon(self, share: Share) -> None:
        """A partition's progress has changed."""
        self._changed.add(share)
        self._wake.set()
        if share.progress.wants_reservation:
            self._urgent.set()

    def reserve(self, shares: Iterable[Share]) -> None:
        """Frames of these partitions cannot be handed out before the next commit."""
        for share in shares:
            head = share.head()
            if head is not None:
                share.progress.approach(head.offset)
                self._changed.add(share)
                self._urgent.set()
                self._wake.set()

    async def flush(self, shares: Iterable[Share]) -> None:
        """Commit all, with exact borders: nothing more is handed out."""
        self._changed.update(share for share in shares if not share.lost)
        try:
            await asyncio.wait_for(self._commit(final=True), ANSWER_TIMEOUT)
        except (QInferError, self._connection.errors.KafkaError, TimeoutError) as error:
            logger.warning("what is done may be done again: %r", error)

    async def close(self, shares: Iterable[Share]) -> None:
        """Commit all for the last time, then stop."""
        await cancelled(*self._tasks)
        kept = list(shares)
        await self.flush(kept)
        await self._delete(kept)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        deleted = loop.time()
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._commit()
                if loop.time() - deleted > _DELETE_EVERY:
                    deleted = loop.time()
                    settled, self._settled = self._settled, set()
                    await self._delete(settled)
            except (QInferError, self._connection.errors.KafkaError) as error:
                logger.info("nothing can be committed at the moment: %r", error)
                self._wake.set()
                await asyncio.sleep(_PAUSE)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), _EVERY)
            self._urgent.clear()

    async def _commit(self, *, final: bool = False) -> None:
        async with self.still:
            changed, self._changed = self._changed, set()
            states = {share: share.progress.snapshot(final=final) for share in changed if not share.lost}
            if not states:
                return
            try:
                await self._sender.flush()
                offsets = {
                    self._connection.partition(share.partition): state for share, (state, _) in states.items()
                }
                await self._connection.ask(self._member.commit(offsets))
            except BaseException:
                self._changed |= states.keys()
                raise
            for share, (state, border) in states.items():
                share.committed = state
                share.progress.confirm(border)
                self._settled.add(share)
        self._committed()

    async def _delete(self, shares: Iterable[Share]) -> None:
        """Have the broker delete what is done."""
        done = {
            share: share.committed[0]
            for share in shares
            if not share.lost and share.committed[0] > share.deleted
        }
        if not done:
            return
        try:
            await self._connection.forget({share.partition: offset for share, offset in done.items()})
        except QInferError as error:
            logger.warning("frames that are done stay at the broker for now: %s", error)
            return
        for share, offset in done.items():
            share.deleted = offset
