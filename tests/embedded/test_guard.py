"""The guard: a command ends with its parent, in both ways of doing it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.embedded.processes import alive, eventually

from qinfer.embedded import guard
from qinfer.embedded.guard import guarded

REPORT = "import os, signal; print(os.getpid(), flush=True); signal.pause()"


def watching(command: list[str]) -> list[str]:
    """The command line of the guard as it runs where the kernel does not help."""
    script = f"""
        import runpy, sys
        guard = runpy.run_path({guard.__file__!r})
        sys.exit(guard["watch"](int(sys.argv[1]), sys.argv[2:]))
    """
    return [sys.executable, "-c", textwrap.dedent(script), str(os.getpid()), *command]


WAYS = pytest.mark.parametrize("way", [guarded, watching])


@WAYS
def test_exit_status_and_output_are_the_command_s(way: object) -> None:
    assert callable(way)
    done = subprocess.run(
        way([sys.executable, "-c", "print('hello'); raise SystemExit(7)"]), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello\n", "")


@WAYS
def test_sigterm_reaches_the_command(way: object) -> None:
    assert callable(way)
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(5)); print(flush=True); signal.pause()"
    with subprocess.Popen(way([sys.executable, "-c", code]), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 5


@WAYS
async def test_command_dies_with_its_killed_parent(way: object, tmp_path: Path) -> None:
    assert callable(way)
    script = tmp_path / "parent.py"
    command = way([sys.executable, "-c", REPORT])
    script.write_text(
        f"import os, subprocess\ncommand = {command!r}\n"
        f"command[command.index({str(os.getpid())!r})] = str(os.getpid())\n"
        "subprocess.run(command)\n"
    )
    pid = start_and_kill(script)
    await eventually(lambda: not alive(pid))


def start_and_kill(script: Path) -> int:
    """Run a script that prints a process id, and kill it when it has; returns that id."""
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    return pid


def test_a_parent_gone_before_the_start_stops_it() -> None:
    command = guarded([sys.executable, "-c", "print('ran')"])
    command[command.index(str(os.getpid()))] = "1" if os.getpid() != 1 else "2"
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_missing_program_is_named() -> None:
    done = subprocess.run(guarded(["/nonexistent/program"]), capture_output=True, text=True)
    assert done.returncode == 127
    assert done.stderr == "qinfer guard: cannot run /nonexistent/program: No such file or directory\n"


def test_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qinfer.embedded.guard", "x"], capture_output=True, text=True
    )
    assert done.returncode == 127
    assert "usage: guard PARENT_PID COMMAND" in done.stderr


def test_no_shell_sees_the_command() -> None:
    done = subprocess.run(guarded(["echo", "$HOME; exit 3"]), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "$HOME; exit 3\n")
