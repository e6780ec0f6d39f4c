"""Scorers in processes of their own, and what they score with."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from loadtest.mlp import INPUT_NAME, MODEL_NAME, OUTPUT_NAME, build_mlp, config_pbtxt
from qinfer.embedded.guard import guarded

_MAX_BATCH = 512


def build_repository(root: Path) -> Path:
    """A repository with the model of the load tests, with larger batches; returns the ONNX file."""
    directory = root / MODEL_NAME
    (directory / "1").mkdir(parents=True)
    config = config_pbtxt("onnxruntime").replace("max_batch_size: 64", f"max_batch_size: {_MAX_BATCH}")
    (directory / "config.pbtxt").write_text(config)
    model = directory / "1" / "model.onnx"
    build_mlp(model)
    return model


def write_pipeline(
    path: Path,
    *,
    bootstrap: str,
    repository: Path,
    source: str,
    output: str,
    dead: str,
    group: str,
    delivery: str,
    raw: bool = False,
    **more: Any,
) -> Path:
    """Write a pipeline's file.

    Args:
        path: where.
        bootstrap, repository, source, output, dead, group, delivery: what it says.
        raw: records are raw numbers and not JSON.
        more: further sections.
    """
    model: dict[str, Any] = {"name": MODEL_NAME}
    if not raw:
        model |= {"inputs": {INPUT_NAME: "features"}, "outputs": {"score": OUTPUT_NAME}}
    written_as = "raw" if raw else "json"
    kafka = {"bootstrap": bootstrap, **more.pop("kafka", {})}
    path.write_text(
        yaml.safe_dump(
            {
                "group": group,
                "delivery": delivery,
                "kafka": kafka,
                "source": {"topics": source, "format": written_as},
                "output": {"topic": output, "format": written_as},
                "dead_letters": {"topic": dead},
                "repositories": [str(repository)],
                "models": [model],
                **more,
            }
        )
    )
    return path


class Process:
    """A child that ends with us, and writes to a log.

    Args:
        command: what to run.
        log: file for what it says.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                guarded(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL. Idempotent."""
        self._process.kill()
        self._process.wait()

    async def stop(self, timeout: float = 60.0) -> int:
        """SIGTERM; returns the exit status."""
        self._process.terminate()
        return await asyncio.to_thread(self._process.wait, timeout)


def start_scorer(pipeline: Path, log: Path, *, processes: int = 1) -> Process:
    """Start `qinfer kafka-score`."""
    command = [sys.executable, "-m", "qinfer", "kafka-score", str(pipeline), f"--processes={processes}"]
    return Process(command, log)
