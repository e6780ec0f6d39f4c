"""The HTTP client, against a small real server that answers with prepared bytes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from qinfer.cli.serve.ports import free_port
from qinfer.cli.v2 import V2Client
from qinfer.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    NoWorker,
    QInferError,
    QueueFull,
    Unavailable,
)
from qinfer.message import Tensor


class Prepared:
    """What the server answers, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b"{}"
        self.path = ""
        self.asked: dict[str, str] = {}
        self.sent = b""
        self.release = threading.Event()
        self.release.set()


@contextmanager
def server() -> Iterator[Prepared]:
    prepared = Prepared()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            prepared.path, prepared.asked = self.path, dict(self.headers)
            prepared.sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            prepared.release.wait(30)
            self.send_response(prepared.status)
            for name, value in prepared.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError):  # the client may not have waited
                self.wfile.write(prepared.body)

        do_POST = do_GET  # noqa: N815 (the base class calls it so)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        prepared.url = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield prepared
        finally:
            prepared.release.set()
            http.shutdown()
            thread.join()


X = Tensor.from_numpy("x", np.array([[1, 2]], "<f4"))


def test_infer_sends_and_reads_binary_tensors() -> None:
    header = json.dumps(
        {
            "model_name": "mlp",
            "model_version": "3",
            "parameters": {"note": 1},
            "outputs": [
                {"name": "a", "datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": 8}},
                {"name": "j", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2]},
                {"name": "s", "datatype": "BYTES", "shape": [2], "data": ["é", ""]},
                {"name": "b", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
            ],
        }
    ).encode()
    with server() as prepared:
        prepared.headers = {"Inference-Header-Content-Length": str(len(header))}
        prepared.body = header + np.array([7, -1], "<i4").tobytes() + b"\x01\0\0\0z"
        answer = V2Client(prepared.url).infer(
            "a/b c", [X], version="3", outputs=["a"], parameters={"timeout": 5}
        )
    assert (answer.model, answer.version, answer.parameters) == ("mlp", "3", {"note": 1})
    assert {tensor.name: tensor.numpy().tolist() for tensor in answer.outputs} == {
        "a": [7, -1],
        "j": [[0.5, 2.0]],
        "s": ["é".encode(), b""],
        "b": [b"z"],
    }
    assert prepared.path == "/v2/models/a%2Fb%20c/versions/3/infer"
    length = int(prepared.asked["Inference-Header-Content-Length"])
    assert json.loads(prepared.sent[:length]) == {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}],
        "outputs": [{"name": "a", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 5, "binary_data_output": True},
    }
    assert prepared.sent[length:] == np.array([[1, 2]], "<f4").tobytes()


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "message"),
    [
        (404, {}, b'{"error": "no model"}', NotFound, "no model"),
        (503, {"X-QInfer-Reason": "no_worker"}, b'{"error": "nobody"}', NoWorker, "nobody"),
        (429, {"Retry-After": "3"}, b'{"error": "full"}', QueueFull, "full"),
        (418, {}, b"<html>teapot</html>", InternalError, "<html>teapot</html>"),
        (500, {}, b"", InternalError, "HTTP status 500"),
    ],
)
def test_errors_are_rebuilt(
    status: int, headers: dict[str, str], body: bytes, kind: type[QInferError], message: str
) -> None:
    with server() as prepared:
        prepared.status, prepared.headers, prepared.body = status, headers, body
        with pytest.raises(kind) as caught:
            V2Client(prepared.url).metadata("m")
    assert type(caught.value) is kind
    assert caught.value.message == message
    assert caught.value.retry_after == (3.0 if status == 429 else None)


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"[]",
        b'{"outputs": [{"name": "y"}]}',
        b'{"outputs": 3}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [3], "data": [1]}]}',
    ],
)
def test_nonsense_from_the_server_is_its_error(body: bytes) -> None:
    with server() as prepared:
        prepared.body = body
        with pytest.raises(InternalError):
            V2Client(prepared.url).infer("m", [X])


def test_nobody_there() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=f"no server answers at {url}: "):
        V2Client(url).is_ready()


def test_no_answer_in_time() -> None:
    with server() as prepared:
        prepared.release.clear()
        with pytest.raises(DeadlineExceeded, match="did not answer within"):
            V2Client(prepared.url, timeout=0.05).is_ready()


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(InvalidRequest, match="expected http://HOST:PORT"):
        V2Client(url)


def test_a_url_may_lack_its_scheme_and_have_a_path() -> None:
    with server() as prepared:
        assert V2Client(prepared.url.removeprefix("http://") + "/prefix/").is_ready()
        assert prepared.path == "/prefix/v2/health/ready"
