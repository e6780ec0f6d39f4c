"""Log lines: formats, identity, redaction, and the request log."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from qinfer.telemetry.logs import FIELDS, LogFormat, LogHandler, configure_logging, redact
from qinfer.telemetry.request_log import RequestLog

logger = logging.getLogger("qinfer.test")


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Give the root logger back as it was."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [handler for handler in root.handlers if isinstance(handler, LogHandler)]:
        root.removeHandler(handler)
    root.setLevel(level)


def configured(log_format: LogFormat = "json") -> tuple[LogHandler, io.StringIO]:
    stream = io.StringIO()
    handler = configure_logging(role="worker", instance="wk-1", log_format=log_format, stream=stream)
    return handler, stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://user:secret@h:4222", "nats://***@h:4222"),
        ("nats://s3cr3t@h:4222", "nats://***@h:4222"),
        ("user:secret@h:4222", "***@h:4222"),
        ("nats://a:secret@h1:1,nats://b:secret@h2:2", "nats://***@h1:1,nats://***@h2:2"),
        ("nats://a:se@c/r,e?t@h", "nats://***@h"),
        ('nats://a:secr"e t@h', "nats://***@h"),
        ("https://h/hook?id=7&api_key=secret&x=1", "https://h/hook?id=7&api_key=***&x=1"),
        ("https://h/hook?X-Amz-Signature=secret", "https://h/hook?X-Amz-Signature=***"),
        ("", ""),
    ],
)
def test_redacting_a_url(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_credentials_reach_the_log(log_format: LogFormat) -> None:
    _, stream = configured(log_format)
    url = "nats://user:secret@h:4222"
    logger.warning("connecting to %s and %s", url, {"servers": [url]}, extra={FIELDS: {"url": url}})
    try:
        raise ConnectionError(f"cannot reach {url}")
    except ConnectionError:
        logger.exception("gone")
    text = stream.getvalue()
    assert "secret" not in text
    assert "user" not in text
    assert text.count("***@h:4222") == 4


def test_a_json_line_has_the_processes_identity_and_the_records_fields() -> None:
    _, stream = configured()
    logger.info("loaded %s", "mlp", extra={FIELDS: {"version": 3, "where": object, "level": "forged"}})
    (line,) = lines(stream)
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "qinfer.test",
        "role": "worker",
        "id": "wk-1",
        "message": "loaded mlp",
        "version": 3,
        "where": "<class 'object'>",
    }


def test_an_exception_is_one_json_line() -> None:
    _, stream = configured()
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logger.exception("failed")
    (line,) = lines(stream)
    assert line["message"] == "failed"
    assert "Traceback" in line["exception"]
    assert "first\nsecond" in line["exception"]


def test_what_a_client_sends_cannot_forge_a_text_line() -> None:
    _, stream = configured("text")
    evil = "x\n2026-01-01T00:00:00Z INFO worker/wk-1 root: all is well\x1b[2J\u2028"
    logger.info("model %s", evil, extra={FIELDS: {"model": evil, "empty": ""}})
    (line, rest) = stream.getvalue().split("\n", 1)
    assert rest == ""
    assert line.isprintable()
    assert "worker/wk-1 qinfer.test: model x\\n2026" in line
    assert line.endswith('empty=""')


def test_a_second_configuration_replaces_the_first() -> None:
    _, first = configured()
    _, second = configured()
    logger.info("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1


def test_the_level_applies() -> None:
    stream = io.StringIO()
    configure_logging(role="gateway", log_format="json", level="warning", stream=stream)
    logger.info("quiet")
    logger.warning("loud")
    (line,) = lines(stream)
    assert (line["message"], line["role"]) == ("loud", "gateway")
    assert "id" not in line


def request(log: RequestLog, **changes: Any) -> None:
    fields: dict[str, Any] = {
        "request_id": "r-1",
        "model": "mlp",
        "version": "3",
        "protocol": "http",
        "status": 200,
        "outcome": "ok",
        "rows": 2,
        "queue_us": 120,
        "compute_us": 800,
        "total_us": 1500,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }
    log.record(**{**fields, **changes})


def test_a_request_line_in_json() -> None:
    handler, stream = configured()
    log = RequestLog(handler)
    request(log)
    request(log, status=429, outcome="queue_full", version="", trace_id="", compute_us=0)
    assert log.close()
    first, second = lines(stream)
    assert first.pop("ts").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "qinfer.request",
        "role": "worker",
        "id": "wk-1",
        "request_id": "r-1",
        "model": "mlp",
        "version": "3",
        "protocol": "http",
        "status": 200,
        "outcome": "ok",
        "rows": 2,
        "queue_us": 120,
        "compute_us": 800,
        "total_us": 1500,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }
    assert second["outcome"] == "queue_full"
    assert second["compute_us"] == 0
    assert not {"version", "trace_id"} & set(second)


def test_a_request_line_in_text_cannot_be_forged() -> None:
    handler, stream = configured("text")
    log = RequestLog(handler)
    request(log, request_id='a b" status=500\n')
    assert log.close()
    (line,) = stream.getvalue().splitlines()
    assert r'request_id="a b\" status=500\n" model=mlp' in line
    assert " status=200 " in line


class StuckStream(io.StringIO):
    """A log reader that does not read until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.go_on.wait(10)
        return super().write(text)


def test_a_slow_reader_costs_lines_not_memory_or_time() -> None:
    stream = StuckStream()
    handler = configure_logging(role="gateway", log_format="json", stream=stream)
    log = RequestLog(handler, max_lines=100)
    request(log)
    assert stream.reached.wait(10)
    for _ in range(250):
        request(log)
    assert log.dropped == 150
    assert not log.close(timeout=0.05)
    stream.go_on.set()
    assert log.close(timeout=10)
    requests = [line for line in lines(stream) if line["logger"] == "qinfer.request"]
    assert len(requests) == 101
    assert "150 lines dropped so far" in stream.getvalue()


def test_a_closed_stream_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    handler = LogHandler(stream, "json", {"role": "gateway"})
    log = RequestLog(handler)
    stream.close()
    request(log)
    assert log.close()
    assert log.dropped == 1
    assert "1 lines lost" in caplog.text
