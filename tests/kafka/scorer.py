"""A scorer in a process of its own: `python -m tests.kafka.scorer SPECIFICATION` (JSON)."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from qinfer.embedded.guard import guarded
from qinfer.telemetry.logs import configure_logging
from qinfer_workers.kafka.contract import Client, Limits, Topics, Window
from qinfer_workers.kafka.server import ScorerOptions, serve
from tests.helpers.waiting import PATIENCE
from tests.kafka.support import TestPipeline


class ScorerProcess:
    """One scorer.

    Args:
        pipeline: what it runs.
        log: file for what it says.
    """

    def __init__(self, pipeline: TestPipeline, log: Path) -> None:
        specification: dict[str, Any] = {
            "topics": asdict(pipeline.topics),
            "client": asdict(pipeline.client),
            "window": asdict(pipeline.window),
            "limits": asdict(pipeline.limits),
            "repositories": [str(path) for path in pipeline.repositories],
            "group": pipeline.group,
            "delivery": pipeline.delivery,
        }
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                guarded([sys.executable, "-m", "tests.kafka.scorer", json.dumps(specification)]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL. Idempotent."""
        self._process.kill()
        self._process.wait()

    async def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self._process.terminate()
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end; returns the exit status."""
        return await asyncio.to_thread(self._process.wait, 2 * PATIENCE)


def main() -> None:
    """Run the scorer that the command line specifies."""
    given = json.loads(sys.argv[1])
    pipeline = TestPipeline(
        topics=Topics(**given["topics"]),
        client=Client(**given["client"]),
        window=Window(**given["window"]),
        limits=Limits(**given["limits"]),
        repositories=[Path(path) for path in given["repositories"]],
        group=given["group"],
        delivery=given["delivery"],
    )
    configure_logging(role="kafka-score", instance="", level="info", log_format="text")
    uvloop.run(serve(pipeline, ScorerOptions()))


if __name__ == "__main__":
    main()
