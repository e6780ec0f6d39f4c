"""Models that come, change and go while requests for them never stop."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.helpers import http
from tests.helpers.http import Answer
from tests.helpers.steady import MODEL, SteadyLoad, write_model
from tests.helpers.system import Fleet, fleet, serving
from tests.helpers.waiting import eventually

POLL = {"model_control_mode": "poll", "repository_poll_secs": 0.1}
EXPLICIT = {"model_control_mode": "explicit"}
ALL = "version_policy { all {} }\n"
NOT_FOUND = {404, 5}
"""HTTP's and gRPC's status."""


@asynccontextmanager
async def serving_model(
    nats_url: str, namespace: str, root: Path, *models: str, workers: int = 1, **options: Any
) -> AsyncIterator[Fleet]:
    async with fleet(nats_url, namespace, root, grpc_port=0) as running:
        for _ in range(workers):
            await running.add_worker(*models, **(options or POLL))
        yield running


def load_of(running: Fleet, **options: Any) -> SteadyLoad:
    assert running.gateway.grpc is not None
    return SteadyLoad(running.port, running.gateway.grpc.port, **options)


def not_found(status: int, reason: str) -> bool:
    return status in NOT_FOUND and reason == "model_not_found"


async def ask(running: Fleet, request: bytes) -> Answer:
    async with http.connect(running.port) as connection:
        return await connection.ask(request)


async def post(running: Fleet, path: str, body: Any = None) -> Answer:
    return await ask(running, http.post(path, b"" if body is None else json.dumps(body).encode()))


async def index(running: Fleet) -> list[tuple[str, str, str]]:
    answer = await post(running, "/v2/repository/index")
    return [(row["version"], row["state"], row["reason"]) for row in answer.json() if row["name"] == MODEL]


async def infer(running: Fleet, version: str = "") -> Answer:
    body = {"inputs": [http.tensor([1], "INT64", [1, 1])]}
    return await ask(running, http.infer(MODEL, body, version=version))


# In mode poll


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_new_version_takes_over_without_an_error(
    nats_url: str, namespace: str, tmp_path: Path, workers: int
) -> None:
    """Answers from the old version, then from the new one."""
    root = write_model(tmp_path, version=1, number=10)
    async with serving_model(nats_url, namespace, root, workers=workers) as running:
        async with load_of(running) as load:
            await load.more()
            write_model(root, version=2, number=20)
            await load.until(20)
            # Workers look one after the other: now all have.
            await eventually(lambda: list(running.front.catalog.directory.models[MODEL]) == ["2"])
            await load.more()
        load.check()
        assert set(load.numbers) == {10, 20}
        assert set(load.numbers[-100:]) == {20}
        assert (await ask(running, http.get(f"/v2/models/{MODEL}"))).json()["versions"] == ["2"]
        answer = await infer(running, version="1")
        assert (answer.status, answer.reason) == (404, "model_not_found")
        await eventually(lambda: len(running.workers[0].stats()) == 1, "the old version is freed")


async def test_a_model_that_is_changed_in_place_is_loaded_again(
    nats_url: str, namespace: str, tmp_path: Path
) -> None:
    root = write_model(tmp_path, number=10)
    async with serving_model(nats_url, namespace, root) as running:
        async with load_of(running) as load:
            await load.more()
            new = tmp_path / ".new"
            new.write_text((root / MODEL / "1" / "model.py").read_text().replace("10", "20"))
            new.rename(root / MODEL / "1" / "model.py")
            await load.until(20)
            await load.more()
        load.check()
        (stats,) = running.workers[0].stats()
        assert stats.snapshot().inference_count >= load.answered, "its counters go on"


async def test_a_version_that_is_removed_answers_until_it_is_not_found(
    nats_url: str, namespace: str, tmp_path: Path
) -> None:
    """Who asks for it is never told that it cannot be served at the moment."""
    root = write_model(tmp_path, version=1, number=10, policy=ALL)
    write_model(root, version=2, number=20)
    async with serving_model(nats_url, namespace, root) as running:
        async with load_of(running, version="1", allowed=not_found) as old, load_of(running) as newest:
            await old.more()
            await newest.more()
            shutil.rmtree(root / MODEL / "1")
            await old.until(-1)
            await newest.more()
        old.check()
        newest.check()
        assert set(newest.numbers) == {20}
        gone = old.numbers.index(-1)
        assert set(old.numbers[:gone]) == {10}
        assert old.numbers[gone:].count(10) <= 2 * 4, "what was on its way, one request a client"


async def test_a_worker_that_stops_while_it_changes_versions_loses_nothing(
    nats_url: str, namespace: str, tmp_path: Path
) -> None:
    """A frame that it lost would come back after the ack wait, which is longer than anybody here waits."""
    root = write_model(tmp_path, version=1, number=10)
    async with serving_model(nats_url, namespace, root, workers=2) as running:
        async with load_of(running) as load:
            await load.more()
            write_model(root, version=2, number=20)
            await eventually(lambda: 20 in load.numbers or load.wrong, "the new version answers")
            await running.workers[0].drain()
            await load.until(20)
            await load.more()
        load.check()


async def test_the_newest_version_is_taken_back(nats_url: str, namespace: str, tmp_path: Path) -> None:
    root = write_model(tmp_path, version=1, number=10)
    write_model(root, version=2, number=20)
    async with serving_model(nats_url, namespace, root) as running, load_of(running) as load:
        await load.until(20)
        shutil.rmtree(root / MODEL / "2")
        await load.until(10)
        await load.more()
    load.check()


async def test_a_version_that_cannot_be_loaded_changes_nothing(
    nats_url: str, namespace: str, tmp_path: Path
) -> None:
    root = write_model(tmp_path, version=1, number=10)
    async with serving_model(nats_url, namespace, root) as running:
        async with load_of(running) as load:
            await load.more()
            write_model(root, version=2, source="raise RuntimeError('half a file')\n")
            await eventually(lambda: running.workers[0].problems, "the problem is told")
            await load.more()
            states = await index(running)
            assert states[0] == ("1", "READY", "")
            assert states[1][:2] == ("2", "UNAVAILABLE")
            assert "half a file" in states[1][2]
            row = (await ask(running, http.get("/v2/models"))).json()["models"][0]
            assert (row["state"], row["versions"]) == ("READY", ["1"])
            await eventually(lambda: "half a file" in str(running.front.catalog.directory.workers))
            assert set(load.numbers) == {10}
            write_model(root, version=3, number=30)
            await load.until(30)
        load.check()
        await eventually(lambda: len(running.workers[0].stats()) == 1, "the old version is freed")
        assert await index(running) == [("3", "READY", "")]


async def test_a_repository_that_cannot_be_read_for_a_moment_is_no_reason_to_unload(
    nats_url: str, namespace: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_model(tmp_path / "models", number=10)
    async with serving_model(nats_url, namespace, root) as running, load_of(running) as load:
        await load.more()
        root.rename(tmp_path / "elsewhere")
        await eventually(lambda: "cannot be looked at" in caplog.text)
        await load.more()
    load.check()


async def test_a_model_that_leaves_the_repository_is_not_found(
    nats_url: str, namespace: str, tmp_path: Path
) -> None:
    root = write_model(tmp_path / "models", number=10)
    async with serving_model(nats_url, namespace, root) as running:
        async with load_of(running, allowed=not_found) as load:
            await load.more()
            (root / MODEL).rename(tmp_path / "gone")
            await load.until(-1)
            (tmp_path / "gone").rename(root / MODEL)
            await load.until(10)
        load.check()


# On demand


async def test_unload_and_load(nats_url: str, namespace: str, tmp_path: Path) -> None:
    """404 after the one and before the other, and nothing but answers otherwise."""
    root = write_model(tmp_path, number=10)
    async with serving_model(nats_url, namespace, root, MODEL, workers=2, **EXPLICIT) as running:
        async with load_of(running, allowed=not_found) as load:
            await load.more()
            assert -1 not in load.numbers
            assert (await post(running, f"/v2/repository/models/{MODEL}/unload")).status == 200
            assert (await infer(running)).status == 404
            assert [state for _, state, _ in await index(running)] == ["UNLOADING"]
            await load.until(-1)
            await load.more()
            assert (await post(running, f"/v2/repository/models/{MODEL}/load")).status == 200
            assert (await infer(running)).status == 200
            await load.until(10)
            await load.more()
        load.check()
        # Nothing of before the unload answers after it.
        again = len(load.numbers) - load.numbers[::-1].index(-1)
        assert set(load.numbers[again:]) == {10}


async def test_what_was_asked_before_an_unload_is_answered(
    nats_url: str, namespace: str, tmp_path: Path
) -> None:
    """Even if it has not begun: the queue is served to its end."""
    root = write_slow_model(tmp_path)
    async with serving_model(nats_url, namespace, root, MODEL, **EXPLICIT) as running:
        asked = [asyncio.create_task(infer(running)) for _ in range(20)]
        await eventually(lambda: running.in_flight == 20)
        assert (await post(running, f"/v2/repository/models/{MODEL}/unload")).status == 200
        assert running.in_flight > 10, "they were to be in the queue still"
        answers = await asyncio.gather(*asked)
        assert [answer.status for answer in answers] == [200] * 20


async def test_what_was_asked_of_a_version_that_is_gone_is_answered(
    nats_url: str, namespace: str, tmp_path: Path
) -> None:
    root = write_slow_model(tmp_path, ALL)
    write_model(root, version=2, number=20)
    async with serving_model(nats_url, namespace, root) as running:
        asked = [asyncio.create_task(infer(running, version="1")) for _ in range(20)]
        await eventually(lambda: running.in_flight == 20)
        shutil.rmtree(root / MODEL / "1")
        await eventually(lambda: list(running.front.catalog.directory.models[MODEL]) == ["2"], "it is gone")
        assert running.in_flight > 10, "they were to be in the queue still"
        answers = await asyncio.gather(*asked)
        assert [answer.status for answer in answers] == [200] * 20
        assert (await infer(running, version="1")).status == 404


def write_slow_model(root: Path, policy: str = "") -> Path:
    """A model that takes its time for each request."""
    write_model(root, source=_SLOW, policy=policy)
    config = root / MODEL / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 16", "max_batch_size: 1"))
    return root


_SLOW = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.1)
        given = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.repeat(x, 2, axis=1))]) for x in given]
"""


