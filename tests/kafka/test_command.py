"""`qinfer kafka-score` as one starts it: a file, a process, its port, a signal."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from qinfer.embedded.guard import guarded
from tests.helpers.kafka import create_topics, topic_name
from tests.helpers.waiting import PATIENCE
from tests.kafka.support import MODEL, doubled, producer, read, row


def write_pipeline(path: Path, bootstrap: str, repository: Path) -> dict[str, str]:
    """Write a pipeline of raw rows; returns its topics."""
    stem = topic_name()
    topics = {"source": f"{stem}-in", "output": f"{stem}-out", "dead": f"{stem}-dead"}
    pipeline = {
        "group": f"{stem}-group",
        "delivery": "exactly-once",
        "kafka": {"bootstrap": bootstrap, "session_timeout": 3},
        "source": {"topics": topics["source"], "format": "raw"},
        "output": {"topic": topics["output"], "format": "raw"},
        "dead_letters": {"topic": topics["dead"]},
        "repositories": [str(repository)],
        "models": [{"name": MODEL}],
    }
    path.write_text(yaml.safe_dump(pipeline))
    return topics


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qinfer", "kafka-score", *arguments],
        check=False,
        timeout=2 * PATIENCE,
        capture_output=True,
        text=True,
    )


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_file_is_checked_without_a_broker(tmp_path: Path, doubling: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    write_pipeline(path, "nowhere:9092", doubling)
    done = run(str(path), "--check")
    assert (done.returncode, done.stdout) == (0, f"{path}: ok\n")
    path.write_text(path.read_text() + "delivry: exactly-once\n")
    done = run(str(path), "--check")
    assert done.returncode == 2
    assert "delivry" in done.stderr


async def test_a_pipeline_runs_until_it_is_told_to_stop(kafka: str, tmp_path: Path, doubling: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    topics = write_pipeline(path, kafka, doubling)
    await create_topics(kafka, *topics.values())
    async with producer(kafka) as sender:
        for number in range(20):
            await sender.send(topics["source"], row(number), key=b"%d" % number)
        await sender.send(topics["source"], b"short", key=b"bad")
        await sender.flush()
    process = await asyncio.create_subprocess_exec(
        *guarded([sys.executable, "-m", "qinfer", "kafka-score", str(path), "--metrics-port", "0"]),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        found = await read(kafka, topics["output"], 20)
        assert [record.value for record in found] == [doubled(row(number)) for number in range(20)]
        (letter,) = await read(kafka, topics["dead"], 1)
        reason = dict(letter.headers)["qinfer-reason"].decode()
        port = await asyncio.to_thread(listening, process.pid)
        status, ready = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/health/ready")
        assert (status, json.loads(ready)) == (200, {"state": "running"})
        _, metrics = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/metrics")
        for line in (
            "qinfer_kafka_records_read_total 21.0",
            "qinfer_kafka_records_written_total 20.0",
            f'qinfer_kafka_dead_letters_total{{reason="{reason}"}} 1.0',
            f'qinfer_kafka_lag{{partition="0",topic="{topics["source"]}"}} 0.0',
            'nv_inference_count{model="double",version="1"} 20.0',
        ):
            assert line in metrics
        process.terminate()
        _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()


def listening(pid: int) -> int:
    """The one port that a process listens on."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("socket:["):
            sockets.add(target[8:-1])
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in sockets:
            return int(fields[1].rpartition(":")[2], 16)
    raise AssertionError("the process listens nowhere")


async def test_what_cannot_be_started_says_why(kafka: str, tmp_path: Path, doubling: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    topics = write_pipeline(path, kafka, doubling)
    done = await asyncio.to_thread(run, str(path))
    assert done.returncode == 2
    assert f"topic '{topics['source']}'" in done.stderr
    assert "Traceback" not in done.stderr
