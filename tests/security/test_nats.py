"""Connections to a broker that asks who is there: real nats-servers with TLS, nkeys and least privileges."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import nkeys
import pytest

from qinfer.bus import connect
from qinfer.bus.nats import connection as nats_connection
from qinfer.bus.security import INBOX_VARIABLE, VARIABLES, NatsSecurity
from qinfer.cli.doctor import broker as doctor
from qinfer.cli.doctor.findings import Status
from qinfer.errors import BusUnavailable, SetupError
from qinfer.message import CancelFrame, encode
from qinfer.naming import Names
from qinfer_gateway.options import GatewayOptions
from qinfer_gateway.server import Gateway
from qinfer_workers.options import WorkerOptions
from qinfer_workers.worker import Worker
from tests.docs.pages import blocks, read
from tests.helpers import http
from tests.helpers.http import floats, get, infer, post
from tests.helpers.served_models import GATED, IDENTITY
from tests.helpers.waiting import PATIENCE, eventually
from tests.security.broker import HOST, Broker, User, broker, make_user
from tests.security.credentials import Authority

MODEL = IDENTITY["FP32"]
FLOAT = json.dumps(floats(1.0)).encode()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES.values(), INBOX_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(nats_connection, "CONNECT_TIMEOUT", 1.0)


def tls(authority: Authority, *, verify: bool) -> str:
    server = authority.issue(HOST)
    return f"""
