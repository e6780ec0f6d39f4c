"""Tensors far above what a message of the broker may hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import grpc
import nats
import numpy as np
import pytest

from qinfer.naming import Names
from qinfer.proto import METHODS, ModelInferRequest, ModelInferResponse
from tests.e2e.test_idempotency import ask, worker_dying_at
from tests.helpers import http, served_models
from tests.helpers.http import Answer, infer, tensor
from tests.helpers.served_models import IDENTITY
from tests.helpers.system import Fleet, System, fleet, serving
from tests.helpers.waiting import PATIENCE, eventually

BYTES, NUMBERS = IDENTITY["UINT8"], IDENTITY["INT64"]
MB = 1_000_000
SIZE = 100 * MB


@pytest.fixture(scope="module")
def data() -> bytes:
    return np.random.default_rng(1).integers(0, 256, SIZE, np.uint8).tobytes()


@pytest.fixture(scope="module")
def large(served_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A server, in processes of its own, that takes large requests."""
    repository = served_models.copy(served_repository, tmp_path_factory.mktemp("large"), BYTES, NUMBERS)
    with serving(repository, "--max-body=128MiB", "--request-timeout=120") as running:
        yield running


def head_of(data: bytes) -> bytes:
    """The JSON that goes before the data in the binary tensor data extension, in both directions."""
    given = tensor(None, "UINT8", [1, len(data)])
    del given["data"]
    given["parameters"] = {"binary_data_size": len(data)}
    return json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()


def binary(data: bytes) -> bytes:
    head = head_of(data)
    return infer(BYTES, head + data, f"inference-header-content-length: {len(head)}")


def post(port: int, data: bytes) -> Answer:
    """Send what takes its time, with more patience than other tests have. Blocks."""
    head = head_of(data)
    connection = HTTPConnection("127.0.0.1", port, timeout=6 * PATIENCE)
    try:
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Length": str(SIZE + len(head))}
        connection.request("POST", http.infer_path(BYTES), iter((head, data)), headers)
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()


def number(value: int) -> bytes:
    return infer(NUMBERS, {"inputs": [tensor([value], "INT64", [1, 1])]})


def output(answer: Answer) -> bytes:
    assert answer.status == 200, answer.error
    return answer.body[int(answer.headers["inference-header-content-length"]) :]


def children(pid: int) -> dict[str, int]:
    """The roles of a server, and their processes."""
    roles = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        roles["gateway" if b"gateway" in words else "worker" if b"worker" in words else "broker"] = int(child)
    return roles


def memory(pid: int, what: str) -> int:
    """`VmRSS`, what a process takes now, or `VmHWM`, the most it ever took, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


async def stored(url: str, namespace: str) -> int:
    """Messages in the object store of large tensors."""
    client = await nats.connect(url)
    try:
        info = await client.jetstream().stream_info(f"OBJ_{Names(namespace).tensors_bucket}")
        return int(info.state.messages)
    finally:
        await client.close()


async def is_emptied(running: Fleet) -> None:
    async with asyncio.timeout(PATIENCE):
        while await stored(running.nats, running.namespace):  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)


async def test_100_mb_there_and_back_over_http(large: System, data: bytes) -> None:
    """Other requests are answered meanwhile, and no process holds more than a few copies."""
    roles = children(large.pid)
    before = {role: memory(pid, "VmRSS") for role, pid in roles.items()}
    done = asyncio.Event()
    answered = 0

    async def small() -> None:
        nonlocal answered
        async with http.connect(large.http_port) as connection:
            while not done.is_set():
                assert (await connection.ask(number(answered))).outputs() == {"y": [answered]}
                answered += 1
                await asyncio.sleep(0.005)  # leave the machine to the large one

    others = asyncio.create_task(small())
    await eventually(lambda: answered)
    at_first = answered
    answer = await asyncio.to_thread(post, large.http_port, data)
    done.set()
    await others
    assert output(answer) == data
    assert answered - at_first > 20
    copies = {
        role: (memory(pid, "VmHWM") - before[role]) / SIZE for role, pid in roles.items() if role != "broker"
    }
    assert copies["gateway"] < 3, copies  # the body in pieces and as one
    assert copies["worker"] < 2, copies  # its outputs are its inputs


async def test_100_mb_there_and_back_over_grpc(large: System, data: bytes) -> None:
    request = ModelInferRequest(model_name=BYTES)
    request.inputs.add(name="x", datatype="UINT8", shape=[1, SIZE])
    request.raw_input_contents.append(data)
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(large.grpc, options=options) as channel:
        model_infer = channel.unary_unary(
            METHODS["ModelInfer"].path,
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )
        response = await model_infer(request, timeout=6 * PATIENCE)
    assert response.raw_output_contents[0] == data


async def test_larger_requests_than_a_server_takes_are_413(large: System) -> None:
    async with http.connect(large.http_port) as connection:
        head = infer(BYTES, b"").replace(b"content-length: 0", b"content-length: %d" % (129 << 20))
        answer = await connection.ask(head)
    assert (answer.status, answer.reason) == (413, "payload_too_large")
    assert f"{128 << 20} bytes (--max-body)" in answer.error


async def test_a_request_no_process_may_hold_is_413(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    async with fleet(nats_url, namespace, served_repository, max_claim_bytes=12 * MB) as running:
        await running.add_worker(BYTES)
        answer = await ask(running.port, binary(bytes(13 * MB)))
        assert (answer.status, answer.reason) == (413, "payload_too_large")
        assert f"{12 * MB} bytes (--max-claim-bytes)" in answer.error
        assert output(await ask(running.port, binary(bytes(11 * MB)))) == bytes(11 * MB)
        await is_emptied(running)


async def test_an_answer_no_worker_may_hold_is_413(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    async with fleet(nats_url, namespace, served_repository) as running:
        await running.add_worker(BYTES, max_claim_bytes=12 * MB)
        answer = await ask(running.port, binary(bytes(13 * MB)))
        assert (answer.status, answer.reason) == (413, "payload_too_large")
        await is_emptied(running)


async def test_many_at_once_wait_their_turn_or_are_told_to(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    async with fleet(nats_url, namespace, served_repository, max_claim_bytes=40 * MB) as running:
        await running.add_worker(BYTES, max_claim_bytes=20 * MB)
        bodies = [bytes([index]) * (12 * MB) for index in range(8)]
        answers = await asyncio.gather(*(ask(running.port, binary(body)) for body in bodies))
        good = [index for index, answer in enumerate(answers) if answer.status == 200]
        assert len(good) >= 3
        for index, answer in enumerate(answers):
            if index in good:
                assert output(answer) == bodies[index]
            else:
                assert (answer.status, answer.reason) == (429, "queue_full")
                assert int(answer.headers["retry-after"]) >= 1
        await is_emptied(running)


async def test_large_requests_of_a_worker_that_is_killed_go_to_another(
    nats_url: str, namespace: str, served_repository: Path
) -> None:
    """The tensors are still in the store when the frame is delivered again."""
    body = bytes(12 * MB)
    async with fleet(nats_url, namespace, served_repository) as running:
        first = await worker_dying_at("Replies.tell", running, BYTES)
        try:
            asked = asyncio.create_task(ask(running.port, binary(body)))
            async with asyncio.timeout(PATIENCE):
                await first.wait()
        finally:
            if first.returncode is None:
                first.kill()
        await running.add_worker(BYTES, ack_wait=1.0)
        assert output(await asked) == body
        assert running.in_flight == 0
