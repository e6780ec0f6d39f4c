"""The overload runs, on a real server and made short."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from loadtest import overload, overload_plot
from loadtest.overload import Memory, Result, Sample, Settings

SETTINGS = Settings(
    batch=4, batch_ms=20.0, deadline_ms=500.0, gateways=1, workers=1, seconds=1.0, warmup=1.0, seed=7
)


async def test_three_times_the_capacity_and_a_lasting_overload(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(overload, "_CAPACITY_SECONDS", 1.0)
    monkeypatch.setattr(overload, "_SAMPLE_SECONDS", 0.5)
    result = await overload.run(SETTINGS, [0.4, 3.0], memory=0.02, times=4.0)
    assert result.capacity > 20, "200 on an idle machine"
    low, high = result.points
    assert set(low.outcomes) == {"ok"}, "nothing is refused below the capacity"
    assert set(high.outcomes) <= {"ok", "wait_too_long", "deadline_exceeded"}
    assert high.outcomes["wait_too_long"] > high.outcomes["ok"] / 2
    assert high.goodput > low.goodput
    assert result.memory is not None
    assert {"broker", "gateway", "worker"} <= result.memory.growth.keys()
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result) == result
    path = tmp_path / "plot.png"
    for each in (result, msgspec.structs.replace(result, points=[])):
        overload_plot.draw(each, path)
        assert path.read_bytes().startswith(b"\x89PNG")
    assert overload.table(result).row_count == 2


def test_growth_is_counted_from_the_first_minute() -> None:
    samples = [
        Sample(seconds=seconds, rss_mb={"gateway": size, "worker": 50.0})
        for seconds, size in ((0.0, 10.0), (30.0, 80.0), (60.0, 100.0), (300.0, 130.0), (600.0, 110.0))
    ]
    memory = Memory(times=10.0, samples=samples, outcomes={})
    assert memory.growth == {"gateway": pytest.approx(1.1), "worker": 1.0, "all": pytest.approx(160 / 150)}
