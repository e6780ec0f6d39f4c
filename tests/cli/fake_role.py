"""Stands in for the `qinfer` command at the seam of the supervisor: a gateway or worker without a model.

It takes the real command lines, listens where a role listens, registers as a worker does, and writes what
happens to it into a journal. The environment tells it how to misbehave: FAKE_WORKER_EXIT (status to exit
with at once), FAKE_DRAIN (seconds a SIGTERM takes), FAKE_STATES (JSON: model to state; a worker registers
when none is LOADING), FAKE_NEVER_READY (role that never says it is ready). Workers that start when the
journal has a neighbour `.broken` cannot load any model, for the reason in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, start_http_server

from qinfer.bus import connect
from qinfer.lifecycle import READY, notify
from qinfer.registry import WorkerRecord

STATES = json.loads(os.environ["FAKE_STATES"])


def note(line: str) -> None:
    with Path(os.environ["FAKE_JOURNAL"]).open("a") as journal:
        journal.write(f"{line}\n")


def option(name: str) -> int:
    return next(int(given.partition("=")[2]) for given in sys.argv if given.startswith(f"{name}="))


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v2/models":
            models = [{"name": name, "versions": ["1"], "state": state} for name, state in STATES.items()]
            self._answer(200, {"models": models})
        else:
            self._answer(200 if set(STATES.values()) == {"READY"} else 400, {})

    def _answer(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


class SharedPort(ThreadingHTTPServer):
    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


def broken() -> str:
    """Why no model can be loaded; empty if they can."""
    reason = Path(os.environ["FAKE_JOURNAL"] + ".broken")
    return reason.read_text() if reason.exists() else ""


async def register() -> None:
    models = {name: ["1"] for name, state in STATES.items() if state == "READY"}
    problems: dict[str, str] = {}
    if reason := broken():
        models, problems = {}, dict.fromkeys(models, reason)
    worker = WorkerRecord(
        id=f"fake-{os.getpid()}",
        host=socket.gethostname(),
        pid=os.getpid(),
        models=models,
        problems=problems,
    )
    bus = connect(os.environ["QINFER_NATS"])
    await bus.start()
    await bus.put(bus.names.workers_bucket, worker.id, msgspec.msgpack.encode(worker))
    await bus.close()


def main() -> None:
    role = sys.argv[1]
    stopped = threading.Event()
    asked: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: (asked.append(signal.Signals(number).name), stopped.set()))
    if role == "worker" and "FAKE_WORKER_EXIT" in os.environ:
        raise SystemExit(int(os.environ["FAKE_WORKER_EXIT"]))
    if option("--metrics-port") > 0:
        registry = CollectorRegistry()
        Counter("fake_work", "Work done", ["role"], registry=registry).labels(role).inc(3)
        start_http_server(option("--metrics-port"), "127.0.0.1", registry)
    front = SharedPort(("127.0.0.1", option("--http-port")), Front) if role == "gateway" else None
    if front is not None:
        threading.Thread(target=front.serve_forever, daemon=True).start()
    note(f"start {role} {os.getpid()}")
    if role == "worker" and "LOADING" not in STATES.values():
        asyncio.run(register())
    if os.environ.get("FAKE_NEVER_READY") != role:
        notify(READY)
    stopped.wait()
    note(f"told {role} {asked[0]}")
    threading.Event().wait(float(os.environ.get("FAKE_DRAIN", "0")))
    note(f"stop {role} {os.getpid()}")


main()
