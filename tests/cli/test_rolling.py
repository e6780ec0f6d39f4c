"""Rolling restarts, with fake roles: who is started, told and stopped, and in which order."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.cli.test_supervisor import Fleet, fleet, get
from tests.embedded.processes import alive, eventually


def hang_up(running: Fleet) -> None:
    running.process.send_signal(signal.SIGHUP)


def break_models(running: Fleet, reason: str) -> None:
    """Workers that start from now on cannot load anything."""
    Path(f"{running.journal}.broken").write_text(reason)


def steps(running: Fleet, after: int) -> list[str]:
    """What happened since the first `after` events."""
    return [f"{event} {who}" for event, who, _ in running.events()[after:]]


async def test_each_process_is_replaced_before_it_is_told_to_go(tmp_path: Path) -> None:
    async with fleet(tmp_path, gateways=2, workers=2) as running:
        await running.ready()
        await eventually(lambda: len(running.events()) == 4)
        before = {role: running.pids(role) for role in ("worker", "gateway")}
        hang_up(running)
        await eventually(lambda: len(running.events()) == 16)
        one = ["start {}", "told {}", "stop {}"]
        expected = [step.format(role) for role in ("worker", "gateway") for _ in range(2) for step in one]
        assert steps(running, 4) == expected
        stops = [int(pid) for event, _, pid in running.events() if event == "stop"]
        assert [set(stops[:2]), set(stops[2:])] == [set(before["worker"]), set(before["gateway"])]
        # They are replaced: their clients are to find the successors.
        assert {how for event, _, how in running.events() if event == "told"} == {"SIGTERM"}
        lines = get(running.addresses["metrics"]).splitlines()
        assert 'qinfer_up{instance="1",role="gateway"} 1.0' in lines
        assert 'fake_work_total{role="worker"} 6.0' in lines
        running.process.terminate()
        status, stderr = await running.exit()
        assert status == 0, stderr
        assert "worker 0: starting its successor" in stderr
        assert not any(map(alive, [*running.pids("worker"), *running.pids("gateway")]))


async def test_twice_is_twice(tmp_path: Path) -> None:
    async with fleet(tmp_path) as running:
        await running.ready()
        for count in (2, 3):
            hang_up(running)
            await eventually(lambda count=count: len(running.pids("gateway")) == count)
        await eventually(lambda: [event for event, _, _ in running.events()].count("stop") == 4)


async def test_a_successor_that_cannot_load_what_is_served_does_not_take_over(tmp_path: Path) -> None:
    async with fleet(tmp_path, workers=2) as running:
        await running.ready()
        await eventually(lambda: len(running.events()) == 3)
        break_models(running, "half a file")
        hang_up(running)
        await eventually(lambda: len(running.events()) == 6)
        assert steps(running, 3) == ["start worker", "told worker", "stop worker"]
        assert running.events()[-1][2] == str(running.pids("worker")[2]), "it is the new one that had to go"
        assert all(map(alive, [*running.pids("worker")[:2], *running.pids("gateway")]))
        told = await running.says("its successor cannot take over")
        assert "worker 0: its successor cannot take over: it cannot load what is served now: mlp: ha" in told
        running.process.terminate()
        await running.exit()


async def test_a_successor_that_is_never_ready_does_not_take_over(tmp_path: Path) -> None:
    environment = {"FAKE_NEVER_READY": "gateway"}
    async with fleet(tmp_path, environment=environment, startup_timeout=2.0) as running:
        await running.ready()
        gateway = running.pids("gateway")[0]
        hang_up(running)
        await eventually(lambda: len(running.pids("gateway")) == 2)
        await eventually(lambda: not alive(running.pids("gateway")[1]))
        assert alive(gateway)
        told = await running.says("its successor cannot take over")
        assert "gateway 0: its successor cannot take over: gateway 0 was not ready within 2 s" in told
        running.process.terminate()
        await running.exit()


async def test_a_stop_in_the_middle_of_a_restart_ends_everything(tmp_path: Path) -> None:
    """What starts and what is on its way out, too; the latter is not told twice, which would cut it short."""
    async with fleet(tmp_path, environment={"FAKE_DRAIN": "1"}, workers=2) as running:
        await running.ready()
        await eventually(lambda: len(running.events()) == 3)
        hang_up(running)
        await eventually(lambda: "told worker" in steps(running, 3))
        running.process.terminate()
        status, stderr = await running.exit()
        assert status == 0, stderr
        started = [*running.pids("worker"), *running.pids("gateway")]
        assert sorted(int(pid) for event, _, pid in running.events() if event == "stop") == sorted(started)
        told = [how for event, _, how in running.events() if event == "told"]
        assert told.count("SIGTERM") == 1
        assert told.count("SIGINT") == len(started) - 1
