"""The client without `await`."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from qinfer.client.base import AsyncClient, Inputs, ModelInfo, Options, Result
from qinfer.client.factory import ConnectOptions, connect
from qinfer.errors import Cancelled, SetupError
from qinfer.jobs.record import JobOptions, JobRecord

T = TypeVar("T")

_CLOSE_SECONDS = 30.0


class Client:
    """A client for programs without an event loop: it has one of its own, in a thread.

    Any number of threads may use one client at once; that is how several requests are on their way. It may be
    used where an event loop runs, in notebooks for instance, but holds that loop up as it waits.

    Args:
        url, options: as for `connect`.

    Raises:
        SetupError: as for `connect`.
    """

    def __init__(self, url: str, **options: Unpack[ConnectOptions]) -> None:
        self._client: AsyncClient = connect(url, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._changing = threading.Lock()
        self._closed = False
        self._process = os.getpid()

    def start(self) -> None:
        """Connect.

        Raises:
            Unavailable: nobody answers.
        """
        with self._changing:
            if self._loop is not None or self._closed:
                raise SetupError("this client was started before; expected a new one")
            self._loop = _new_loop()
            self._thread = threading.Thread(target=self._run, name="qinfer client", daemon=True)
            self._thread.start()
        try:
            self._wait(self._client.start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel what is in flight and disconnect. Idempotent."""
        with self._changing:
            if self._closed:
                return
            self._closed = True
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or self._process != os.getpid():
                return
            try:
                asyncio.run_coroutine_threadsafe(self._client.close(), loop).result(_CLOSE_SECONDS)
            finally:
                loop.call_soon_threadsafe(loop.stop)
                thread.join(_CLOSE_SECONDS)

    def infer(self, model: str, inputs: Inputs, options: Options = Options()) -> Result:  # noqa: B008
        """Ask a model for one answer; see `AsyncClient.infer`."""
        return self._wait(self._client.infer(model, inputs, options))

    def stream(self, model: str, inputs: Inputs, options: Options = Options()) -> Iterator[Result]:  # noqa: B008
        """Ask a model for any number of responses; see `AsyncClient.stream`."""
        responses = self._client.stream(model, inputs, options)
        try:
            while (result := self._wait(_next(responses))) is not None:
                yield result
        finally:
            if not self._closed:
                self._wait(_close(responses))

    def submit(
        self,
        model: str,
        inputs: Inputs,
        options: Options = Options(),  # noqa: B008
        job: JobOptions = JobOptions(),  # noqa: B008
    ) -> JobRecord:
        """Have a model asked later, durably; see `AsyncClient.submit`."""
        return self._wait(self._client.submit(model, inputs, options, job))

    def job(self, job_id: str, *, wait: float = 0.0) -> JobRecord:
        """How a job is doing; see `AsyncClient.job`."""
        return self._wait(self._client.job(job_id, wait=wait))

    def result(self, job_id: str, *, timeout: float | None = None) -> Result:
        """A job's answer, once it has ended; see `AsyncClient.result`."""
        return self._wait(self._client.result(job_id, timeout=timeout))

    def cancel(self, job_id: str) -> JobRecord:
        """Have a job not run, or stopped; see `AsyncClient.cancel`."""
        return self._wait(self._client.cancel(job_id))

    def ready(self) -> bool:
        """Whether requests for every known model can be answered."""
        return self._wait(self._client.ready())

    def models(self) -> list[ModelInfo]:
        """All known models."""
        return self._wait(self._client.models())

    def model(self, name: str, version: str = "") -> ModelInfo:
        """One model; see `AsyncClient.model`."""
        return self._wait(self._client.model(name, version))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the loop, and wait for it; it has a deadline of its own."""
        try:
            loop = self._usable()
        except BaseException:
            work.close()
            raise
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:  # whoever interrupts the caller cancels the request; else it is over anyway
            future.cancel()
            raise

    def _usable(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise Cancelled("this client was closed")
        if self._loop is None:
            raise SetupError("this client is not connected; expected `with`, or start() before")
        if self._process != os.getpid():
            raise SetupError(
                "this client was started before the process was forked; expected one started after"
            )
        if threading.current_thread() is self._thread:
            raise SetupError("this client was called on its own event loop, which would wait for itself")
        return self._loop

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            _finish(loop)


def _new_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """End what is left on a loop that has stopped: whoever waits for it hears that it was cancelled."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def _next(responses: AsyncIterator[Result]) -> Result | None:
    return await anext(responses, None)


async def _close(responses: Any) -> None:
    await responses.aclose()
