"""What the demonstration says about answers, counts and the server is true."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from examples import demo
from examples.demo import summary
from examples.showcase.clients import Counts
from examples.showcase.direct import same
from examples.showcase.server import free_ports, stop, tail, wait_until_ready
from examples.showcase.stage import Row
from rich.console import Console

from qinfer.errors import InternalError, Unavailable

ONES = np.ones((1, 3), np.float32)


@pytest.mark.parametrize(
    ("found", "agrees"),
    [
        ({"y": ONES + 1e-6}, True),
        ({"y": ONES + 1e-2}, False),
        ({"y": ONES[0]}, False),
        ({"y": ONES.astype(np.float64)}, False),
        ({"z": ONES}, False),
        ({"y": ONES, "z": ONES}, False),
        ({"y": ONES * np.nan}, False),
        ({"y": None}, False),  # what tritonclient gives for an output that is not in the answer
    ],
)
def test_answers_are_compared_strictly(found: dict[str, np.ndarray], agrees: bool) -> None:
    assert same(found, {"y": ONES}) is agrees


def test_whole_numbers_must_be_equal() -> None:
    ids = np.array([[1, 2]])
    assert same({"ids": ids.copy()}, {"ids": ids})
    assert not same({"ids": ids + 1}, {"ids": ids})


def test_counts_are_those_since_before() -> None:
    before = Counts(rows=10, batches=4, by_size={1: 2, 4: 2})
    after = Counts(rows=34, batches=8, by_size={1: 2, 4: 4, 8: 2})
    added = after.since(before)
    assert added == Counts(rows=24, batches=4, by_size={4: 2, 8: 2})
    assert (added.mean, added.largest) == (6.0, 8)
    assert (before.since(before).mean, before.since(before).largest) == (0.0, 0)


def _row(wrong: int) -> Row:
    batches = Counts(rows=24, batches=4, by_size={8: 3})
    return Row(
        model="mlp", backend="onnxruntime", via="HTTP", asked="24 rows", answered="1 2", latency_ms=1.25,
        batches=batches, wrong=wrong, answers=24,
    )  # fmt: skip


@pytest.mark.parametrize("width", [80, 160])
def test_the_report_shows_batches_and_wrong_answers(width: int) -> None:
    output = StringIO()
    Console(file=output, width=width).print(summary([_row(0), _row(3)]))
    right, wrong = (line for line in output.getvalue().splitlines() if "mlp" in line)
    assert "6.0 / 8" in right
    assert "all 24" in right
    assert "3 of 24" in wrong
    assert output.getvalue().count("WRONG") == 1


@pytest.mark.parametrize(("wrong", "status"), [(0, 0), (3, 1)])
def test_a_wrong_answer_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, status: int
) -> None:
    monkeypatch.setattr(demo, "build_all", lambda *_, **__: [])
    monkeypatch.setattr(demo, "play", lambda *_, **__: [_row(wrong)])
    result = CliRunner().invoke(demo.main, ["--models", str(tmp_path)])
    assert result.exit_code == status
    assert f"24 answers compared, {wrong} wrong" in result.output


def test_free_ports_differ() -> None:
    assert len(set(free_ports(16))) == 16


def _start(code: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-uc", code], stdout=output, stderr=subprocess.STDOUT)


def test_a_server_that_ends_before_it_is_ready_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _start("print('port 8000 is taken'); raise SystemExit(3)", log)
    with pytest.raises(Unavailable, match=r"(?s)status 3 before it was ready:.*port 8000 is taken"):
        wait_until_ready(process, free_ports(1)[0], log)


_OBEDIENT = """
import http.server, signal, sys

class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v2/health/ready" else 404)
        self.end_headers()

try:
    http.server.HTTPServer(("127.0.0.1", {port}), Ready).serve_forever()
except KeyboardInterrupt:
    print("drained")
    sys.exit({status})
"""


@pytest.mark.parametrize("status", [0, 5])
def test_the_server_must_end_well_after_ctrl_c(tmp_path: Path, status: int) -> None:
    log = tmp_path / "log"
    (port,) = free_ports(1)
    process = _start(_OBEDIENT.format(port=port, status=status), log)
    wait_until_ready(process, port, log)
    if status == 0:
        stop(process, log)
        assert "drained" in tail(log)
    else:
        with pytest.raises(InternalError, match=r"(?s)status 5 after Ctrl-C.*drained"):
            stop(process, log)
    assert process.returncode == status