async def test_an_override_is_loaded_and_a_worker_that_joins_loads_it_too(
    nats_url: str, namespace: str, tmp_path: Path
) -> None:
    root = write_model(tmp_path, number=10)
    async with serving_model(nats_url, namespace, root, **EXPLICIT) as running:
        config = (await post(running, f"/v2/repository/models/{MODEL}/load"), await _config(running))[1]
        config["max_batch_size"] = 3
        body = {"parameters": {"config": json.dumps(config)}}
        assert (await post(running, f"/v2/repository/models/{MODEL}/load", body)).status == 200
        assert (await _config(running))["max_batch_size"] == 3
        assert (await infer(running)).status == 200
        joined = await running.add_worker(**EXPLICIT)
        assert set(joined.services) == {MODEL}
        assert (await _config(running))["max_batch_size"] == 3
        assert (await post(running, f"/v2/repository/models/{MODEL}/load")).status == 200
        assert (await _config(running))["max_batch_size"] == 16, "back to its file"


async def _config(running: Fleet) -> dict[str, Any]:
    return dict((await ask(running, http.get(f"/v2/models/{MODEL}/config"))).json())


@pytest.mark.parametrize(
    ("path", "body", "status", "reason", "message"),
    [
        ("models/nobody/load", None, 404, "model_not_found", "nobody"),
        ("models/nobody/unload", None, 404, "model_not_found", "nobody"),
        ("models/broken/load", None, 500, "config", "max_batch_size"),
        ("models/..%2fmodels/load", None, 404, "not_found", "Not Found"),
        ("models/telling/load", {"parameters": {"file:1/model.py": "eA=="}}, 501, "unsupported", "code"),
        ("models/telling/load", {"parameters": {"other": 1}}, 400, "invalid_request", "'other'"),
        ("models/telling/load", {"parameters": {"config": 1}}, 400, "invalid_request", "config"),
        ("models/telling/load", {"parameters": {"config": "{"}}, 400, "invalid_request", "JSON"),
        ("models/telling/load", {"parameters": {"config": '{"nme": ""}'}}, 400, "invalid_request", "nme"),
        (
            "models/telling/load",
            {"parameters": {"config": '{"backend": "python", "max_batch_size": -1}'}},
            *(500, "config", "parameters.config: 1:1: max_batch_size"),
        ),
        (
            "models/telling/load",
            {"parameters": {"config": " " * 300_000}},
            413,
            "payload_too_large",
            "262144",
        ),
        ("models/telling/load", {"parameters": " " * 600_000}, 413, "payload_too_large", "524288"),
        ("models/telling/load", [], 400, "invalid_request", "object"),
        ("models/telling/unload", {"parameters": {"unload_dependents": 1}}, 400, "invalid_request", "true"),
        ("index", {"ready": "yes"}, 400, "invalid_request", "ready"),
    ],
)
async def test_bad_changes(
    nats_url: str,
    namespace: str,
    tmp_path: Path,
    path: str,
    body: Any,
    status: int,
    reason: str,
    message: str,
) -> None:
    root = write_model(tmp_path, number=10)
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "config.pbtxt").write_text('backend: "python" max_batch_size: -3')
    async with serving_model(nats_url, namespace, root, MODEL, **EXPLICIT) as running:
        answer = await post(running, f"/v2/repository/{path}", body)
        assert (answer.status, answer.reason) == (status, reason), answer
        assert message in answer.error
        assert (await infer(running)).status == 200


