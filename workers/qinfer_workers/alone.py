"""Runs redelivered requests with nothing else on the model's instances (see `isolation`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager

from qinfer_workers.batch import Batch, Member
from qinfer_workers.held import HeldFrames
from qinfer_workers.served import ServedVersion

logger = logging.getLogger(__name__)

_HOLD_TIMEOUT = 30.0  # seconds that redelivered requests wait for all instances


class Alone:
    """One model's instances, for one batch.

    Args:
        model: its name, for messages.
        loaded: its versions; only read.
        held: the frames this worker holds.
    """

    def __init__(self, model: str, loaded: Collection[ServedVersion], held: HeldFrames) -> None:
        self._model = model
        self._loaded = loaded
        self._held = held
        self._running: dict[Batch, asyncio.Event] = {}

    @asynccontextmanager
    async def hold(self, members: Iterable[Member]) -> AsyncIterator[None]:
        """Nothing runs on the model's instances within, or nobody waits for the members any more."""

        def wanted() -> bool:
            return not all(member.is_cancelled() for member in members)

        batchers = [version.batches for version in self._loaded]
        try:
            for batcher in batchers:
                await batcher.hold(_HOLD_TIMEOUT, wanted)
            yield
        finally:
            for batcher in batchers:
                batcher.release()

    async def run(self, served: ServedVersion, members: Sequence[Member]) -> None:
        """Run members on one of the instances, within `hold`; returns when they are answered."""
        if not any(member.frame in self._held for member in members):
            return  # given back when the version had to leave
        batch = Batch(members, "isolated", batched=served.config.max_batch_size > 0)
        done = self._running[batch] = asyncio.Event()
        next(instance for instance in served.instances if instance.idle).submit(batch)
        while not done.is_set():
            try:
                async with asyncio.timeout(_HOLD_TIMEOUT):
                    await done.wait()
            except TimeoutError:
                if batch.is_cancelled():  # an instance that hangs must not hold up all that comes again
                    logger.warning("model %s: a redelivered request does not end", self._model)
                    return

    def finished(self, batch: Batch) -> None:
        """A batch was answered."""
        if batch.reason == "isolated":
            self._running.pop(batch).set()
