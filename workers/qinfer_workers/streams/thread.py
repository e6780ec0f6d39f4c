"""The thread of an instance of a decoupled model."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue

from qinfer_workers.batch import Batch
from qinfer_workers.instance import BatchExecutor, Completion, InstanceThread
from qinfer_workers.streams.execution import StreamingExecutor


class _Wake:
    """In the queue for: look at the iterators again."""


_WAKE = _Wake()


class StreamingThread(InstanceThread):
    """Loads an instance of a decoupled model in a thread of its own, feeds it batches and advances iterators.

    A batch is done when its `execute` is; the instance is idle then, and takes the next, while responses to
    the one before are still made.
    """

    def __init__(
        self, name: str, load: Callable[[], StreamingExecutor], on_done: Callable[[Completion], None]
    ) -> None:
        super().__init__(name, load, on_done)
        self.begin: Callable[[StreamingThread, Batch], None] | None = None
        """Called on the event loop with each batch before it is executed."""
        self.open = 0
        """Requests whose responses are still made."""
        self._commands: SimpleQueue[Batch | _Wake | None] = SimpleQueue()
        self._queue = self._commands  # type: ignore[assignment] # of batches, for the base class
        self._woken = False

    @property
    def quiet(self) -> bool:
        return self.idle and not self.open

    @property
    def load(self) -> int:
        return self.open

    def submit(self, batch: Batch) -> None:
        if self.begin is not None:
            self.begin(self, batch)
        super().submit(batch)

    def wake(self) -> None:
        """Have the thread look at its iterators again. Any thread may call this."""
        if not self._woken:
            self._woken = True
            self._commands.put(_WAKE)

    def _work(self, executor: BatchExecutor) -> None:
        if not isinstance(executor, StreamingExecutor):  # its `load` says so
            raise TypeError(f"{type(executor).__name__} runs no decoupled model")
        executor.wake = self.wake
        more = False
        while True:
            try:
                command = self._commands.get(block=not more)
            except Empty:
                pass
            else:
                if command is None:
                    return
                if isinstance(command, Batch):
                    self._execute(executor, command)
                else:
                    self._woken = False
                # An idle thread must not keep the last batch's tensors alive.
                del command
            more = executor.step()
