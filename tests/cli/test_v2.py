"""Questions over HTTP, against a small real server that answers with prepared bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


def test_nonsense_from_the_server_is_its_error() -> None:
    with server() as prepared:
        prepared.body = b"nonsense"
        with pytest.raises(InternalError):
            V2Client(prepared.url).models()


def test_names_are_quoted() -> None:
    with server() as prepared:
        V2Client(prepared.url).metadata("a/b c")
    assert prepared.path == "/v2/models/a%2Fb%20c"


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
