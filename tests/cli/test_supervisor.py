"""The supervisor, with a real broker and fake roles: what starts, restarts, stops, and in which order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.embedded.processes import DEADLINE, alive, command_line, eventually

RUNNER = Path(__file__).with_name("run_supervisor.py")
ANY_PORTS = {"http_port": 0, "grpc_port": -1, "metrics_port": 0}


class Fleet:
    """A supervisor in a process of its own, and what its children wrote down."""

    def __init__(self, process: asyncio.subprocess.Process, journal: Path) -> None:
        self.process = process
        self.journal = journal
        self.addresses: dict[str, Any] = {}

    def events(self) -> list[list[str]]:
        return (
            [line.split() for line in self.journal.read_text().splitlines()] if self.journal.exists() else []
        )

    def pids(self, role: str) -> list[int]:
        """Children of a role, by start."""
        return [int(pid) for event, who, pid in self.events() if event == "start" and who == role]

    def broker(self) -> int:
        return next(pid for pid in children(self.process.pid) if "nats-server" in name(pid))

    async def ready(self) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            self.addresses = json.loads(await self.process.stdout.readline())

    async def says(self, what: str) -> str:
        """Wait until it has said something; returns the line. What it said until then is not in `exit`."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE):
            async for line in self.process.stderr:
                if what in line.decode():
                    return line.decode()
        raise AssertionError(f"it ended without a word of {what!r}")

    async def exit(self) -> tuple[int, str]:
        """Wait for the end; returns exit status and standard error."""
        async with asyncio.timeout(DEADLINE):
            _, stderr = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, stderr.decode()


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


@asynccontextmanager
async def fleet(
    tmp_path: Path,
    *,
    states: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Fleet]:
    journal = tmp_path / "journal"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(RUNNER),
        json.dumps({**ANY_PORTS, "storage": "memory", **options}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "FAKE_JOURNAL": str(journal),
            "FAKE_STATES": json.dumps(states or {"mlp": "READY"}),
            **(environment or {}),
        },
        start_new_session=True,
    )
    found = Fleet(process, journal)
    try:
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


async def test_stops_in_the_order_in_which_requests_flow(tmp_path: Path) -> None:
    async with fleet(tmp_path, gateways=2, workers=2) as running:
        await running.ready()
        assert running.addresses["ready"] is True
        await eventually(lambda: len(running.events()) == 4)
        broker = running.broker()
        running.process.terminate()
        status, stderr = await running.exit()
        assert status == 0, stderr
        stops = [who for event, who, _ in running.events() if event == "stop"]
        assert stops == ["gateway", "gateway", "worker", "worker"]
        assert not alive(broker)


async def test_secrets_stay_secret_and_ctrl_c_stops_too(tmp_path: Path) -> None:
    async with fleet(tmp_path) as running:
        await running.ready()
        for pid in children(running.process.pid):
            assert "nats://" not in command_line(pid)
        running.process.send_signal(signal.SIGINT)
        status, stderr = await running.exit()
        assert status == 0
        assert "nats://qinfer" not in stderr
        assert [how for event, _, how in running.events() if event == "told"] == ["SIGINT", "SIGINT"]


async def test_a_child_that_dies_is_started_again_on_the_same_port(tmp_path: Path) -> None:
    async with fleet(tmp_path) as running:
        await running.ready()
        await eventually(lambda: len(running.events()) == 2)
        os.kill(running.pids("gateway")[0], signal.SIGKILL)
        os.kill(running.pids("worker")[0], signal.SIGKILL)
        await eventually(lambda: len(running.pids("gateway")) == 2 and len(running.pids("worker")) == 2)
        assert get(f"{running.addresses['http']}/v2/health/ready") == "{}"
        running.process.terminate()
        assert (await running.exit())[0] == 0


