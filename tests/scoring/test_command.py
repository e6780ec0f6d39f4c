"""`qinfer score`, against a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from qinfer.cli.app import app
from qinfer.cli.score import _Call, _score, _Way
from qinfer.cli.serve.ports import free_port
from qinfer.scoring import Settings
from tests.helpers.system import System, fleet
from tests.helpers.waiting import PATIENCE
from tests.scoring.conftest import write_models


def score(system: System, *arguments: object) -> Result:
    url = f"--url=http://{system.http}"
    return CliRunner().invoke(app, ["score", *map(str, arguments), url], prog_name="qinfer")


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    np.save(tmp_path / "in.npy", np.arange(100, dtype=np.float32).reshape(50, 2) + 20)
    return tmp_path / "in.npy"


def test_all_rows(scorer: System, vectors: Path) -> None:
    result = score(scorer, vectors, vectors.with_name("out.npy"), "--model", "picky")
    assert result.exit_code == 0, result.output
    assert "out.npy: 50 of 50 rows, in " in result.output
    np.testing.assert_array_equal(np.load(vectors.with_name("out.npy")), 2 * np.load(vectors))


def test_a_broker_without_the_model(nats_url: str, namespace: str, tmp_path: Path) -> None:
    arguments = ["score", "in.npy", "out.npy", "--model", "m", "--nats", nats_url, "--namespace", namespace]
    result = CliRunner().invoke(app, arguments, prog_name="qinfer")
    assert result.exit_code == 1
    assert "m" in result.output
    assert "fleet" in result.output


def test_rows_left_out_have_a_status_of_their_own(scorer: System, tmp_path: Path) -> None:
    rows = [{"x": [row, 13 if row in (3, 9) else 0]} for row in range(20)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    target = tmp_path / "out.jsonl"
    result = score(scorer, tmp_path / "in.jsonl", target, "--model=picky", "--on-error=record", "--json")
    assert result.exit_code == 3
    told = json.loads(result.stdout)
    assert (told["rows"], told["written"], told["failed"]) == (20, 17, 3)
    errors = [json.loads(line) for line in (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert [error["row"] for error in errors] == [3, 9, 13]
    assert all("thirteen" in error["message"] for error in errors)


def test_a_row_that_fails_ends_it(scorer: System, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('x\n"[1, 2]"\n"[3, old]"\n')
    result = score(scorer, tmp_path / "in.csv", tmp_path / "out.csv", "--model=picky")
    assert result.exit_code == 1
    assert "in.csv: row 1: field 'x': found '[3, old]'; expected FP32 of shape [2]" in result.output
    assert "(invalid_request)" in result.output
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.npy", "out.npy", "--model=picky"], "no.npy: cannot be read"),
        (["in.npy", "out.npy", "--model=sentiment"], ".npy holds one output"),
        (["in.npy", "out.npy", "--model=picky", "--map=z=data"], "no input 'z'; expected one of x"),
        (["in.npy", "out.npy", "--model=picky", "--map=x"], "--map x: expected INPUT=COLUMN"),
        (["in.npy", "out.npy", "--model=picky", "--map=x=a", "--map=x=b"], "is given twice"),
        (["in.npy", "out.npy", "--model=picky", "--map-output=y="], "expected COLUMN or COLUMN=OUTPUT"),
        (["in.npy", "out.npy", "--model=picky", "--keep=a,,b"], "expected names of columns"),
        (["in.npy", "out.npy"], "Missing option '--model'"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_asked(
    scorer: System, vectors: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(vectors.parent)
    result = score(scorer, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert [path.name for path in vectors.parent.iterdir()] == ["in.npy"]


def test_an_output_that_is_there(scorer: System, vectors: Path) -> None:
    target = vectors.with_name("out.npy")
    target.touch()
    result = score(scorer, vectors, target, "--model=picky")
    assert result.exit_code == 2
    assert "is there already; --restart replaces it" in result.output
    assert score(scorer, vectors, target, "--model=picky", "--restart").exit_code == 0
    assert len(np.load(target)) == 50


def test_a_model_that_is_none(scorer: System, vectors: Path) -> None:
    result = score(scorer, vectors, "out.npy", "--model=none")
    assert result.exit_code == 1
    assert "none" in result.output


def test_a_server_that_is_none(vectors: Path) -> None:
    port = free_port()
    url = f"--url=127.0.0.1:{port}"
    result = CliRunner().invoke(app, ["score", str(vectors), "out.npy", "--model=m", url])
    assert result.exit_code == 1
    assert str(port) in result.output


def test_the_dry_run_asks_nothing(scorer: System, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 7, "words": "lovely"}\n')
    arguments = ["--model=sentiment", "--map=text=words", "--keep=id", "--dry-run"]
    result = score(scorer, tmp_path / "in.jsonl", tmp_path / "out.parquet", *arguments)
    assert result.exit_code == 0, result.output
    words = result.output.split()
    for word in ("text", "BYTES", "words", "'lovely'", "id", "label", "score", "FP32"):
        assert word in words, result.output
    assert "for sentiment version 1, up to 8 in a request" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_and_it_goes_on(
    scorer: System, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    np.save(tmp_path / "in.npy", np.zeros((400_000, 2), np.float32))
    source, target = str(tmp_path / "in.npy"), str(tmp_path / "out.npy")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "qinfer",
            "score",
            source,
            target,
            "--model=picky",
            f"--url=http://{scorer.http}",
        ],
        stderr=subprocess.PIPE,
    )
    begun = tmp_path / "out.npy.progress" / "writing"
    give_up = time.monotonic() + PATIENCE
    while not (begun.exists() and begun.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    assert b"the same command goes on" in told
    assert not (tmp_path / "out.npy").exists()
    lines = (tmp_path / "out.npy.progress" / "journal.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["last"] > 0, "what was done is kept"


async def test_over_the_broker_to_the_workers(
    nats_url: str, namespace: str, vectors: Path, tmp_path: Path
) -> None:
    """No gateway is needed."""
    async with fleet(nats_url, namespace, write_models(tmp_path / "models"), jobs=False) as made:
        await made.add_worker("picky")
        call = _Call(
            model="picky", version="", timeout=20.0, priority=0, in_flight=8, patience=5.0, restart=False
        )
        way = _Way(nats_url, {"namespace": namespace})
        target = vectors.with_name("out.npy")
        await _score(way, vectors, target, Settings(), call, as_json=True)
        assert made.front.dispatcher.in_flight == {}
    np.testing.assert_array_equal(np.load(target), 2 * np.load(vectors))


def test_a_batch_job_is_submitted(scorer: System, vectors: Path) -> None:
    data = scorer.repository.parent / "data"
    (data / "in.npy").write_bytes(vectors.read_bytes())
    arguments = ["data/in.npy", "data/no.csv", "--model=picky", "--batch"]
    assert "data/none.npy: cannot be read" in score(scorer, "data/none.npy", *arguments[1:]).output
    (data / "no.csv").touch()
    assert "is there already" in score(scorer, *arguments).output
    full = [*arguments, "--restart", "--json", "--map=x=data", "--on-error=skip"]
    result = score(scorer, *full)
    while "no jobs at the moment" in result.output:  # jobs begin a moment after the gateway
        result = score(scorer, *full)
    assert result.exit_code == 0, result.output
    job = json.loads(result.stdout)
    assert (job["model_name"], job["status_url"]) == ("picky", f"/v2/jobs/{job['id']}")
    assert score(scorer, *arguments, "--dry-run").exit_code == 2
