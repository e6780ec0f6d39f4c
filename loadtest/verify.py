"""Checking a server's answers against onnxruntime's, over each wire, before it is measured."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from loadtest.mlp import INPUT_NAME, MODEL_NAME, OUTPUT_NAME, Floats, build_mlp, example_rows, reference
from loadtest.peers.base import HTTP_SECONDS, post
from qinfer.errors import ModelFailed, SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from loadtest.clients import Wire
    from loadtest.server import Server

DISTINCT_REQUESTS = 32
"""How many different rows the load consists of."""


def requests_file(server: Server) -> Path:
    """Where `verify` leaves the JSON request bodies, one a line."""
    return server.folder / "requests.txt"


def verify(server: Server, wires: Iterable[Wire]) -> None:
    """Send the load's rows over each wire, first one alone, then all at once so that they share batches.

    Raises:
        ModelFailed: an answer is wrong or missing.
        SetupError: `tritonclient`, which wires other than JSON are checked with, is not installed.
    """
    rows = example_rows(DISTINCT_REQUESTS)
    requests_file(server).write_bytes(b"".join(server.peer.body(row) + b"\n" for row in rows))
    build_mlp(server.folder / "reference.onnx")
    expected = reference(server.folder / "reference.onnx", rows)
    for wire in wires:
        ask = _json(server) if wire == "http-json" else _tritonclient(server, wire)
        _check(server, wire, 0, ask(rows[0]), expected[0])
        with ThreadPoolExecutor(len(rows)) as pool:
            for index, answer in enumerate(pool.map(ask, rows)):
                _check(server, wire, index, answer, expected[index])


def _check(server: Server, wire: Wire, index: int, answer: Floats, expected: Floats) -> None:
    if answer.shape != expected.shape or not np.allclose(answer, expected, rtol=1e-4, atol=1e-5):
        raise ModelFailed(
            f"{server.peer.name}, {wire}: wrong answer to example row {index}: {answer.tolist()}; "
            f"expected {expected.tolist()}"
        )


def _json(server: Server) -> Callable[[Floats], Floats]:
    def ask(row: Floats) -> Floats:
        try:
            return server.peer.answer(post(server.infer_url, server.peer.body(row)))
        except OSError as error:
            raise ModelFailed(f"{server.peer.name}: {server.infer_url}: {error}; see {server.log}") from error

    return ask


def _tritonclient(server: Server, wire: Wire) -> Callable[[Floats], Floats]:
    """Asks with Triton's own client library, as `perf_analyzer` does with its C++ sister."""
    try:
        import tritonclient.grpc  # type: ignore[import-untyped]
        import tritonclient.http  # type: ignore[import-untyped]
        from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]
    except ImportError as error:
        raise SetupError(
            f"answers over {wire} are checked with tritonclient, which cannot be imported ({error}): "
            f"pip install 'qinfer[dev]'"
        ) from None
    module = tritonclient.grpc if wire == "grpc" else tritonclient.http
    port = server.ports.grpc if wire == "grpc" else server.ports.http

    def ask(row: Floats) -> Floats:
        data = module.InferInput(INPUT_NAME, [1, len(row)], "FP32")
        data.set_data_from_numpy(row[None])
        try:
            with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
                timeout = {"client_timeout": HTTP_SECONDS} if wire == "grpc" else {}
                answer: Floats = client.infer(MODEL_NAME, [data], **timeout).as_numpy(OUTPUT_NAME)
        except (InferenceServerException, OSError) as error:
            raise ModelFailed(f"{server.peer.name}, {wire}: {error}; see {server.log}") from error
        return answer.reshape(-1)

    return ask
