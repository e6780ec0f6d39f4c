"""`qinfer serve` as a child process: started on free ports, waited for, stopped cleanly."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from qinfer.errors import InternalError, Unavailable

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 45.0
_PROBE_TIMEOUT_S = 2.0
_PROBE_PAUSE_S = 0.1
_LOG_LINES = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the server listens, as "host:port"."""

    http: str
    grpc: str
    metrics: str


@contextmanager
def serving(repository: Path, models: Sequence[str], log: Path) -> Iterator[Endpoints]:
    """Serve some models of a repository for as long as the block runs.

    Args:
        repository: the model repository.
        models: names of the models to load.
        log: file for what the server writes.

    Raises:
        Unavailable: it was not ready in `READY_TIMEOUT_S`, or ended before.
        InternalError: it did not stop within `STOP_TIMEOUT_S` of Ctrl-C, or not with status 0.
    """
    http_port, grpc_port, metrics_port = free_ports(3)
    endpoints = Endpoints(
        http=f"127.0.0.1:{http_port}", grpc=f"127.0.0.1:{grpc_port}", metrics=f"127.0.0.1:{metrics_port}"
    )
    command = [
        sys.executable, "-m", "qinfer", "serve", str(repository),
        "--http-port", str(http_port), "--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port),
        *(part for model in models for part in ("--model", model)),
    ]  # fmt: skip
    with log.open("wb") as output:
        # A session of its own: Ctrl-C at the terminal reaches only us, and we stop it once.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_until_ready(process, http_port, log)
        yield endpoints
    except BaseException:
        _end(process)
        raise
    stop(process, log)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on, all different."""
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in bound]


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server answers `GET /v2/health/ready` with 200.

    Raises:
        Unavailable: it ended, or the time was up.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _ready(port):
        if (status := process.poll()) is not None:
            raise Unavailable(f"qinfer serve ended with status {status} before it was ready:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise Unavailable(f"qinfer serve was not ready after {READY_TIMEOUT_S:.0f} s:\n{tail(log)}")
        time.sleep(_PROBE_PAUSE_S)


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def stop(process: subprocess.Popen[bytes], log: Path) -> None:
    """Stop the server as Ctrl-C does and expect it to end well.

    Raises:
        InternalError: it took longer than `STOP_TIMEOUT_S`, or its status was not 0.
    """
    process.send_signal(signal.SIGINT)
    try:
        status = process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _end(process)
        raise InternalError(
            f"qinfer serve ran on {STOP_TIMEOUT_S:.0f} s after Ctrl-C:\n{tail(log)}"
        ) from None
    if status != 0:
        raise InternalError(f"qinfer serve ended with status {status} after Ctrl-C; expected 0:\n{tail(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server whatever it takes, its children first given the chance to drain."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tail(log: Path) -> str:
    """The last lines of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
