from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from qinfer.errors import BackendUnavailable
from qinfer_workers.execution import Executor
from qinfer_workers.instance import Completion, InstanceThread
from tests.helpers.waiting import Mailbox, eventually
from tests.workers.support import Members, StubInstance, answer, config_of, double, error_of, request_of


def thread_of(
    run: Callable[[Any], Any] = double, done: Callable[[Completion], None] = lambda completion: None
) -> tuple[InstanceThread, StubInstance]:
    stub = StubInstance(run)
    return InstanceThread("stub_0", lambda: Executor(config_of(), stub), done), stub


def alive(name: str = "instance-stub_0") -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == name]


async def test_batches_run_in_the_instances_own_thread() -> None:
    threads: set[str] = set()
    done = Mailbox()
    thread, stub = thread_of(
        lambda batch: threads.add(threading.current_thread().name) or double(batch), done
    )
    assert not thread.idle
    await thread.start()
    assert thread.idle
    for number in (1, 2):
        batch = Members(config_of()).batch(request_of(number))
        thread.submit(batch)
        assert not thread.idle
        (completion,) = await done.take()
        assert thread.idle
        assert completion.batch is batch
        assert completion.ended_ns >= completion.started_ns
        assert answer(batch.members[0])[0][2].tolist() == [[2.0 * number] * 2]
    await thread.close(10)
    await thread.close(10)
    assert threads == {"instance-stub_0"}
    assert stub.closed
    await eventually(lambda: not alive())


@pytest.mark.parametrize("error", [BackendUnavailable("pip install it"), SystemExit(2), MemoryError()])
async def test_what_loading_raises_is_raised_by_start(error: BaseException) -> None:
    def load() -> Executor:
        raise error

    thread = InstanceThread("stub_0", load, lambda completion: None)
    with pytest.raises(type(error)):
        await thread.start()
    assert not thread.idle
    await thread.close(10)
    await eventually(lambda: not alive())


async def test_closing_waits_for_the_batch_in_hand() -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(batch: Any) -> Any:
        entered.set()
        assert leave.wait(20)
        return double(batch)

    done = Mailbox()
    thread, stub = thread_of(slow, done)
    await thread.start()
    thread.submit(Members(config_of()).batch(request_of(1)))
    await eventually(entered.is_set)
    closing = asyncio.create_task(thread.close(20))
    await asyncio.sleep(0)
    assert not stub.closed
    leave.set()
    await closing
    assert stub.closed
    assert len(done.items) == 1


async def test_closing_gives_up_on_a_batch_that_hangs() -> None:
    leave = threading.Event()
    thread, stub = thread_of(lambda batch: leave.wait(20) and double(batch))
    await thread.start()
    thread.submit(Members(config_of()).batch(request_of(1)))
    await thread.close(0.01)
    assert not stub.closed
    leave.set()
    await thread.close(20)
    assert stub.closed


async def test_a_start_given_up_ends_without_noise(caplog: pytest.LogCaptureFixture) -> None:
    leave = threading.Event()

    def load() -> Executor:
        assert leave.wait(20)
        return Executor(config_of(), stub)

    stub = StubInstance(double)
    thread = InstanceThread("stub_0", load, lambda completion: None)
    starting = asyncio.create_task(thread.start())
    await eventually(alive)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    leave.set()
    await thread.close(20)
    assert stub.closed
    assert not caplog.records


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_model_code_that_exits_ends_its_request_and_not_the_thread(error: BaseException) -> None:
    def run(batch: Any) -> Any:
        if batch.members[0].request.id == 1:
            raise error
        return double(batch)

    done = Mailbox()
    thread, _ = thread_of(run, done)
    await thread.start()
    for number in (1, 2):
        thread.submit(Members(config_of()).batch(request_of(number)))
        await eventually(lambda number=number: len(done.items) == number)
    first, second = (completion.batch.members[0] for completion in done.items)
    assert error_of(first)[0] == "model_failed"
    assert answer(second)
    await thread.close(20)


async def test_a_model_that_fails_to_close_is_closed() -> None:
    thread, stub = thread_of()

    def fail() -> None:
        raise SystemExit(1)

    stub.close = fail  # type: ignore[method-assign]
    await thread.start()
    await thread.close(20)
    assert thread._stopped.is_set()


def test_a_thread_outlives_its_loop_without_harm() -> None:
    leave = threading.Event()

    async def start() -> None:
        thread, _ = thread_of(lambda batch: leave.wait(20) and double(batch))
        await thread.start()
        thread.submit(Members(config_of()).batch(request_of(1)))
        thread._queue.put(None)

    asyncio.run(start())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "instance-stub_0"]
    leave.set()
    thread.join(20)
    assert not thread.is_alive()
