"""A running OTLP receiver, and an environment without the machine's own OpenTelemetry settings."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest
from tests.telemetry.otlp import Collector, handler_for

from qinfer.telemetry.tracing import Tracing, tracing_from_env


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def collector(clean_environment: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A running receiver that the process environment points to."""
    received = Collector()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(received))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    received.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    clean_environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
    yield received
    server.shutdown()
    thread.join(5)
    server.server_close()


@pytest.fixture
def gateway(collector: Collector) -> Iterator[Tracing]:
    tracing = tracing_from_env("gateway", "gw-1")
    assert tracing is not None
    yield tracing
    tracing.close()


@pytest.fixture
def worker(collector: Collector) -> Iterator[Tracing]:
    tracing = tracing_from_env("worker", "wk-1")
    assert tracing is not None
    yield tracing
    tracing.close()
