"""Processes that are done to what is said, and that are seen when they end by themselves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from loadtest.chaos import roles
from loadtest.chaos.proxy import HOST
from loadtest.chaos.roles import Role, listens
from loadtest.chaos.system import free_ports

from qinfer.errors import Unavailable
from tests.helpers.waiting import eventually

_UP = "print('up', flush=True); signal.pause()"
POLITE = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); {_UP}"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_UP}"

Make = Callable[[str], Role]


@pytest.fixture
async def role(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes a role that runs some Python and is ready when it has said "up"."""

    async def ready(_pid: int, written: str) -> bool:
        return "up" in written

    async with AsyncExitStack() as stack:

        def make(code: str) -> Role:
            made = Role(
                "it", [sys.executable, "-c", code], environment=os.environ, log=tmp_path / "log", ready=ready
            )
            stack.push_async_callback(made.kill)
            return made

        yield make


def pid_of(role: Role) -> int:
    assert role._process is not None
    return role._process.pid


def alive(role: Role) -> bool:
    return role.alive  # asked anew: mypy takes a property for a constant


def state(pid: int) -> str:
    """Its letter in proc(5): S for sleeping, T for stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@pytest.mark.parametrize("end", [Role.kill, Role.stop])
async def test_who_was_told_to_end_is_not_started_again(
    role: Make, end: Callable[[Role], Awaitable[None]]
) -> None:
    polite = role(POLITE)
    await polite.start()
    await polite.ready()
    assert alive(polite)
    await end(polite)
    assert not alive(polite)
    assert not polite.deaths
    await polite.start()
    await polite.ready()
    assert alive(polite)


async def test_who_ends_by_himself_is_started_again_and_remembered(
    role: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "_RESPAWN_PAUSE", 0.0)
    polite = role(POLITE)
    await polite.start()
    await polite.ready()
    first = pid_of(polite)
    os.kill(first, signal.SIGSEGV)
    await eventually(lambda: polite.alive and pid_of(polite) != first, "another is there")
    await polite.ready()
    (death,) = polite.deaths
    assert (death.role, death.how) == ("it", "was killed by SIGSEGV")


async def test_a_pause(role: Make) -> None:
    polite = role(POLITE)
    await polite.start()
    await polite.ready()
    polite.pause()
    await eventually(lambda: state(pid_of(polite)) == "T", "it is stopped")
    polite.resume()
    await eventually(lambda: state(pid_of(polite)) == "S", "it waits again")
    assert alive(polite)


async def test_who_does_not_heed_is_killed_and_told_of(role: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "_END_SECONDS", 0.2)
    deaf = role(DEAF)
    await deaf.start()
    await deaf.ready()
    with pytest.raises(Unavailable, match="it did not end on SIGTERM"):
        await deaf.stop()
    assert not alive(deaf)


async def test_who_is_never_ready_is_told_of_with_his_last_words(
    role: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "_READY_SECONDS", 0.5)
    silent = role("import signal; print('no model', flush=True); signal.pause()")
    await silent.start()
    with pytest.raises(Unavailable, match="it was not ready within") as told:
        await silent.ready()
    assert "no model" in told.value.message


async def test_who_listens_on_a_shared_port(unused_port: int, other_process: int) -> None:
    server = await asyncio.start_server(lambda *_: None, HOST, unused_port)
    try:
        assert await listens(os.getpid(), [unused_port])
        assert not await listens(other_process, [unused_port])
    finally:
        server.close()
    assert not await listens(os.getpid(), [unused_port])


@pytest.fixture
def other_process() -> Iterator[int]:
    with Popen(["cat"], stdin=PIPE) as process:
        yield process.pid
        process.communicate()


@pytest.fixture
def unused_port() -> int:
    (port,) = free_ports(1)
    return port
