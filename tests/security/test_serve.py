"""`qinfer serve` and `qinfer gateway` before others are let in, and behind keys and TLS: real processes."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from qinfer.cli.security import check, is_loopback
from qinfer.cli.serve.options import ServeOptions
from qinfer.errors import SetupError
from qinfer.proto import METHODS
from tests.helpers.served_models import IDENTITY, copy
from tests.helpers.system import serving
from tests.security.credentials import Authority, Issuer, key_of, write_jwks, write_keys

MODEL = IDENTITY["FP32"]
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2.5]}]})


def qinfer(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QINFER_")}
    return subprocess.run(
        [sys.executable, "-m", "qinfer", *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("files")
    server = authority.issue("127.0.0.1", stem="serve")
    return {
        "keys_file": write_keys(folder / "keys.yaml", alice={"models": ["*"]}),
        "jwt_jwks": write_jwks(folder / "jwks.json", Issuer().jwk()),
        "tls_cert": server.cert,
        "tls_key": server.key,
        "tls_client_ca": authority.ca,
    }


def options(given: dict[str, Any], **more: Any) -> ServeOptions:
    if "jwt_jwks" in given:
        more |= {"jwt_issuer": "i", "jwt_audience": "a"}
    return ServeOptions(**{"repositories": (), "host": "0.0.0.0", **given, **more})


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ((), "asks nobody.*can be read"),
        (("keys_file",), "can be read"),
        (("jwt_jwks",), "can be read"),
        (("tls_cert", "tls_key"), "asks nobody"),
        (("tls_cert", "tls_key", "keys_file"), None),
        (("tls_cert", "tls_key", "jwt_jwks"), None),
        (("tls_cert", "tls_key", "tls_client_ca"), None),
    ],
)
def test_other_hosts_need_keys_and_tls(
    files: dict[str, Any], names: tuple[str, ...], missing: str | None
) -> None:
    given = {name: files[name] for name in names}
    if missing is None:
        check(options(given))
    else:
        with pytest.raises(SetupError, match=missing):
            check(options(given))
    check(options(given, insecure=True))
    check(options(given, host="127.0.0.1"))


@pytest.mark.parametrize(
    ("names", "more", "told"),
    [
        (("tls_cert",), {}, "--tls-cert and --tls-key"),
        (("tls_key",), {}, "--tls-cert and --tls-key"),
        (("tls_client_ca",), {}, "--tls-client-ca"),
        ((), {"jwt_issuer": "i"}, "--jwt-jwks"),
        (("jwt_jwks",), {"jwt_audience": ""}, "--jwt-audience"),
    ],
)
def test_options_that_do_not_go_alone(
    files: dict[str, Any], names: tuple[str, ...], more: dict[str, str], told: str
) -> None:
    told_options = {name: files[name] for name in names} | more
    with pytest.raises(SetupError, match=told):
        check(ServeOptions(repositories=(), **told_options))


def test_every_role_refuses(served_repository: Path) -> None:
    """The commands themselves, with exit status 2; `gateway` before it looks for its broker."""
    for command in (
        ("serve", str(served_repository), "--host", "0.0.0.0"),
        ("serve", str(served_repository), "--host", "::"),
        ("gateway", "--nats", "nats://127.0.0.1:1", "--host", "0.0.0.0"),
    ):
        done = qinfer(*command)
        assert done.returncode == 2, done
        assert "--insecure" in done.stderr


def test_what_is_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")
    assert not is_loopback("")
    assert not is_loopback("no.such.host.invalid")


def test_files_of_nats_without_a_broker_of_ones_own(served_repository: Path, authority: Authority) -> None:
    done = qinfer("serve", str(served_repository), "--nats-ca", str(authority.ca))
    assert done.returncode == 2
    assert "--nats-ca: expected --nats" in done.stderr


def test_a_keys_file_that_is_wrong_is_told_before_anything_starts(
    served_repository: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "keys.yaml"
    wrong.write_text("keys: 7")
    done = qinfer("serve", str(served_repository), "--keys-file", str(wrong))
    assert done.returncode == 2
    assert str(wrong) in done.stderr
    assert "starting" not in done.stderr


def test_a_server_that_others_can_reach(
    served_repository: Path, tmp_path: Path, files: dict[str, Any], authority: Authority
) -> None:
    """On all addresses, with keys and TLS: it becomes ready, is asked over both protocols, and has no secrets
    in its log, its command lines or what it shows."""
    repository = copy(served_repository, tmp_path / "models", MODEL)
    arguments = [
        f"--keys-file={files['keys_file']}",
        f"--tls-cert={files['tls_cert']}",
        f"--tls-key={files['tls_key']}",
        "--host=0.0.0.0",
        "--log-requests",
        "--log-level=debug",
    ]
    key = key_of("alice")
    with serving(repository, *arguments) as system:
        url = f"https://127.0.0.1:{system.http_port}"
        trust = {"SSL_CERT_FILE": str(authority.ca)}
        asked = qinfer("infer", MODEL, "--input", "x=[[2.5]]", "--url", url, QINFER_API_KEY=key, **trust)
        assert asked.returncode == 0, asked
        assert "[[2.5]]" in asked.stdout
        refused = qinfer("models", "--url", url, QINFER_API_KEY="wrong", **trust)
        assert refused.returncode == 1
        assert "not known" in refused.stderr
        doubted = qinfer("models", "--url", url, QINFER_API_KEY=key)  # nobody vouches for it
        assert doubted.returncode == 1
        assert "SSL_CERT_FILE" in doubted.stderr
        plain = qinfer("models", "--url", url.replace("https", "http"), QINFER_API_KEY=key)
        assert plain.returncode == 1
        assert "does it expect https://?" in plain.stderr
        context = ssl.create_default_context(cafile=str(authority.ca))
        connection = http.client.HTTPSConnection("127.0.0.1", system.http_port, context=context, timeout=20)
        for headers, status in (({}, 401), ({"Authorization": f"Bearer {key}"}, 200)):
            connection.request("POST", f"/v2/models/{MODEL}/infer", BODY, headers)
            response = connection.getresponse()
            response.read()
            assert response.status == status
        connection.close()
        assert asyncio.run(_ask_grpc(system.grpc, authority, key)) is grpc.StatusCode.OK
        log = system.log.read_text()
        commands = "".join(
            path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline") if _belongs(path, system.pid)
        )
    assert "POST" in log or "qinfer.request" in log
    for secret in (key, "wrong", "PRIVATE KEY"):
        assert secret not in log
        assert secret not in commands
    assert "gateway" in commands


async def _ask_grpc(address: str, authority: Authority, key: str) -> grpc.StatusCode:
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    async with grpc.aio.secure_channel(address, credentials) as channel:
        call = channel.unary_unary(METHODS["ServerMetadata"].path)(
            b"", metadata=(("x-api-key", key),), timeout=20
        )
        await call
        return await call.code()


def _belongs(path: Path, pid: int) -> bool:
    try:
        status = (path.parent / "status").read_text()
    except OSError:
        return False
    found = re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)
    return found is not None and int(found[1]) == pid


def test_mutual_tls_alone(
    served_repository: Path, tmp_path: Path, files: dict[str, Any], authority: Authority
) -> None:
    """The supervisor has no certificate, and the server becomes ready all the same."""
    repository = copy(served_repository, tmp_path / "models", MODEL)
    arguments = [
        f"--{name.replace('_', '-')}={files[name]}" for name in ("tls_cert", "tls_key", "tls_client_ca")
    ]
    client = authority.issue("client.test", stem="client")
    with serving(repository, *arguments) as system:
        context = ssl.create_default_context(cafile=str(authority.ca))
        assert _answer_without_certificate(system.http_port, context) == b""
        context.load_cert_chain(client.cert, client.key)
        connection = http.client.HTTPSConnection("127.0.0.1", system.http_port, context=context, timeout=20)
        connection.request("POST", f"/v2/models/{MODEL}/infer", BODY)
        assert connection.getresponse().status == 200
        connection.close()


def _answer_without_certificate(port: int, context: ssl.SSLContext) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 20) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
                encrypted.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n")
                return encrypted.recv(1000)
        except (ssl.SSLError, ConnectionError):
            return b""
