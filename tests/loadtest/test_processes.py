"""What processes cost."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from loadtest import processes

from qinfer.errors import Unavailable

_PARENT = textwrap.dedent("""
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "child"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    child.stdout.readline()
    print("started", flush=True)
    for line in sys.stdin:
        child.stdin.write(line.encode())
        child.stdin.flush()
        print(child.stdout.readline().decode().strip(), flush=True)
""")
_CHILD = textwrap.dedent("""
    import sys, time
    print("started", flush=True)
    for line in sys.stdin:
        end = time.process_time() + float(line)
        while time.process_time() < end:
            pass
        print("done", flush=True)
""")


def role(arguments: Sequence[str]) -> str:
    return "child" if arguments[-1] == "child" else "parent"


@contextmanager
def family() -> Iterator[subprocess.Popen[str]]:
    """A process with a child that burns as many seconds of CPU time as it is told."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "started\n"
        yield process
        process.stdin.close()


def burn(process: subprocess.Popen[str], seconds: float) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_cost_is_that_of_each_process_in_the_tree() -> None:
    with family() as process:
        before = processes.snapshot(process.pid, role)
        burn(process, 0.3)
        spent = processes.difference(before, processes.snapshot(process.pid, role))
    by_role = {item.role: item for item in spent}
    assert by_role.keys() == {"parent", "child"}
    # The child stops itself at 0.3 s by the same clock; the kernel counts in ticks of up to 10 ms.
    assert by_role["child"].cpu_us == pytest.approx(300_000, abs=50_000)
    assert by_role["child"].cpu_us == pytest.approx(
        sum(thread.cpu_us for thread in by_role["child"].threads.values()), abs=20_000
    )
    assert by_role["parent"].cpu_us < by_role["child"].cpu_us
    assert by_role["parent"].switches >= 1  # it waited for the child
    assert by_role["child"].rss_mb > 1


def test_a_process_that_ended_makes_the_cost_unknown() -> None:
    with family() as process:
        before = processes.snapshot(process.pid, role)
    with pytest.raises(Unavailable, match=rf"child \(pid \d+\)|parent \(pid {process.pid}\)"):
        processes.difference(before, {})
    with pytest.raises(Unavailable, match=f"process {process.pid} is not running"):
        processes.snapshot(process.pid, role)


def test_a_process_that_started_meanwhile_counts_in_full() -> None:
    with family() as process:
        burn(process, 0.1)
        after = processes.snapshot(process.pid, role)
        spent = processes.difference({process.pid: after[process.pid]}, after)
    child = next(item for item in spent if item.role == "child")
    assert child == after[child.pid]


def test_command_names_may_hold_brackets_and_blanks(tmp_path: Path) -> None:
    odd = tmp_path / "a) R (b"
    odd.symlink_to("/bin/cat")
    with subprocess.Popen([str(odd)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        found = processes.snapshot(process.pid, lambda arguments: Path(arguments[0]).name)
        process.stdin.close()
    assert [item.role for item in found.values()] == ["a) R (b"]
    assert [thread.name for thread in found[process.pid].threads.values()] == ["a) R (b"]


def test_busy_time_of_the_machine_includes_this_process() -> None:
    before = processes.machine_busy_us()
    speed = processes.core_speed()
    assert speed > 0
    assert processes.machine_busy_us() > before
