from __future__ import annotations

import asyncio
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qinfer.lifecycle import NOTIFY_VARIABLE, READY, cancelled, notify, until_stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_sets_the_event_and_the_handler_before_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    async with until_stopped() as stopped:
        assert not stopped.is_set()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stopped.wait(), 20)
        assert stopped.handing_over == (number is signal.SIGTERM)
    assert signal.getsignal(number) is before


async def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="inside"):
        async with until_stopped():
            raise ValueError("inside")
    assert signal.getsignal(signal.SIGTERM) is before


PROGRAM = """
import asyncio
from qinfer.lifecycle import until_stopped

async def main():
    async with until_stopped() as stopped:
        print("ready", flush=True)
        await stopped.wait()
        print("draining", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_second_signal_ends_the_process_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "draining\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM
        finally:
            process.kill()


HANGING_UP = """
import asyncio, fcntl, os, signal, sys, termios
from qinfer.lifecycle import on_hangup

if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if "terminal" in sys.argv:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)

async def main():
    told = asyncio.Queue()
    async with on_hangup(lambda: told.put_nowait("again"), lambda: told.put_nowait("gone")):
        os.write(1, b"ready\\n")
        while True:
            os.write(1, (await asyncio.wait_for(told.get(), 20) + "\\n").encode())

asyncio.run(main())
"""


@contextmanager
def hanging_up(*arguments: str, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own that tells what SIGHUP means to it, and is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING_UP, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_sighup_without_a_terminal_is_a_request() -> None:
    with hanging_up() as process:
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            assert next_line(process) == "again"


def test_sighup_of_a_terminal_that_is_closed_is_the_end() -> None:
    master, slave = pty.openpty()
    with hanging_up("terminal", stdin=slave) as process:
        os.close(slave)
        process.send_signal(signal.SIGHUP)
        assert next_line(process) == "again", "its terminal is there"
        os.close(master)
        assert next_line(process) == "gone"


def test_under_nohup_sighup_stays_ignored() -> None:
    with hanging_up("nohup") as process:
        process.send_signal(signal.SIGHUP)
        with Path(f"/proc/{process.pid}/status").open() as status:
            ignored = next(int(line.split()[1], 16) for line in status if line.startswith("SigIgn"))
        assert ignored & (1 << (signal.SIGHUP - 1))


def test_a_process_tells_whoever_wants_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv(NOTIFY_VARIABLE, str(tmp_path / "notify"))
        notify(READY)
        assert manager.recv(100) == b"READY=1"
    notify(READY)  # nobody listens any more
    monkeypatch.delenv(NOTIFY_VARIABLE)
    notify(READY)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind(f"\0qinfer-test-{os.getpid()}")
        monkeypatch.setenv(NOTIFY_VARIABLE, f"@qinfer-test-{os.getpid()}")
        notify(READY)
        assert manager.recv(100) == b"READY=1"


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.ensure_future(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await cancelled(task)
    assert (task.done(), swallowed) == (True, 3)


async def test_what_became_of_cancelled_tasks_does_not_matter() -> None:
    async def fails() -> None:
        raise ValueError

    task = asyncio.ensure_future(fails())
    await cancelled(task, task)
    await cancelled()
    assert task.done()