tls {{
  cert_file: {json.dumps(str(server.cert))}
  key_file: {json.dumps(str(server.key))}
  ca_file: {json.dumps(str(authority.ca))}
  verify: {str(verify).lower()}
}}"""


async def reaches(url: str, security: NatsSecurity) -> bool:
    """Whether a role gets through to the broker, and its queues and buckets."""
    bus = connect(url, security=security)
    await bus.start()
    try:
        seen: list[str] = []
        await bus.watch(bus.names.models_bucket, lambda key, _: seen.append(key))
        await bus.put(bus.names.models_bucket, "key", b"value")
        await eventually(lambda: "key" in seen, "the bucket tells of it")
        return True
    finally:
        await bus.close()


async def test_tls(tmp_path: Path, authority: Authority, stranger: Authority) -> None:
    async with broker(tmp_path, tls(authority, verify=False)) as running:
        for scheme in ("nats", "tls"):
            assert await reaches(f"{scheme}://{HOST}:{running.port}", NatsSecurity(ca=authority.ca))
        for security in (NatsSecurity(ca=stranger.ca), NatsSecurity()):
            with pytest.raises(BusUnavailable, match="certificate verify failed"):
                await reaches(f"nats://{HOST}:{running.port}", security)
        with pytest.raises(BusUnavailable, match="certificate verify failed"):  # it is made for another name
            await reaches(f"nats://localhost:{running.port}", NatsSecurity(ca=authority.ca))


async def test_mutual_tls(tmp_path: Path, authority: Authority, stranger: Authority) -> None:
    good, bad = authority.issue("worker.test"), stranger.issue("worker.test")
    async with broker(tmp_path, tls(authority, verify=True)) as running:
        url = f"nats://{HOST}:{running.port}"
        assert await reaches(url, NatsSecurity(ca=authority.ca, cert=good.cert, key=good.key))
        for pem in (bad, None):
            cert, key = (pem.cert, pem.key) if pem else (None, None)
            with pytest.raises(BusUnavailable):
                await reaches(url, NatsSecurity(ca=authority.ca, cert=cert, key=key))


async def test_a_renewed_client_certificate_is_used(tmp_path: Path, authority: Authority) -> None:
    """The one that is there when the connection is made anew, not the one of the start."""
    first, second = authority.issue("first.test"), authority.issue("second.test")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    folder = tmp_path / "broker"
    user = 'authorization { users: [{ user: "first.test" }, { user: "second.test" }] }'
    settings = tls(authority, verify=True).replace("verify: true", "verify_and_map: true")
    async with broker(folder, f"{settings}\n{user}\ndebug: true") as running:
        cert.write_bytes(first.cert.read_bytes())
        key.write_bytes(first.key.read_bytes())
        bus: Any = connect(
            f"nats://{HOST}:{running.port}", security=NatsSecurity(ca=authority.ca, cert=cert, key=key)
        )
        await bus.start()
        try:
            cert.write_bytes(second.cert.read_bytes())
            key.write_bytes(second.key.read_bytes())
            await bus._connection.client.force_reconnect()
            await eventually(lambda: "first.test" in running.log.read_text(), "the first was used")
            await eventually(lambda: "second.test" in running.log.read_text(), "the second is used")
        finally:
            await bus.close()


async def test_no_credentials_over_a_line_that_should_be_encrypted(authority: Authority) -> None:
    """Whoever sits on the line can say that the broker speaks no TLS. Nothing is to be told to them."""
    heard = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": "2.10.0", "headers": True, "max_payload": 1 << 20, "nonce": "n"}
        writer.write(b"INFO " + json.dumps({**info, "auth_required": True}).encode() + b"\r\n")
        heard.append(await reader.read(10_000))
        writer.close()

    server = await asyncio.start_server(pretend, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        for url, security in (
            (f"tls://user:secret@{HOST}:{port}", NatsSecurity()),
            (f"nats://user:secret@{HOST}:{port}", NatsSecurity(ca=authority.ca)),
        ):
            with pytest.raises(BusUnavailable, match="speaks no TLS") as refused:
                await reaches(url, security)
            assert "secret" not in str(refused.value)
        assert heard
        assert set(heard) == {b""}
        heard.clear()
        with pytest.raises(BusUnavailable):  # the test would hear it
            await reaches(f"nats://user:secret@{HOST}:{port}", NatsSecurity())
        assert any(b"secret" in text for text in heard)


async def test_nkeys_and_credentials(tmp_path: Path) -> None:
    good, other = make_user(tmp_path, "good"), make_user(tmp_path, "other")
    folder = tmp_path / "broker"
    async with broker(folder, f"authorization {{ users: [{{ nkey: {good.public} }}] }}") as running:
        url = f"nats://{HOST}:{running.port}"
        assert await reaches(url, NatsSecurity(nkey=good.seed))
        for security in (NatsSecurity(nkey=other.seed), NatsSecurity()):
            with pytest.raises(BusUnavailable, match=r"(?i)authorization"):
                await reaches(url, security)


async def test_the_doctor_shows_its_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = make_user(tmp_path, "doctor")
    async with broker(
        tmp_path / "broker", f"authorization {{ users: [{{ nkey: {user.public} }}] }}"
    ) as running:
        url = f"nats://{HOST}:{running.port}"
        (refused,) = [finding async for finding in doctor.check(url)]
        assert refused.status is Status.FAIL
        monkeypatch.setenv(VARIABLES["nkey"], str(user.seed))
        assert [finding.status async for finding in doctor.check(url)] == [Status.OK] * 3
        monkeypatch.setenv(VARIABLES["nkey"], "/nowhere")
        (wrong,) = [finding async for finding in doctor.check(url)]
        assert "/nowhere" in wrong.detail


async def test_credentials_files(tmp_path: Path) -> None:
    """As `nsc` makes them: operator, account and user, each a JWT signed by the one above it."""
    operator, account, system, user = (nkeys.encode_seed(os.urandom(32), prefix) for prefix in _PREFIXES)
    system_token = _nats_jwt(operator, system, "account", {"limits": {"subs": -1, "conn": -1}})
    account_token = _nats_jwt(operator, account, "account", {"limits": _LIMITS})
    user_token = _nats_jwt(account, user, "user", {"subs": -1, "data": -1, "payload": -1})
    creds = tmp_path / "user.creds"
    creds.touch(0o600)
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{bytes(user).decode()}\n------END USER NKEY SEED------\n"
    )
    folder = tmp_path / "broker"
    settings = (
        f"operator: {_nats_jwt(operator, operator, 'operator', {})}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {_public(account)}: {account_token}, {_public(system)}: {system_token} }}\n"
        f"system_account: {_public(system)}"
    )
    async with broker(folder, settings) as running:
        url = f"nats://{HOST}:{running.port}"
        assert await reaches(url, NatsSecurity(creds=creds))
        with pytest.raises(BusUnavailable, match=r"(?i)authorization"):
            await reaches(url, NatsSecurity())


_PREFIXES = (
    nkeys.PREFIX_BYTE_OPERATOR,
    nkeys.PREFIX_BYTE_ACCOUNT,
    nkeys.PREFIX_BYTE_ACCOUNT,
    nkeys.PREFIX_BYTE_USER,
)
_LIMITS = {
    **dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1),
    **dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1),
    "wildcards": True,
}


def _public(seed: bytes) -> str:
    return nkeys.from_seed(bytearray(seed)).public_key.decode()


def _nats_jwt(issuer: bytes, subject: bytes, kind: str, claims: Mapping[str, Any]) -> str:
    import base64
    import hashlib

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    body = {
        "iat": 1,
        "iss": _public(issuer),
        "sub": _public(subject),
        "name": kind,
        "nats": {**claims, "type": kind, "version": 2},
    }
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).rstrip(b"=").decode()
    head = part(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    signed = f"{head}.{part(json.dumps(body).encode())}"
    return f"{signed}.{part(nkeys.from_seed(bytearray(issuer)).sign(signed.encode()))}"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"cert": "/nowhere"}, "only one"),
        ({"cert": "/nowhere", "key": "/nowhere"}, "QINFER_NATS_CERT.*no file"),
        ({"ca": "/nowhere"}, "QINFER_NATS_CA.*no file"),
        ({"creds": "/nowhere"}, "QINFER_NATS_CREDS.*no file"),
        ({"nkey": "/nowhere"}, "QINFER_NATS_NKEY.*no file"),
        ({"nkey": __file__, "creds": __file__}, "both"),
        ({"ca": __file__}, "PEM"),
        ({"cert": __file__, "key": __file__}, "PEM"),
    ],
)
async def test_files_that_cannot_be_used(fields: dict[str, str], told: str) -> None:
    security = NatsSecurity(**{name: Path(value) for name, value in fields.items()})
    with pytest.raises(SetupError, match=told):
        await reaches("nats://127.0.0.1:1", security)


def test_the_environment_names_the_files() -> None:
    environment = {variable: f"/{name}" for name, variable in VARIABLES.items()}
    made = NatsSecurity.from_environment({**environment, INBOX_VARIABLE: "_INBOX.me"})
    assert {name: str(getattr(made, name)) for name in VARIABLES} == {name: f"/{name}" for name in VARIABLES}
    assert made.inbox == "_INBOX.me"
    assert NatsSecurity.from_environment(dict.fromkeys(environment, "")) == NatsSecurity()
    for prefix in ("inbox", "_INBOX.", "_INBOX.*", "_INBOX.a b", "$JS.API"):
        with pytest.raises(SetupError, match=INBOX_VARIABLE):
            NatsSecurity(inbox=prefix).options()


# Least privileges, as docs/security.md has them


@pytest.fixture
def users(tmp_path: Path) -> dict[str, User]:
    return {role: make_user(tmp_path, role) for role in ("gateway", "worker", "client", "operator")}


@asynccontextmanager
async def documented_broker(folder: Path, users: Mapping[str, User]) -> AsyncIterator[Broker]:
    (text,) = [block for block in blocks(read("docs/security.md"), "") if "UGATEWAY" in block]
    for role, user in users.items():
        assert f"U{role.upper()}" in text
        text = text.replace(f"U{role.upper()}", user.public)
    async with broker(folder, text) as running:
        yield running


def environment_of(role: str, users: Mapping[str, User]) -> dict[str, str]:
    return {VARIABLES["nkey"]: str(users[role].seed), INBOX_VARIABLE: f"_INBOX.{role}"}


@pytest.fixture
def as_role(users: dict[str, User], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def become(role: str) -> None:
        for variable, value in environment_of(role, users).items():
            monkeypatch.setenv(variable, value)

    return become


async def run(running: Broker, environment: Mapping[str, str], *arguments: str) -> str:
    """A command of a role; returns what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "qinfer", *arguments),
        env={**os.environ, "QINFER_NATS": f"nats://{HOST}:{running.port}", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (out + err).decode()
    return out.decode()


async def test_least_privileges_suffice(
    tmp_path: Path, users: dict[str, User], as_role: Any, served_repository: Path
) -> None:
    """A fleet at work, with all that uses the broker; and not one thing that is refused."""
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(documented_broker(tmp_path / "broker", users))
        url = f"nats://{HOST}:{running.port}"
        as_role("gateway")
        gateway = Gateway(GatewayOptions(nats=url, http_port=0, grpc_port=-1))
        stack.push_async_callback(gateway.stop)
        await gateway.start()
        as_role("worker")
        bus = connect(url)
        await bus.start()
        stack.push_async_callback(bus.close)
        worker = Worker(
            WorkerOptions(nats=url, repositories=(served_repository,), models=(MODEL, GATED)), bus
        )
        stack.push_async_callback(worker.drain)
        await worker.start()
        assert gateway.http is not None
        protocol: Any = gateway.http._server.config.http
        seen = protocol.front.catalog.directory
        await eventually(lambda: worker.id in {record.id for record in seen.workers}, "the worker is known")
        async with http.connect(gateway.http.port) as connection:
            for request in (
                infer(MODEL, floats(1.0)),
                infer(MODEL, floats(1.0), "idempotency-key: one"),
                infer(MODEL, floats(1.0), "idempotency-key: one"),
                infer(MODEL, floats(*map(float, range(300_000)))),  # above the broker's largest message
                get("/v2/models/stats"),
                post("/v2/repository/index", b"{}"),
            ):
                answer = await connection.ask(request)
                assert answer.status == 200, answer
        await _run_jobs(gateway.http.port)
        # A caller that goes cancels.
        async with http.connect(gateway.http.port) as connection:
            gate = tmp_path / "gate"
            connection.send(
                infer(GATED, {"inputs": [http.tensor([str(gate)], "BYTES", [1, 1])]}),
            )
            await eventually(gate.with_suffix(".began").exists, "the model has it")
        gate.touch()
        client, operator = environment_of("client", users), environment_of("operator", users)
        assert json.loads(await run(running, client, "models", "--json"))
        assert "[[1.5]]" in await run(running, client, "infer", MODEL, "--input", "x=[[1.5]]")
        assert "no dead letters" in await run(running, operator, "dlq", "list")
        await _look_after_jobs(running, operator)
        await _list_services(url, users)
        assert running.violations() == []


async def _run_jobs(port: int) -> None:
    for path, options in (
        ("", ("prefer: wait=20",)),
        ("", ("prefer: wait=20", "idempotency-key: two", "x-qinfer-job-max-queue-time: 60")),
        ("", ("prefer: wait=20", "x-qinfer-job-spare: true")),
    ):
        async with http.connect(port) as connection:
            answer = await connection.ask(post(f"{http.infer_path(MODEL)}{path}", FLOAT, *options))
            assert answer.status == 200, answer


async def _look_after_jobs(running: Broker, operator: Mapping[str, str]) -> None:
    listed = json.loads(await run(running, operator, "jobs", "list", "--json"))["jobs"]
    assert [job["state"] for job in listed] == ["succeeded"] * 3
    job_id = listed[0]["id"]
    assert "FP32" in await run(running, operator, "jobs", "result", job_id)
    assert job_id in await run(running, operator, "jobs", "cancel", job_id)


async def _list_services(url: str, users: Mapping[str, User]) -> None:
    for role, subject in (("client", f"$SRV.INFO.{Names().service(MODEL)}"), ("operator", "$SRV.STATS")):
        tool = await nats.connect(
            url, nkeys_seed=str(users[role].seed), inbox_prefix=f"_INBOX.{role}".encode()
        )
        assert b"io.nats.micro.v1" in (await tool.request(subject, b"", timeout=PATIENCE)).data
        if role == "client":
            await tool.publish(Names().cancellations(MODEL), encode(CancelFrame(1, tool.new_inbox(), [])))
        await tool.close()


async def test_privileges_end_where_they_should(tmp_path: Path, users: dict[str, User]) -> None:
    async with documented_broker(tmp_path / "broker", users) as running:
        url = f"nats://{HOST}:{running.port}"
        refused: dict[str, list[str]] = {
            "client": [
                "qinfer.default.infer.secret.latest",
                "qinfer.default.control.statistics",
                "$SRV.STATS",
                "qinfer.default.cancel.secret",
                "$JS.API.STREAM.MSG.GET.QINFER_default=mlp",
                "$JS.API.STREAM.DELETE.QINFER_default=mlp",
                "$JS.API.STREAM.MSG.GET.OBJ_qinfer_default_tensors",
                "$KV.qinfer_default_models.mlp.1",
                "_INBOX.gateway.x",
            ],
            "gateway": [
                "_INBOX.client.x",
                "$JS.ACK.QINFER_default=mlp.latest.1.1.1.1.0",
                "$JS.API.STREAM.DELETE.QINFER_default=mlp",
                "$JS.API.STREAM.MSG.GET.QINFER_default=mlp",
                "$KV.qinfer_default_workers.w",
            ],
            "worker": ["qinfer.default.infer.mlp.latest", "$JS.API.STREAM.DELETE.QINFER_default=mlp"],
            "operator": ["$JS.API.STREAM.DELETE.QINFER_default_DEAD", "_INBOX.client.x"],
        }
        for role, subjects in refused.items():
            client = await nats.connect(url, nkeys_seed=str(users[role].seed), error_cb=_heard)
            before = len(running.violations())
            for subject in subjects:
                await client.publish(subject, b"")
            for others in {"client", "gateway", "worker", "operator"} - {role}:
                await client.subscribe(f"_INBOX.{others}.>")
            await client.subscribe("_INBOX.>")
            await client.flush()
            wanted = before + len(subjects) + 4
            await eventually(lambda wanted=wanted: len(running.violations()) >= wanted, f"{role} was refused")
            await client.close()


async def _heard(_: Exception) -> None:
    """The broker tells the client, too."""
