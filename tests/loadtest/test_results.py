"""Summing up and reporting."""

from __future__ import annotations

from pathlib import Path

import pytest
from loadtest import report
from loadtest.environment import Machine
from loadtest.measure import Cost, Measurement, cost_by_role
from loadtest.processes import Process
from loadtest.results import Result, ServerInfo, Settings, Spread, cells, ratio, select, spread

from qinfer.errors import ConfigError


def measurement(server: str, *, repeat: int, rate: float, connections: int = 32) -> Measurement:
    return Measurement(
        server=server,
        wire="http-json",
        connections=connections,
        repeat=repeat,
        requests=int(rate),
        served=int(rate),
        rate=rate,
        errors={"timeout": 1} if server == "b" else {},
        p50_ms=1000 / rate,
        p90_ms=2000 / rate,
        p99_ms=3000 / rate,
        mean_batch=4.0 if server == "a" else None,
        cost={
            "front": Cost(cpu_us=20, switches=0.5, rss_mb=100),
            "back": Cost(cpu_us=10, switches=0, rss_mb=50),
        },
        client_us=7,
        foreign_cpu=0.01 if repeat == 1 else 0.2,
        speed=1e7,
    )


@pytest.fixture
def result() -> Result:
    rates = {"a": (3000.0, 1000.0, 2000.0), "b": (1000.0, 500.0, 2000.0)}
    return Result(
        started="2026-11-22T10:00:00+00:00",
        commit="0123456789ab",
        command="python -m loadtest bench",
        machine=Machine(
            cpu="A processor",
            cores=2,
            memory_gb=8,
            system="Linux",
            kernel="6.1",
            python="3.11",
            load_average=(0.1, 0.2),
        ),
        settings=Settings(repeats=3, duration=5, warmup=1, clients={"wrk": "4.1"}),
        servers={
            name: ServerInfo(
                title=f"Server {name}",
                remark=f"Remark on {name}.",
                arguments=[name, "serve"],
                versions={name: "1.0"},
                idle_ms=1.5,
                idle_rss_mb=99,
            )
            for name in rates
        },
        measurements=[
            measurement(name, repeat=index + 1, rate=rates[name][index])
            for index in range(3)
            for name in rates
        ],
    )


def test_repeats_are_summed_up_by_their_median(result: Result) -> None:
    repeats = select(result.measurements, ("http-json", 32), "a")
    assert [item.repeat for item in repeats] == [1, 2, 3]
    assert spread(repeats, lambda item: item.rate) == Spread(2000, 1000, 3000)
    assert cells(result.measurements) == [("http-json", 32)]
    assert select(result.measurements, ("grpc", 32), "a") == []


def test_ratios_are_taken_pair_by_pair(result: Result) -> None:
    ours, theirs = (select(result.measurements, ("http-json", 32), name) for name in "ab")
    # 3000/1000, 1000/500, 2000/2000: not the ratio of the medians, which is 2000/1000 as well by chance only
    # when the pairs are in order.
    assert ratio(ours, theirs, lambda item: item.rate) == Spread(2, 1, 3)
    assert ratio(reversed(ours), theirs, lambda item: item.rate) == Spread(2, 1, 3)
    assert ratio(ours[:2], theirs, lambda item: item.rate) == Spread(2.5, 2, 3)


def test_processes_of_one_role_are_added_up() -> None:
    def process(pid: int, role: str, cpu_us: float) -> Process:
        return Process(
            pid=pid, role=role, user_us=cpu_us, system_us=cpu_us, switches=5, rss_mb=10, threads={}
        )

    cost = cost_by_role([process(1, "worker", 100), process(2, "worker", 200), process(3, "gateway", 50)], 10)
    assert cost == {
        "gateway": Cost(cpu_us=10, switches=0.5, rss_mb=10),
        "worker": Cost(cpu_us=60, switches=1, rss_mb=20),
    }


def test_report_says_what_was_measured_and_how(result: Result) -> None:
    text = report.markdown(result, "plot.png")
    lines = text.splitlines()
    row = "| 32 | a | 2,000 (1,000 to 3,000) | 0.50 (0.33 to 1.00) | 1.50 (1.00 to 3.00) | 0 | 4.0 | 30 | "
    assert f"{row}back 10, front 20 | 7 | 150 |" in lines
    assert any(line.startswith("| 32 | b | 1,000 ") and "| 3 | unknown | 30 |" in line for line in lines)
    assert "| 32 | a / b | 2.00 (1.00 to 3.00) | 0.50 (0.33 to 1.00) | 0.50 (0.33 to 1.00) | 1.00 |" in lines
    assert {"Remark on a.", "Remark on b."} <= set(lines)
    for fact in ("`python -m loadtest bench`", "`0123456789ab`", "A processor", "wrk 4.1", "b 1.0", "4 of 6"):
        assert fact in text


def test_report_is_written_and_read_back(result: Result, tmp_path: Path) -> None:
    data, text, image = report.write(result, tmp_path / "new", "run")
    assert report.read(data) == result
    assert text.read_text() == report.markdown(result, "run.png") + "\n"
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "missing required field"), ("no JSON", "expected the JSON file of a side-by-side run")],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        report.read(path)


def test_a_later_format_is_refused(result: Result, tmp_path: Path) -> None:
    data = report.write(result, tmp_path, "run")[0]
    data.write_text(data.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ConfigError, match="format: 2; expected 1"):
        report.read(data)
