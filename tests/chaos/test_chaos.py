"""Half a minute of `make chaos`: every role is killed under load, and every request is accounted for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from loadtest import environment
from loadtest.chaos import result
from loadtest.chaos.faults import Way, schedule
from loadtest.chaos.records import Outcome
from loadtest.chaos.result import CALM

SEED, SECONDS = 10309, 30
CAUSED = ["burst", "worker-restart", "swap", "broker-kill", "worker-kill", "gateway-kill", "poison"]


def test_the_seed_is_a_telling_one() -> None:
    assert [planned.fault for planned in schedule(SEED, SECONDS)] == CAUSED


@pytest.mark.timeout(240)
def test_no_request_is_lost_or_answered_twice_or_wrongly(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    command = [
        *(sys.executable, "-m", "loadtest.chaos"),
        *(f"--seed={SEED}", f"--minutes={SECONDS / 60}", "--load=0.5", f"--report={report}"),
    ]
    done = subprocess.run(
        command,
        cwd=environment.ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("QINFER_")},
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = result.read(report.with_suffix(".json"))
    assert found.passed
    assert set(found.ways) == set(Way)
    assert found.requests[Outcome.RIGHT] > 1000
    assert found.replayed, "keys were used again"
    assert found.refused["poisoned"] == found.rows["poison"].caused
    assert found.rows.keys() - {CALM} <= set(CAUSED), "a slow machine gets fewer of them done"
    assert {"worker-restart", "worker-kill", "broker-kill"} <= found.rows.keys()
    assert "## Not allowed\n\nNothing." in report.read_text()
