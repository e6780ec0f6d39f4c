"""Clients that never stop asking, and check every answer: what a change in the fleet must not be seen by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from qinfer.proto import METHODS, ModelInferRequest
from tests.helpers import http
from tests.helpers.http import Answer, infer, tensor
from tests.helpers.waiting import PATIENCE, eventually

MODEL = "telling"
_CHANNEL = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]

_CONFIG = """backend: "python"
max_batch_size: 16
input { name: "x" data_type: TYPE_INT64 dims: 1 }
output { name: "y" data_type: TYPE_INT64 dims: 2 }
"""
_SOURCE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    # The number after the given one, and which model this is.
    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        answers = [np.concatenate([x + 1, np.full_like(x, %d)], axis=1) for x in given]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for y in answers]
"""


def write_model(
    root: Path, *, version: int = 1, number: int = 1, policy: str = "", name: str = MODEL, source: str = ""
) -> Path:
    """Write one version of a model that tells `number` with every answer; returns the repository.

    The version's directory comes whole: first under another name, as it is to be done.
    """
    folder = root / name
    hidden = folder / f".{version}"
    hidden.mkdir(parents=True)
    (hidden / "model.py").write_text(source or _SOURCE % number)
    config = folder / "config.pbtxt"
    if not config.exists() or policy:
        config.write_text(_CONFIG + policy)
    hidden.rename(folder / str(version))
    return root


class SteadyLoad:
    """HTTP and gRPC clients of one gateway port each, one request after the other.

    Args:
        http_port: of the gateways; 0 for no HTTP clients.
        grpc_port: of the gateways; 0 for no gRPC clients.
        version: which version of the model to ask; empty for the newest.
        clients: how many of each kind.
        allowed: says of an answer that is no success whether it is to be expected; the client goes on then.
        pause: seconds between two requests of a client.
    """

    def __init__(
        self,
        http_port: int,
        grpc_port: int = 0,
        *,
        version: str = "",
        clients: int = 4,
        allowed: Callable[[int, str], bool] = lambda status, reason: False,
        pause: float = 0.0,
        name: str = MODEL,
    ) -> None:
        self._http_port = http_port
        self._grpc_port = grpc_port
        self._version = version
        self._clients = clients
        self._allowed = allowed
        self._pause = pause
        self._name = name
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []
        self.wrong: list[str] = []
        """Failures and wrong answers."""
        self.numbers: list[int] = []
        """What the model told, in the order of the answers; -1 for an allowed refusal."""
        self.by_protocol = {"http": 0, "grpc": 0}

    async def __aenter__(self) -> SteadyLoad:
        clients = []
        if self._http_port:
            clients += [self._http_client(seed) for seed in range(self._clients)]
        if self._grpc_port:
            clients += [self._grpc_client(seed) for seed in range(self._clients)]
        self._tasks = [asyncio.create_task(client) for client in clients]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)

    @property
    def answered(self) -> int:
        return len(self.numbers)

    async def more(self, count: int = 100) -> None:
        """Wait for that many more answers over each protocol."""
        goals = {
            protocol: done + count
            for protocol, done in self.by_protocol.items()
            if {"http": self._http_port, "grpc": self._grpc_port}[protocol]
        }
        await eventually(
            lambda: self.wrong or all(self.by_protocol[protocol] >= goal for protocol, goal in goals.items()),
            f"{count} more answers",
        )
        self.check()

    async def until(self, number: int, count: int = 30) -> None:
        """Wait until only this number is told."""
        await eventually(lambda: self.wrong or self.numbers[-count:] == [number] * count, f"only {number}")
        self.check()

    def check(self) -> None:
        assert not self.wrong, self.wrong[:5]

    def _judge(self, protocol: str, given: int, y: Any) -> None:
        if int(y[0]) != given + 1:
            self.wrong.append(f"{protocol}: {given} was answered with {y}")
        self.numbers.append(int(y[1]))
        self.by_protocol[protocol] += 1

    def _refused(self, protocol: str, status: int, reason: str, message: str) -> None:
        if self._allowed(status, reason):
            self.numbers.append(-1)
            self.by_protocol[protocol] += 1
        else:
            self.wrong.append(f"{protocol}: {status} {reason} {message}")

    async def _http_client(self, seed: int) -> None:
        value = seed
        while not self._stop and not self.wrong:
            try:
                async with http.connect(self._http_port) as connection:
                    while not self._stop and not self.wrong:
                        value += 1000
                        body = {"inputs": [tensor([value], "INT64", [1, 1])]}
                        answer = await connection.ask(infer(self._name, body, version=self._version))
                        self._read(value, answer)
                        if answer.headers.get("connection") == "close":
                            break
                        await asyncio.sleep(self._pause)
            except (http.Closed, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.wrong.append(f"http: {error!r}")

    def _read(self, value: int, answer: Answer) -> None:
        if answer.status == 200:
            self._judge("http", value, answer.outputs()["y"])
        else:
            self._refused("http", answer.status, answer.reason, answer.body.decode())

    async def _grpc_client(self, seed: int) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._grpc_port}", options=_CHANNEL) as channel:
            kind = METHODS["ModelInfer"]
            call = channel.unary_unary(
                kind.path,
                request_serializer=ModelInferRequest.SerializeToString,
                response_deserializer=kind.response.FromString,
            )
            value = seed
            while not self._stop and not self.wrong:
                value += 1000
                message = ModelInferRequest(model_name=self._name, model_version=self._version)
                message.inputs.add(name="x", datatype="INT64", shape=[1, 1])
                message.raw_input_contents.append(np.int64(value).tobytes())
                try:
                    answer = await call(message, timeout=PATIENCE)
                except grpc.aio.AioRpcError as error:
                    metadata = dict(error.trailing_metadata() or ())
                    code: Any = error.code()
                    reason = str(metadata.get("x-qinfer-reason", ""))
                    self._refused("grpc", code.value[0], reason, f"{error.details()}")
                else:
                    self._judge("grpc", value, np.frombuffer(answer.raw_output_contents[0], np.int64))
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(self._pause)
