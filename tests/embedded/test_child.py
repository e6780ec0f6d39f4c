"""Supervision of a child process."""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from pathlib import Path

import pytest
from tests.embedded.processes import alive, eventually

from qinfer.embedded import Backoff, Child, ChildExited

OBEYS = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print(flush=True); signal.pause()"
DEFIES = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True)\nwhile True: signal.pause()"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def running(child: Child, output: Path) -> int:
    """Wait until the child's code has installed its handlers; returns its process id."""
    await eventually(lambda: output.exists() and output.stat().st_size > 0)
    assert child.pid is not None
    return child.pid


async def test_a_dead_child_is_started_again_with_a_new_command(tmp_path: Path) -> None:
    numbers = count()
    backs: list[int] = []
    child = Child(
        "fake",
        lambda: python(
            f"import pathlib; pathlib.Path({str(tmp_path)!r}, '{next(numbers)}').touch(); {OBEYS}"
        ),
        on_restart=lambda: backs.append(child.restarts),
        backoff=Backoff(first=0.02),
    )
    await child.start()
    await eventually((tmp_path / "0").exists)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert await child.died() == -signal.SIGKILL
    await eventually(lambda: backs == [1])
    await eventually((tmp_path / "1").exists)
    assert child.pid not in (None, first)
    await child.stop(10)
    assert child.restarts == 1


async def test_stop_is_graceful_and_idempotent(tmp_path: Path) -> None:
    output = tmp_path / "out"
    child = Child("fake", lambda: python(OBEYS), output=output)
    await child.start()
    pid = await running(child, output)
    await child.stop(30)
    await child.stop(30)
    assert not alive(pid)
    assert child.last_status is None


async def test_a_child_that_defies_sigterm_is_killed(tmp_path: Path) -> None:
    output = tmp_path / "out"
    child = Child("fake", lambda: python(DEFIES), output=output)
    await child.start()
    pid = await running(child, output)
    await child.stop(0.05)
    assert not alive(pid)


async def test_a_child_of_another_session_does_not_see_ctrl_c(tmp_path: Path) -> None:
    output = tmp_path / "out"
    child = Child("fake", lambda: python(OBEYS), output=output)
    await child.start()
    pid = await running(child, output)
    assert os.getpgid(pid) == pid
    assert os.getsid(pid) == pid
    await child.stop(30)


async def test_death_before_ready_is_an_error_with_the_status() -> None:
    async def never() -> None:
        await eventually(lambda: False)

    child = Child("fake", lambda: python("raise SystemExit(3)"), ready=never)
    with pytest.raises(ChildExited, match="fake exited with status 3 before it was ready") as caught:
        await child.start()
    assert caught.value.status == 3
    await child.stop(1)


async def test_a_child_that_keeps_dying_is_retried_until_stop() -> None:
    child = Child("fake", lambda: python("raise SystemExit(1)"), backoff=Backoff(first=0.01, cap=0.02))
    await child.start()
    await eventually(lambda: child.restarts >= 3)
    await child.stop(10)
    assert child.last_status == 1
    assert child.pid is None


def test_backoff_doubles_up_to_its_cap_and_forgets_after_health() -> None:
    backoff = Backoff(first=1.0, cap=8.0, healthy_after=60.0)
    for nominal in (1.0, 2.0, 4.0, 8.0, 8.0):
        assert nominal / 2 <= backoff.next(uptime=0.0) <= nominal
    assert 0.5 <= backoff.next(uptime=61.0) <= 1.0
    assert 1.0 <= backoff.next(uptime=0.0) <= 2.0
