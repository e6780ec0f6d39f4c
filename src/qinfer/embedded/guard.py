"""Run a command that does not outlive its parent, not even when the parent is killed with SIGKILL.

    python -m qinfer.embedded.guard PARENT_PID COMMAND [ARGUMENT...]

On Linux the guard asks the kernel for a signal at its parent's death and becomes the command (the request
survives `exec`, so the process id stays the same). Elsewhere it stays as a process between the two, watches
the parent and passes signals on. The kernel watches the *thread* that started the guard, so that has to be
one that lives as long as its process: the event loop's.
"""

# Only the standard library: the guard is started as a bare file, without site-packages, which is quick and
# works whatever the environment says.
from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

_KERNEL_HELPS = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_POLL = 0.2
_CANNOT_RUN = 127
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def guarded(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` so that it ends with the calling process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def become(parent: int, command: Sequence[str]) -> NoReturn:
    """Replace this process by `command`, which Linux kills when `parent` dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        _give_up(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the kernel was asked
        raise SystemExit(0)
    # Python ignores these two, and a program inherits what is ignored.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))  # noqa: S606 (our own command, and no shell wanted)
    except OSError as error:
        _give_up(f"cannot run {command[0]}: {error.strerror}")


def watch(parent: int, command: Sequence[str]) -> int:
    """Run `command` as a child until it ends or `parent` dies; returns its exit status as a shell would."""
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: FrameType | None) -> None:
        if child is None:
            raise SystemExit(128 + number)
        child.send_signal(number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    try:
        child = subprocess.Popen(command)  # noqa: S603 (our own command)
    except OSError as error:
        _give_up(f"cannot run {command[0]}: {error.strerror}")
    while True:
        try:
            status = child.wait(timeout=_POLL)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                child.kill()
            continue
        return status if status >= 0 else 128 - status


def _give_up(message: str) -> NoReturn:
    sys.stderr.write(f"qinfer guard: {message}\n")
    raise SystemExit(_CANNOT_RUN)


def main(arguments: Sequence[str]) -> int:
    """Entry point: PARENT_PID COMMAND [ARGUMENT...]."""
    if len(arguments) < 2 or not arguments[0].isdigit():
        _give_up("usage: guard PARENT_PID COMMAND [ARGUMENT...]")
    parent, command = int(arguments[0]), arguments[1:]
    if _KERNEL_HELPS:
        become(parent, command)
    return watch(parent, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
