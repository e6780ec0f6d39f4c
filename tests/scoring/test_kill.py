"""A process that is killed in the middle, for real: the next one goes on, and the output is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
ROWS = 240

SCORER = """
import asyncio, sys
from pathlib import Path
from qinfer.scoring import OnError, Settings, run
from tests.scoring.models import DOUBLE, Server, score
from tests.scoring.test_run import picky

run.PART_ROWS = 12
source, target, gate = map(Path, sys.argv[1:])
done = 0

async def gated(inputs):
    # As many requests as the gate says, by its size: the rest waits, for the kill.
    global done
    done += 1
    number = done
    while number > gate.stat().st_size:
        await asyncio.sleep(0.002)
    return await server(inputs)

server = picky()
asyncio.run(score(source, target, DOUBLE, gated, Settings(on_error=OnError.RECORD)))
"""


def start(source: Path, target: Path, requests: int) -> subprocess.Popen[bytes]:
    """A process that scores, and is let have this many answers."""
    gate = target.with_name("gate")
    gate.write_bytes(b"." * requests)
    return subprocess.Popen(
        [sys.executable, "-c", SCORER, source, target, gate],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def lines(journal: Path) -> int:
    return len(journal.read_bytes().splitlines()) if journal.exists() else 0


def wait_lines(process: subprocess.Popen[bytes], journal: Path, count: int) -> None:
    give_up = time.monotonic() + PATIENCE
    while lines(journal) < count:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < give_up, "the journal does not grow"
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["out.parquet"])
def test_kill_twice_and_go_on(tmp_path: Path, name: str) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"x": [-row, 13 if row % 50 == 7 else 0]} for row in range(ROWS)]
    source.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "whole").mkdir()
    assert start(source, tmp_path / "whole" / name, 1000).wait(PATIENCE) == 0

    target = tmp_path / name
    journal = tmp_path / f"{name}.progress" / "journal.jsonl"
    before = 0
    for requests in (20, 20):
        process = start(source, target, requests)
        wait_lines(process, journal, max(before, 1) + 3)
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
        assert not target.exists()
        before = lines(journal)
    last = start(source, target, 1000)
    assert last.wait(PATIENCE) == 0, last.stderr.read().decode() if last.stderr else ""
    assert target.read_bytes() == (tmp_path / "whole" / name).read_bytes()
    errors = f"{name}.errors.jsonl"
    assert (tmp_path / errors).read_bytes() == (tmp_path / "whole" / errors).read_bytes()
    assert [json.loads(line)["row"] for line in (tmp_path / errors).read_text().splitlines()] == [
        row for row in range(ROWS) if row % 50 == 7
    ]
    assert not journal.parent.exists()
