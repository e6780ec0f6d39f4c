"""Whole runs, with wrk, against a small real server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from click.testing import CliRunner
from loadtest import cli, report
from loadtest.measure import Load, measure
from loadtest.server import Server
from loadtest.verify import requests_file, verify

from qinfer.errors import ModelFailed

pytestmark = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")

LOAD = Load(wire="http-json", connections=2, duration=1, warmup=0)
Tiny = Callable[..., AbstractContextManager[Server]]


def test_a_measurement_adds_up(tiny: Tiny, tmp_path: Path) -> None:
    with tiny() as server:
        verify(server, server.peer.wires)
        start = server.peer.counters(server.ports.base)
        result, spent = measure(server, LOAD, cache=tmp_path)
        end = server.peer.counters(server.ports.base)
    assert start is not None
    assert end is not None
    # What wrk counted the server has counted too, but for the requests under way when the time was over.
    assert 0 <= end.inferences - start.inferences - result.requests <= LOAD.connections
    assert result.requests > 0
    assert result.errors == {}
    assert result.mean_batch == 1
    assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms
    # No more requests at a time than connections (Little's law), with room for wrk's rounding.
    assert result.rate * result.p50_ms / 1e3 < 2 * LOAD.connections
    assert result.cost.keys() == {"front"}
    assert result.cpu_us * result.served == pytest.approx(sum(process.cpu_us for process in spent))
    assert result.cpu_us > 0
    assert result.client_us > 0


def test_a_server_that_refuses_everything_has_no_figures(tiny: Tiny, tmp_path: Path) -> None:
    with tiny("refuse") as server:
        requests_file(server).write_bytes(b'{"inputs":[]}\n')
        with pytest.raises(ModelFailed, match=r"all requests failed: \{'status': \d+"):
            measure(server, LOAD, cache=tmp_path)


@pytest.mark.usefixtures("peers")
def test_side_by_side_measures_all_servers_in_turn(tmp_path: Path) -> None:
    arguments = ["--quick", "--no-grpc", "--connections", "2", "--results", str(tmp_path)]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.output
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".png"]
    result = report.read(next(tmp_path.glob("*-side-by-side.json")))
    order = [(item.connections, item.server) for item in result.measurements]
    assert order == [(2, "first"), (2, "second")]
    assert list(result.servers) == ["first", "second"]
    assert all(item.rate > 0 for item in result.measurements)


@pytest.mark.usefixtures("peers")
def test_cpu_shows_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(cli.main, ["cpu", "--connections", "2", "--duration", "1", "--warmup", "0"])
    assert done.exit_code == 0, done.output
    assert done.output.count("requests/s, p50") == 2
    assert "front" in done.output


@pytest.mark.parametrize("connections", ["", "0", "1,x", "-1"])
def test_connections_must_be_numbers(connections: str) -> None:
    done = CliRunner().invoke(cli.main, ["bench", f"--connections={connections}"])
    assert done.exit_code == 2
    assert "is no comma-separated list of positive numbers" in done.output


def test_an_error_is_shown_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    done = CliRunner().invoke(cli.main, ["report", str(path)])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {path}: ")
