"""The client commands over a broker, with a real worker process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from click.testing import CliRunner, Result
from tests.cli.test_serve import CONFIG, MODEL
from tests.embedded.processes import DEADLINE

from qinfer.cli.app import app
from qinfer.embedded import EmbeddedServer


async def run(url: str, *arguments: str) -> Result:
    return await asyncio.to_thread(
        CliRunner().invoke, app, list(arguments), env={"QINFER_NATS": url}, prog_name="qinfer"
    )


async def served(url: str) -> list[dict[str, object]]:
    """Wait for a worker, which registers after its models; returns the rows of `qinfer models`."""
    async with asyncio.timeout(DEADLINE):
        while True:
            rows: list[dict[str, object]] = json.loads((await run(url, "models", "--json")).stdout)
            if any(row["workers"] for row in rows):
                return rows


async def test_models_and_infer_over_the_broker(tmp_path: Path) -> None:
    (tmp_path / "double" / "1").mkdir(parents=True)
    (tmp_path / "double" / "1" / "model.py").write_text(MODEL)
    (tmp_path / "double" / "config.pbtxt").write_text(CONFIG)
    async with EmbeddedServer() as broker:
        environment = {**os.environ, "QINFER_NATS": broker.url}
        command = ("-m", "qinfer", "worker", str(tmp_path), "--storage", "memory")
        worker = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment)
        try:
            (row,) = await served(broker.url)
            assert (row["name"], row["state"], row["workers"]) == ("double", "READY", 1)
            result = await run(broker.url, "infer", "double", "--input", "[[1, 2, 3]]", "--json")
            assert json.loads(result.stdout)["outputs"][0]["data"] == [2.0, 4.0, 6.0]
            result = await run(broker.url, "infer", "double", "--input", "[[1, 2]]")
            assert (result.exit_code, "shape" in result.output) == (1, True)
            result = await run(broker.url, "infer", "nope", "--input", "[1]")
            assert result.output == "Error: no model 'nope'; the fleet has: double\n"
            worker.terminate()
            async with asyncio.timeout(DEADLINE):
                assert await worker.wait() == 0
            result = await run(broker.url, "infer", "double", "--input", "[[1, 2, 3]]")
            assert result.output == "Error: no live worker serves model 'double' version 1\n"
        finally:
            if worker.returncode is None:
                worker.kill()
                await worker.wait()
