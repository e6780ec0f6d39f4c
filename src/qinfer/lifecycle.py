"""Signals, what a process tells its supervisor, and its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

logger = logging.getLogger(__name__)

NOTIFY_VARIABLE = "NOTIFY_SOCKET"
"""Environment variable that names the datagram socket of whoever wants to know how a process is doing."""

READY = b"READY=1"
"""What a process sends there when it is ready."""

LOADED = b"X_QINFER_LOADED=1"
"""What a scorer sends there before: topics, models and formats are as they should be."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TERMINAL = "/dev/tty"
_AGAIN = 0.1  # seconds between two cancellations of a task


class Stopped(asyncio.Event):
    """Set when the process has been told to stop.

    Attributes:
        handing_over: by SIGTERM, as service managers do it: another process may be taking its place, and
            callers can be given time to find it. SIGINT is the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.handing_over = False


@asynccontextmanager
async def until_stopped() -> AsyncIterator[Stopped]:
    """An event that the first SIGINT or SIGTERM sets; the second ends the process at once.

    The handlers found before are put back at the end.
    """
    loop = asyncio.get_running_loop()
    stopped = Stopped()

    def stop(number: signal.Signals) -> None:
        if stopped.is_set():
            logger.warning("%s again: not waiting any longer", number.name)
            os._exit(128 + number)
        stopped.handing_over = number is signal.SIGTERM
        stopped.set()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


@asynccontextmanager
async def on_hangup(again: Callable[[], object], gone: Callable[[], object]) -> AsyncIterator[None]:
    """Handle SIGHUP, which means two things.

    Where it was ignored, as under `nohup`, it stays so.

    Args:
        again: called when somebody sent it, as `kill -HUP` does: look again at what is configured.
        gone: called when the process's terminal was closed.
    """
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        yield
        return
    loop = asyncio.get_running_loop()
    had_terminal = _has_terminal()

    def hang_up() -> None:
        if had_terminal and not _has_terminal():
            gone()
        else:
            again()

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)


async def cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended, whatever came of them.

    Once is not enough: `asyncio.wait_for` of Python 3.11, in client libraries too, swallows a cancellation
    that comes in the moment in which what it waits for is there
    (https://github.com/python/cpython/issues/86296).
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)


def notify(message: bytes) -> None:
    """Tell the service manager that started this process, if it wants to know (systemd's `sd_notify`).

    https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
    """
    address = os.environ.get(NOTIFY_VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(message, address)
        except OSError as error:
            logger.info("nobody listens at %s: %s", NOTIFY_VARIABLE, error.strerror)


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal that is still there."""
    try:
        os.close(os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
