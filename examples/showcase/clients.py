"""The unmodified tritonclient, over HTTP and over gRPC, behind one small face."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qinfer.datatypes import datatype_of
from qinfer.errors import DeadlineExceeded, SetupError

try:
    import tritonclient.grpc as triton_grpc  # type: ignore[import-untyped]
    import tritonclient.http as triton_http  # type: ignore[import-untyped]
except ImportError:
    raise SetupError(
        "the demonstration needs tritonclient: pip install -r examples/requirements.txt"
    ) from None

Tensors: TypeAlias = Mapping[str, NDArray[Any]]
"""Arrays by tensor name, with the batch dimension where the model has one; BYTES as object arrays."""

REQUEST_TIMEOUT_S = 30.0
STATISTICS_TIMEOUT_S = 10.0
MAX_CONCURRENCY = 64


class Client(Protocol):
    """One way to the server."""

    via: str
    """Name of the transport."""

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str]) -> Tensors:
        """Send one request and wait for its answer."""

    def infer_many(self, model: str, requests: Sequence[Tensors], outputs: Sequence[str]) -> list[Tensors]:
        """Send requests side by side, at most `MAX_CONCURRENCY` at once; answers come in their order.

        Raises:
            tritonclient.utils.InferenceServerException: the server refused or failed one of them.
            DeadlineExceeded: an answer did not come in `REQUEST_TIMEOUT_S`.
        """

    def close(self) -> None: ...


class HttpClient:
    """`tritonclient.http` with the binary tensor extension.

    Its own `async_infer` pauses for 10 ms after each request, too slow for requests to meet. Threads send
    them side by side instead, and since a client belongs to its thread, each thread has one.
    """

    via = "HTTP"

    def __init__(self, address: str) -> None:
        self._address = address
        self._local = threading.local()
        self._opened: list[Any] = []
        self._threads = ThreadPoolExecutor(MAX_CONCURRENCY, thread_name_prefix="http-client")

    @property
    def triton(self) -> Any:
        """The calling thread's `tritonclient.http.InferenceServerClient`."""
        client = getattr(self._local, "client", None)
        if client is None:
            client = triton_http.InferenceServerClient(
                self._address, connection_timeout=REQUEST_TIMEOUT_S, network_timeout=REQUEST_TIMEOUT_S
            )
            self._local.client = client
            self._opened.append(client)
        return client

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str]) -> Tensors:
        answer = self.triton.infer(
            model, _inputs(triton_http, inputs), outputs=_outputs(triton_http, outputs)
        )
        return {name: answer.as_numpy(name) for name in outputs}

    def infer_many(self, model: str, requests: Sequence[Tensors], outputs: Sequence[str]) -> list[Tensors]:
        return list(self._threads.map(lambda inputs: self.infer(model, inputs, outputs), requests))

    def close(self) -> None:
        self._threads.shutdown()
        for client in self._opened:
            client.close()


class GrpcClient:
    """`tritonclient.grpc`."""

    via = "gRPC"

    def __init__(self, address: str) -> None:
        # The server is on this machine: a proxy from the environment cannot reach it.
        self.triton = triton_grpc.InferenceServerClient(address, channel_args=[("grpc.enable_http_proxy", 0)])

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str]) -> Tensors:
        answer = self.triton.infer(
            model,
            _inputs(triton_grpc, inputs),
            outputs=_outputs(triton_grpc, outputs),
            client_timeout=REQUEST_TIMEOUT_S,
        )
        return {name: answer.as_numpy(name) for name in outputs}

    def infer_many(self, model: str, requests: Sequence[Tensors], outputs: Sequence[str]) -> list[Tensors]:
        answers: list[Tensors] = []
        for start in range(0, len(requests), MAX_CONCURRENCY):
            answers += self._wave(model, requests[start : start + MAX_CONCURRENCY], outputs)
        return answers

    def _wave(self, model: str, requests: Sequence[Tensors], outputs: Sequence[str]) -> list[Tensors]:
        done: queue.Queue[tuple[int, Any, Exception | None]] = queue.Queue(maxsize=len(requests))
        for index, inputs in enumerate(requests):
            self.triton.async_infer(
                model,
                _inputs(triton_grpc, inputs),
                lambda result, error, index=index: done.put((index, result, error)),
                outputs=_outputs(triton_grpc, outputs),
                client_timeout=REQUEST_TIMEOUT_S,
            )
        answers: dict[int, Tensors] = {}
        for _ in requests:
            try:
                index, answer, error = done.get(timeout=REQUEST_TIMEOUT_S + 1)
            except queue.Empty:
                raise DeadlineExceeded(f"{model}: no answer over gRPC in {REQUEST_TIMEOUT_S:.0f} s") from None
            if error is not None:
                raise error
            answers[index] = {name: answer.as_numpy(name) for name in outputs}
        return [answers[index] for index in range(len(requests))]

    def close(self) -> None:
        self.triton.close()


def _inputs(module: Any, inputs: Tensors) -> list[Any]:
    tensors = []
    for name, array in inputs.items():
        tensor = module.InferInput(name, list(array.shape), datatype_of(array))
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        tensors.append(tensor)
    return tensors


def _outputs(module: Any, outputs: Sequence[str]) -> list[Any]:
    return [module.InferRequestedOutput(name) for name in outputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the server has executed of one model: rows, batches, and batches by size."""

    rows: int
    batches: int
    by_size: Mapping[int, int]

    def since(self, before: Counts) -> Counts:
        """What was added after `before`."""
        added = {size: count - before.by_size.get(size, 0) for size, count in self.by_size.items()}
        return Counts(
            rows=self.rows - before.rows,
            batches=self.batches - before.batches,
            by_size={size: count for size, count in added.items() if count > 0},
        )

    @property
    def mean(self) -> float:
        """Mean rows a batch; 0 when there was none."""
        return self.rows / self.batches if self.batches else 0.0

    @property
    def largest(self) -> int:
        """Rows of the largest batch; 0 when there was none."""
        return max(self.by_size, default=0)


class Statistics:
    """The server's statistics extension."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    def read(self, model: str) -> Counts:
        """The counts of a model, all versions together."""
        entries = self._client.triton.get_inference_statistics(model)["model_stats"]
        by_size: dict[int, int] = {}
        for entry in entries:
            for batch in entry.get("batch_stats", ()):
                size = int(batch["batch_size"])
                by_size[size] = by_size.get(size, 0) + int(batch["compute_infer"]["count"])
        return Counts(
            rows=sum(int(entry["inference_count"]) for entry in entries),
            batches=sum(int(entry["execution_count"]) for entry in entries),
            by_size=by_size,
        )

    def wait(self, model: str, before: Counts, rows: int) -> Counts:
        """What was executed after `before`, once `rows` rows are counted: workers report with a delay.

        Raises:
            DeadlineExceeded: the rows were not counted in `STATISTICS_TIMEOUT_S`.
        """
        deadline = time.monotonic() + STATISTICS_TIMEOUT_S
        while (added := self.read(model).since(before)).rows < rows:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{model}: statistics count {added.rows} rows after {STATISTICS_TIMEOUT_S:.0f} s; "
                    f"expected {rows}"
                )
            time.sleep(0.05)
        return added
