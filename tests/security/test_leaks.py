"""Credentials go nowhere: not into logs, traces, metrics, messages, model inputs or errors."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from qinfer.proto import METHODS
from qinfer.telemetry.logs import configure_logging
from tests.helpers import http
from tests.helpers.http import floats, get, infer, tensor
from tests.helpers.served_models import IDENTITY, SAYS_ALL
from tests.security.conftest import MakeFleet
from tests.security.credentials import AUDIENCE, ISSUER, Issuer, bearer, key_of, write_jwks, write_keys

MODEL = IDENTITY["FP32"]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that is logged, requests included."""
    stream = io.StringIO()
    handler = configure_logging(role="test", level="debug", stream=stream)
    yield stream
    logging.getLogger().removeHandler(handler)


async def test_credentials_go_nowhere(
    make_fleet: MakeFleet,
    tmp_path: Path,
    log: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    issuer = Issuer()
    token, key, wrong = issuer.token(), key_of("alice"), "qk_this-one-is-wrong"
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    # By itself it writes to what was standard output when it was imported, in whatever test that was.
    exporter = partial(ConsoleSpanExporter, out=sys.stdout)
    monkeypatch.setattr("qinfer.telemetry.provider._exporter_class", lambda *_: exporter)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    options = {
        "keys_file": write_keys(tmp_path / "keys.yaml", alice={"models": ["*"]}),
        "jwt_jwks": write_jwks(tmp_path / "jwks.json", issuer.jwk()),
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
    }
    said = []
    async with make_fleet(log_requests=True, grpc_port=0, metrics_port=0, **options) as made:
        await made.add_worker(MODEL, SAYS_ALL)
        wire = _listen(made.dispatcher)
        secrets = (token, key, wrong)
        for secret in secrets:
            for header in (bearer(secret), f"x-api-key: {secret}"):
                async with http.connect(made.port) as connection:
                    body = {"inputs": [tensor([1], "INT32", [1, 1])], "id": "mine"}
                    said.append((await connection.ask(infer(SAYS_ALL, body, header))).body)
                for request in (
                    infer(MODEL, floats(1.0), header),
                    infer(MODEL, b"not json", header),
                    get("/v2/models/stats", header),
                    get("/v2/nowhere", header),
                    b"GET /v2 HTTP/1.1\r\n" + header.encode() + b"\r\nbad header\r\n\r\n",
                ):
                    async with http.connect(made.port) as connection:
                        said.append((await connection.ask(request)).body)
            await _over_grpc(made, secret, said)
    found = {
        "answers": b"".join(said).decode(),
        "log": log.getvalue(),
        "messages": b"".join(wire).decode("latin-1"),
        "traces": capsys.readouterr().out,
    }
    assert "outcome=unauthenticated" in found["log"]  # the refused are in it, too
    assert "request_id=mine" in found["log"]
    assert "mine" in found["messages"]
    assert "POST /v2/models" in found["traces"]
    for secret in secrets:
        for place, text in found.items():
            assert secret not in text, place
            assert secret.split(".")[-1] not in text, place


def _listen(dispatcher: Any) -> list[bytes]:
    """All that the gateway says to workers."""
    frames: list[bytes] = []
    bus = dispatcher._bus
    publish = bus.publish

    def spy(model: str, version: str, frame: bytes, refused: Any) -> None:
        frames.append(bytes(frame))
        publish(model, version, frame, refused)

    bus.publish = spy
    return frames


async def _over_grpc(made: Any, secret: str, said: list[bytes]) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{made.gateway.grpc.port}") as channel:
        for name in ("ServerMetadata", "ModelInfer", "RepositoryIndex"):
            rpc = channel.unary_unary(METHODS[name].path)
            try:
                said.append(await rpc(b"", metadata=(("authorization", f"Bearer {secret}"),), timeout=20))
            except grpc.aio.AioRpcError as error:
                said.append(str(error.details()).encode())
                said += [str(value).encode() for _, value in error.trailing_metadata() or ()]
