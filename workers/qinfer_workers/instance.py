"""An instance's thread: model code runs here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter_ns
from typing import Protocol

from qinfer_workers.batch import Batch
from qinfer_workers.execution import Timing

logger = logging.getLogger(__name__)


class BatchExecutor(Protocol):
    """What an instance's thread runs batches with; called from that thread only."""

    def execute(self, batch: Batch) -> Timing: ...

    def close(self) -> None: ...


class Completion:
    """A batch an instance is done with; times of `time.perf_counter_ns`."""

    __slots__ = ("batch", "ended_ns", "instance", "started_ns", "timing")

    def __init__(
        self, instance: InstanceThread, batch: Batch, timing: Timing, started_ns: int, ended_ns: int
    ) -> None:
        self.instance = instance
        self.batch = batch
        self.timing = timing
        self.started_ns = started_ns
        self.ended_ns = ended_ns


class InstanceThread:
    """Loads an instance in a thread of its own and feeds it batches, one at a time.

    `on_done` is called on the event loop with each completion. The queue to the thread never holds more than
    one batch: the batcher submits only to idle instances.
    """

    def __init__(
        self, name: str, load: Callable[[], BatchExecutor], on_done: Callable[[Completion], None]
    ) -> None:
        self.name = name
        self.idle = False
        self.batch: Batch | None = None
        """The batch it runs, if any."""
        self._loading = load
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"instance-{name}", daemon=True)

    @property
    def quiet(self) -> bool:
        """Whether nothing runs here at all."""
        return self.idle

    @property
    def load(self) -> int:
        """Requests it works on beside the batch it may be given."""
        return 0

    async def start(self) -> None:
        """Load the instance; raises what its backend raised."""
        self._thread.start()
        await self._loaded
        self.idle = True

    def submit(self, batch: Batch) -> None:
        """Execute a batch. Only to be called while `idle`."""
        self.idle = False
        self.batch = batch
        self._queue.put(batch)

    async def close(self, timeout: float) -> None:
        """Free the instance once its batch is done; gives up after `timeout` seconds. Idempotent."""
        self._queue.put(None)
        try:
            await asyncio.wait_for(self._stopped.wait(), timeout)
        except TimeoutError:
            logger.warning("instance %s did not finish its batch within %.1f s", self.name, timeout)

    def _run(self) -> None:
        try:
            executor = self._loading()
        except BaseException as error:  # noqa: BLE001 (handed to whoever awaits start())
            self._tell(self._refuse, error)
            self._tell(self._stopped.set)
            return
        self._tell(self._accept)
        self._work(executor)
        try:
            executor.close()
        except BaseException:  # model code may even exit; whoever awaits close() must hear of the end
            logger.exception("instance %s failed to close", self.name)
        self._tell(self._stopped.set)

    def _work(self, executor: BatchExecutor) -> None:
        """Run batches until there is no more."""
        while (batch := self._queue.get()) is not None:
            self._execute(executor, batch)
            # An idle thread must not keep the last batch's tensors alive.
            del batch

    def _execute(self, executor: BatchExecutor, batch: Batch) -> None:
        started = perf_counter_ns()
        timing = executor.execute(batch)
        self._tell(self._done, Completion(self, batch, timing, started, perf_counter_ns()))

    def _accept(self) -> None:
        if not self._loaded.done():  # whoever awaited start() may have been cancelled
            self._loaded.set_result(None)

    def _refuse(self, error: BaseException) -> None:
        if not self._loaded.done():
            self._loaded.set_exception(error)

    def _done(self, completion: Completion) -> None:
        self.idle = True
        self.batch = None
        self._on_done(completion)

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop has been closed: nobody listens any more
            logger.debug("instance %s outlived its event loop", self.name)