@pytest.mark.parametrize("options", [{"model_control_mode": "none"}, POLL])
async def test_other_modes_say_that_they_do_not(
    nats_url: str, namespace: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    root = write_model(tmp_path, number=10)
    async with serving_model(nats_url, namespace, root, **options) as running:
        for action in ("load", "unload"):
            answer = await post(running, f"/v2/repository/models/{MODEL}/{action}")
            assert (answer.status, answer.reason) == (501, "unsupported")
            assert "--model-control-mode" in answer.error
        assert (await infer(running)).status == 200


async def test_tritonclient_controls_models(nats_url: str, namespace: str, tmp_path: Path) -> None:
    """NVIDIA's client, as it is, over HTTP and gRPC."""
    root = write_model(tmp_path, number=10)
    async with serving_model(nats_url, namespace, root, **EXPLICIT) as running:
        assert running.gateway.grpc is not None

        def control(client: Any, index: Any) -> None:
            assert index() == [(MODEL, "", "UNAVAILABLE")]
            client.load_model(MODEL)
            assert client.is_model_ready(MODEL)
            assert index() == [(MODEL, "1", "READY")]
            client.unload_model(MODEL)
            assert not client.is_model_ready(MODEL)
            assert index()[0][2] in ("UNLOADING", "UNAVAILABLE")
            client.load_model(MODEL, config=_CONFIG)
            with pytest.raises(InferenceServerException, match="could bring code"):
                client.load_model(MODEL, config="{}", files={"file:1/model.py": b"x"})
            client.unload_model(MODEL, unload_dependents=True)
            with pytest.raises(InferenceServerException, match="nobody"):
                client.load_model("nobody")

        def over_http() -> None:
            client = triton_http.InferenceServerClient(f"127.0.0.1:{running.port}")
            control(
                client,
                lambda: [
                    (row["name"], row["version"], row["state"]) for row in client.get_model_repository_index()
                ],
            )
            client.close()

        def over_grpc(port: int) -> None:
            client = triton_grpc.InferenceServerClient(f"127.0.0.1:{port}")
            control(
                client,
                lambda: [
                    (row.name, row.version, row.state) for row in client.get_model_repository_index().models
                ],
            )
            client.close()

        await asyncio.to_thread(over_http)
        await eventually(lambda: not running.workers[0].stats(), "all is unloaded")
        await asyncio.to_thread(over_grpc, running.gateway.grpc.port)


_CONFIG = """{
    "backend": "python",
    "max_batch_size": 2,
    "input": [{"name": "x", "data_type": "TYPE_INT64", "dims": [1]}],
    "output": [{"name": "y", "data_type": "TYPE_INT64", "dims": [2]}]
}"""


# From a shell


async def command(*arguments: str, nats: str = "") -> tuple[int, str, str]:
    """Run `qinfer models`; its status, output, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "qinfer", "models", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            **{key: value for key, value in os.environ.items() if key != "QINFER_NATS"},
            "QINFER_NATS": nats,
        },
    )
    async with asyncio.timeout(60):
        out, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), said.decode()


@pytest.mark.parametrize("way", ["gateway", "broker"])
async def test_the_command_line(nats_url: str, namespace: str, tmp_path: Path, way: str) -> None:
    root = write_model(tmp_path / "models", number=10)
    override = tmp_path / "config.json"
    override.write_text(_CONFIG)
    async with serving_model(nats_url, namespace, root, **EXPLICIT) as running:
        there = [f"--url=http://127.0.0.1:{running.port}"]
        nats = ""
        if way == "broker":
            there, nats = [f"--namespace={namespace}"], nats_url
        assert (await command("load", MODEL, f"--config={override}", *there, nats=nats))[0] == 0
        assert (await _config(running))["max_batch_size"] == 2
        status, out, _ = await command("index", "--json", *there, nats=nats)
        assert (status, json.loads(out)) == (
            0,
            [{"name": MODEL, "version": "1", "state": "READY", "reason": ""}],
        )
        assert (await command("unload", MODEL, *there, nats=nats))[0] == 0
        assert (await infer(running)).status == 404
        status, _, said = await command("load", "nobody", *there, nats=nats)
        assert (status, "nobody" in said) == (1, True)
        _, out, _ = await command("index", *there, nats=nats)
        assert MODEL in out
        assert "unloading" in out or "not loaded" in out
        assert (await command("index", "--ready", "--json", *there, nats=nats))[1].strip() == "[]"


# Processes


async def test_sighup_has_a_worker_look(nats_url: str, namespace: str, tmp_path: Path) -> None:
    root = write_model(tmp_path, version=1, number=10)
    async with fleet(nats_url, namespace, root, grpc_port=0) as running:
        process = await running.add_worker_process()
        async with load_of(running) as load:
            await load.more()
            write_model(root, version=2, number=20)
            process.send_signal(signal.SIGHUP)
            await load.until(20)
        load.check()
        assert process.returncode is None


async def test_what_was_loaded_on_demand_is_there_after_a_restart(tmp_path: Path) -> None:
    """The successors of a server's workers, and of one that died, serve what the fleet served."""
    root = write_model(tmp_path / "models", number=10)
    with serving(root, "--model-control-mode=explicit", "--lame-duck=0.5") as system:
        async with http.connect(system.http_port) as connection:
            assert (await connection.ask(http.post(f"/v2/repository/models/{MODEL}/load", b""))).status == 200
        async with SteadyLoad(system.http_port, system.grpc_port) as load:
            await load.more()
            os.kill(system.pid, signal.SIGHUP)
            await eventually(lambda: system.log.read_text().count("takes over from") == 1 or load.wrong)
            await load.more()
        load.check()
