"""`docs/errors.md` knows every reason, and what it tells clients to do works."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from qinfer.errors import BY_REASON, QInferError, SetupError
from tests.docs.pages import read

PAGE = read("docs/errors.md")


def _row(reason: str, kind: type[QInferError]) -> str:
    status = f"`{kind.grpc_status.name}` ({kind.grpc_status.value})"
    return f"| [`{reason}`](#{reason}) | {kind.http_status} | {status} | {kind.retry.value} |"


def test_the_table_is_that_of_the_code() -> None:
    """Copy what is expected into the page where they differ."""
    found = re.search(r"<!-- reasons -->\n(.*?)<!-- /reasons -->", PAGE, re.DOTALL)
    assert found
    heading = ["| Reason | HTTP | gRPC | Retry |", "|---|---|---|---|"]
    assert found[1].splitlines() == heading + [_row(reason, kind) for reason, kind in BY_REASON.items()]


def test_every_reason_has_its_section() -> None:
    titles = re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)
    assert sorted(titles) == sorted(BY_REASON)
    untold = PAGE.partition("## Before anything is served")[2]
    started = {reason for reason, kind in BY_REASON.items() if issubclass(kind, SetupError)}
    assert set(re.findall(r"^### `(\w+)`$", untold, re.MULTILINE)) == started


def client() -> dict[str, Any]:
    found = re.search(r"<!-- retry -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found
    scope: dict[str, Any] = {}
    exec(found[1], scope)
    return scope


@contextmanager
def answering(*answers: tuple[int, str]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers (status, Retry-After) in turn; its URL, and the keys it was sent."""
    keys: list[str] = []
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            keys.append(self.headers["Idempotency-Key"])
            status, retry_after = left.pop(0)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", keys
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a client has paused; it does not really."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def test_a_client_tries_again_where_that_can_help(pauses: list[float]) -> None:
    with answering((503, "3"), (429, ""), (504, ""), (200, "")) as (url, keys):
        assert client()["ask"](url, b"question", "key") == b"question"
    assert keys == ["key"] * 4
    least = [3, 2, 4]
    assert all(low <= pause <= 1.5 * low for low, pause in zip(least, pauses, strict=True))


@pytest.mark.parametrize("statuses", [[400], [500], [503] * 5], ids=str)
def test_a_client_gives_up_where_it_cannot(pauses: list[float], statuses: list[int]) -> None:
    told = [(status, "1") for status in statuses]
    with answering(*told) as (url, keys), pytest.raises(OSError, match=f"HTTP Error {statuses[-1]}"):
        client()["ask"](url, b"question", "key")
    assert len(keys) == len(statuses)


def test_a_client_looks_for_another_gateway(pauses: list[float]) -> None:
    with answering() as (url, _):
        pass
    with pytest.raises(OSError, match="refused"):
        client()["ask"](url, b"question", "key")
    assert len(pauses) == client()["TRIES"] - 1