async def test_a_killed_supervisor_takes_everything_with_it(tmp_path: Path) -> None:
    async with fleet(tmp_path) as running:
        await running.ready()
        await eventually(lambda: len(running.events()) == 2)
        everything = [*children(running.process.pid)]
        assert len(everything) == 3
        running.process.kill()
        await eventually(lambda: not any(alive(pid) for pid in everything))


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    async with fleet(tmp_path, environment={"FAKE_DRAIN": "600"}) as running:
        await running.ready()
        await eventually(lambda: len(running.events()) == 2)
        everything = children(running.process.pid)
        running.process.terminate()
        assert running.process.stderr is not None
        async with asyncio.timeout(DEADLINE):
            await running.process.stderr.readuntil(b"stopping gateways")
        running.process.terminate()
        status, _ = await running.exit()
        assert status == 130
        assert not any(alive(pid) for pid in everything)
        assert not [event for event, *_ in running.events() if event == "stop"]


async def test_a_child_that_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    async with fleet(tmp_path, environment={"FAKE_DRAIN": "600"}, drain_timeout=0, stop_grace=0.1) as running:
        await running.ready()
        await eventually(lambda: len(running.events()) == 2)
        running.process.terminate()
        status, stderr = await running.exit()
        assert status == 0
        assert "gateway 0 did not stop within" in stderr
        assert "worker 0 did not stop within" in stderr


async def test_metrics_of_all_children_are_added_up(tmp_path: Path) -> None:
    async with fleet(tmp_path, gateways=2, workers=1) as running:
        await running.ready()
        await eventually(lambda: len(running.events()) == 3)
        lines = get(running.addresses["metrics"]).splitlines()
        assert 'fake_work_total{role="gateway"} 6.0' in lines
        assert 'fake_work_total{role="worker"} 3.0' in lines
        assert 'qinfer_up{instance="1",role="gateway"} 1.0' in lines
        assert 'qinfer_up{instance="0",role="broker"} 1.0' in lines
        assert 'qinfer_process_restarts_total{instance="0",role="worker"} 0.0' in lines


async def test_a_model_that_cannot_be_loaded_does_not_keep_the_others_from_being_announced(
    tmp_path: Path,
) -> None:
    async with fleet(tmp_path, states={"mlp": "READY", "broken": "UNAVAILABLE"}) as running:
        await running.ready()
        assert running.addresses["ready"] is False


async def test_a_role_that_is_set_up_wrongly_ends_the_start(tmp_path: Path) -> None:
    async with fleet(tmp_path, environment={"FAKE_WORKER_EXIT": "2"}, states={"mlp": "LOADING"}) as running:
        status, stderr = await running.exit()
        assert status == 1
        assert "SetupError: worker 0 cannot run; its message is above" in stderr


async def test_models_that_never_get_ready_end_the_start(tmp_path: Path) -> None:
    async with fleet(tmp_path, states={"mlp": "LOADING"}, startup_timeout=1.0) as running:
        status, stderr = await running.exit()
        assert status == 1
        assert "Unavailable: not ready within 1 s (--startup-timeout): mlp" in stderr
        assert [who for event, who, _ in running.events() if event == "stop"] == ["gateway", "worker"]


async def test_a_signal_in_the_middle_of_the_start_stops(tmp_path: Path) -> None:
    async with fleet(tmp_path, states={"mlp": "LOADING"}) as running:
        await eventually(lambda: len(running.events()) == 2)
        running.process.terminate()
        status, _ = await running.exit()
        assert status == 0
        assert [who for event, who, _ in running.events() if event == "stop"] == ["gateway", "worker"]


async def test_a_start_that_fails_does_not_wait_for_what_is_still_loading(tmp_path: Path) -> None:
    environment = {"FAKE_DRAIN": "600"}
    async with fleet(
        tmp_path, environment=environment, states={"mlp": "LOADING"}, drain_timeout=3600, stop_grace=0.1
    ) as running:
        await eventually(lambda: len(running.events()) == 2)
        running.process.terminate()
        status, stderr = await running.exit()
        assert status == 0
        assert "worker 0 did not stop within" in stderr


@pytest.mark.parametrize("option", ["http_port", "grpc_port", "metrics_port"])
async def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another server's gateways would
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with fleet(tmp_path, **{option: port}) as running:
            status, stderr = await running.exit()
    assert status == 1
    assert "SetupError" in stderr
    assert str(port) in stderr
    assert "ddress already in use" in stderr
    assert not running.events()
