"""`qinfer kafka-score --processes`: several scorers of one group under one supervisor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner

from qinfer.embedded.guard import guarded
from qinfer_workers.kafka import command
from tests.helpers.kafka import create_topics
from tests.helpers.waiting import PATIENCE, eventually
from tests.kafka.support import doubled, producer, read, row
from tests.kafka.test_command import get, listening, run, write_pipeline

_RECORDS = 20


class Scoring:
    """`qinfer kafka-score` with several processes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def children(self) -> Sequence[int]:
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in found.split()]

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, 2 * PATIENCE)


@contextmanager
def scoring(path: Path, *options: str) -> Iterator[Scoring]:
    """Started, and killed at the end if it still runs."""
    log = path.with_suffix(".log")
    with log.open("wb") as errors:
        process = subprocess.Popen(
            guarded([sys.executable, "-m", "qinfer", "kafka-score", str(path), *options]), stderr=errors
        )
    try:
        yield Scoring(process, log)
    finally:
        process.kill()
        process.wait()


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def partitions(pid: int) -> set[str]:
    """The partitions a scorer process has, as its own metrics say."""
    _, metrics = get(f"http://127.0.0.1:{listening(pid)}/metrics")
    lines = [line for line in metrics.splitlines() if line.startswith("qinfer_kafka_in_flight{")]
    return {line.partition('partition="')[2].partition('"')[0] for line in lines}


async def send(kafka: str, topic: str, numbers: range) -> None:
    async with producer(kafka) as sender:
        for number in numbers:
            await sender.send(topic, row(number), key=b"%d" % number, partition=number % 2)
        await sender.flush()


async def test_processes_share_the_partitions_and_one_that_is_killed_is_replaced(
    kafka: str, tmp_path: Path, doubling: Path
) -> None:
    path = tmp_path / "pipeline.yaml"
    topics = write_pipeline(path, kafka, doubling)
    await create_topics(kafka, *topics.values(), partitions=2)
    with scoring(path, "--processes", "2", "--metrics-port", "0") as scorers:
        await eventually(lambda: "all 2 scorers" in scorers.log)
        base = f"http://127.0.0.1:{listening(scorers.process.pid)}"

        def ready() -> bool:
            status, body = get(f"{base}/health/ready")
            return (status, json.loads(body)) == (200, {"processes": [{"state": "running"}] * 2})

        await eventually(ready)
        first, second = scorers.children
        await eventually(lambda: sorted([*partitions(first), *partitions(second)]) == ["0", "1"])
        assert len(partitions(first)) == 1
        await send(kafka, topics["source"], range(_RECORDS))
        await read(kafka, topics["output"], _RECORDS)
        _, metrics = get(f"{base}/metrics")
        assert f"qinfer_kafka_records_written_total {_RECORDS:.1f}" in metrics

        os.kill(second, signal.SIGKILL)
        await send(kafka, topics["source"], range(_RECORDS, 2 * _RECORDS))
        found = await read(kafka, topics["output"], 2 * _RECORDS, settled=True)
        right = {b"%d" % number: doubled(row(number)) for number in range(2 * _RECORDS)}
        assert len(found) == len(right)
        assert {record.key: record.value for record in found} == right
        await eventually(lambda: len({*scorers.children} - {second}) == 2 and ready())
        assert first in scorers.children
        _, metrics = get(f"{base}/metrics")
        assert 'qinfer_process_restarts_total{instance="1",role="kafka-score"} 1.0' in metrics

        children = scorers.children
        scorers.process.send_signal(signal.SIGTERM)
        assert await scorers.ended() == 0, scorers.log
        assert scorers.log.count(" has stopped") == 2  # each of them in good order
        assert all(gone(pid) for pid in children)


async def test_more_processes_than_partitions_are_told_and_a_second_signal_kills(
    kafka: str, tmp_path: Path, doubling: Path
) -> None:
    path = tmp_path / "pipeline.yaml"
    topics = write_pipeline(path, kafka, doubling)
    await create_topics(kafka, *topics.values())
    with scoring(path, "--processes", "2", "--metrics-port", "0") as scorers:
        await eventually(lambda: "all 2 scorers" in scorers.log)
        assert f"2 processes for 1 partitions of {topics['source']}" in scorers.log
        gate = doubling / "gate"
        gate.touch()
        try:
            async with producer(kafka) as sender:
                await sender.send_and_wait(topics["source"], row(1))
            url = f"http://127.0.0.1:{listening(scorers.process.pid)}/metrics"
            await eventually(lambda: "qinfer_kafka_records_read_total 1.0" in get(url)[1])
            children = scorers.children
            scorers.process.send_signal(signal.SIGTERM)
            await eventually(lambda: "once more to stop at once" in scorers.log)
            scorers.process.send_signal(signal.SIGINT)
            assert await scorers.ended() == 128 + signal.SIGINT
        finally:
            gate.unlink()
        assert all(gone(pid) for pid in children)


async def test_no_process_outlives_the_supervisor(kafka: str, tmp_path: Path, doubling: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    topics = write_pipeline(path, kafka, doubling)
    await create_topics(kafka, *topics.values())
    with scoring(path, "--processes", "2") as scorers:
        await eventually(lambda: scorers.children)
        children = scorers.children
        scorers.process.kill()
        await eventually(lambda: all(gone(pid) for pid in children))


async def test_what_is_wrong_with_the_set_up_is_told_once(kafka: str, tmp_path: Path, doubling: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    topics = write_pipeline(path, kafka, doubling)
    done = await asyncio.to_thread(run, str(path), "--processes", "3")
    assert done.returncode == 2
    assert done.stderr.count(f"topic '{topics['source']}'") == 1
    assert "Traceback" not in done.stderr


def test_how_many_processes_is_a_number_or_auto(tmp_path: Path, doubling: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    write_pipeline(path, "nowhere:9092", doubling)
    for given, status in (("auto", 0), ("2", 0), ("0", 2), ("many", 2)):
        done = CliRunner().invoke(command.kafka_score, [str(path), "--check", "--processes", given])
        assert done.exit_code == status, given
