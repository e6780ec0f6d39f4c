"""TLS and client certificates, on both servers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from qinfer.errors import ConfigError
from qinfer.proto import METHODS
from qinfer_gateway.tls import ServerTls, certificate_names
from tests.helpers import http
from tests.helpers.http import Connection, floats, get, infer
from tests.helpers.served_models import IDENTITY
from tests.helpers.system import Fleet
from tests.helpers.waiting import PATIENCE, eventually
from tests.security.conftest import MakeFleet
from tests.security.credentials import Authority, Pem, bearer, key_of, write_keys

MODEL = IDENTITY["FP32"]
HOST = "127.0.0.1"


@pytest.fixture
def server(authority: Authority) -> Pem:
    return authority.issue(HOST, "localhost")


def trusting(authority: Authority, client: Pem | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca))
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    return context


@asynccontextmanager
async def connect(fleet: Fleet, context: ssl.SSLContext) -> AsyncIterator[Connection]:
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(HOST, fleet.port, ssl=context)
    connection = Connection(reader, writer)
    try:
        yield connection
    finally:
        await connection.close()


async def ask_grpc(
    fleet: Fleet, name: str, authority: Authority, client: Pem | None = None, metadata: object = ()
) -> grpc.StatusCode:
    assert fleet.gateway.grpc is not None
    credentials = grpc.ssl_channel_credentials(
        authority.ca.read_bytes(),
        client.key.read_bytes() if client else None,
        client.cert.read_bytes() if client else None,
    )
    async with grpc.aio.secure_channel(f"{HOST}:{fleet.gateway.grpc.port}", credentials) as channel:
        call = channel.unary_unary(METHODS[name].path)(b"", metadata=metadata, timeout=PATIENCE)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error.code()
        return await call.code()


async def test_both_servers_speak_tls(make_fleet: MakeFleet, authority: Authority, server: Pem) -> None:
    async with make_fleet(MODEL, tls_cert=server.cert, tls_key=server.key, grpc_port=0) as made:
        async with connect(made, trusting(authority)) as connection:
            for _ in range(3):
                assert (await connection.ask(infer(MODEL, floats(1.0)))).outputs() == {"y": [1.0]}
            assert (await connection.ask(get("/v2"))).status == 200
            encrypted = connection.writer.get_extra_info("ssl_object")
            assert encrypted.version() == "TLSv1.3"
        assert await ask_grpc(made, "ServerMetadata", authority) is grpc.StatusCode.OK


async def test_large_bodies_over_tls(make_fleet: MakeFleet, authority: Authority, server: Pem) -> None:
    values = [float(number) for number in range(200_000)]
    body = {"inputs": [http.tensor(values, "FP32", [1, len(values)])]}
    async with (
        make_fleet(MODEL, tls_cert=server.cert, tls_key=server.key) as made,
        connect(made, trusting(authority)) as connection,
    ):
        assert (await connection.ask(infer(MODEL, body))).outputs() == {"y": values}


async def test_old_protocols_and_weak_ciphers_are_refused(
    make_fleet: MakeFleet, authority: Authority, server: Pem
) -> None:
    async with make_fleet(tls_cert=server.cert, tls_key=server.key) as made:
        context = trusting(authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with connect(made, context) as connection:
            name, version, _ = connection.writer.get_extra_info("cipher")
            assert version == "TLSv1.2"
            assert name.startswith("ECDHE")
        context.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256")  # not authenticated
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with connect(made, context):
                pass
        old = trusting(authority)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with connect(made, old):
                pass


async def test_plain_http_is_not_answered(make_fleet: MakeFleet, server: Pem) -> None:
    async with (
        make_fleet(tls_cert=server.cert, tls_key=server.key) as made,
        http.connect(made.port) as connection,
    ):
        connection.send(get("/v2/health/live"))
        assert not (await connection.ended()).startswith(b"HTTP")


async def test_clients_need_a_certificate_where_it_is_asked_for(
    make_fleet: MakeFleet, authority: Authority, stranger: Authority, server: Pem
) -> None:
    good, bad = authority.issue("client.test"), stranger.issue("client.test")
    async with make_fleet(
        MODEL, tls_cert=server.cert, tls_key=server.key, tls_client_ca=authority.ca, grpc_port=0
    ) as made:
        async with connect(made, trusting(authority, good)) as connection:
            assert (await connection.ask(infer(MODEL, floats(1.0)))).status == 200
        assert await ask_grpc(made, "ServerMetadata", authority, good) is grpc.StatusCode.OK
        for client in (None, bad):
            # With TLS 1.3 the client learns of it when it reads.
            with pytest.raises((ssl.SSLError, ConnectionResetError, http.Closed)):
                async with connect(made, trusting(authority, client)) as connection:
                    await connection.ask(get("/v2/health/live"))
            assert await ask_grpc(made, "ServerLive", authority, client) is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_stands_for_a_key(
    make_fleet: MakeFleet, authority: Authority, server: Pem, tmp_path: Path
) -> None:
    keys = write_keys(
        tmp_path / "keys.yaml",
        by_name={"certificate": "robot", "models": [MODEL], "tenant": "r"},
        by_alternative_name={"certificate": "spare.test", "models": [MODEL]},
        alice={"models": ["other"]},
    )
    robot = authority.issue("whatever.test", common_name="robot")
    spare = authority.issue("unused.test", "spare.test", stem="spare")
    unknown = authority.issue("nobody.test")
    options = {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": authority.ca}
    async with make_fleet(MODEL, keys_file=keys, grpc_port=0, **options) as made:
        for client, status, code in (
            (robot, 200, grpc.StatusCode.OK),
            (spare, 200, grpc.StatusCode.OK),
            (unknown, 401, grpc.StatusCode.UNAUTHENTICATED),
        ):
            async with connect(made, trusting(authority, client)) as connection:
                assert (await connection.ask(get(f"/v2/models/{MODEL}"))).status == status
                assert (await connection.ask(infer(MODEL, floats(1.0)))).status == status
            assert await ask_grpc(made, "ServerMetadata", authority, client) is code
        # A key that is shown comes before the certificate of the connection.
        async with connect(made, trusting(authority, robot)) as connection:
            assert (await connection.ask(infer(MODEL, floats(1.0), bearer(key_of("alice"))))).status == 403
        metadata = (("x-api-key", "wrong"),)
        assert (
            await ask_grpc(made, "ServerMetadata", authority, robot, metadata)
            is grpc.StatusCode.UNAUTHENTICATED
        )


async def test_a_certificate_is_renewed(
    make_fleet: MakeFleet, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    """New connections see the new one; those that are open go on."""
    first, second = authority.issue(HOST, stem="first"), stranger.issue(HOST, stem="second")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(pem: Pem) -> None:
        for source, target in ((pem.cert, cert), (pem.key, key)):
            made = target.with_suffix(".new")
            made.write_bytes(source.read_bytes())
            made.rename(target)

    install(first)
    async with make_fleet(MODEL, tls_cert=cert, tls_key=key, grpc_port=0) as made:
        security = made.gateway._security
        assert security.tls is not None
        async with connect(made, trusting(authority)) as before:
            assert (await before.ask(get("/v2"))).status == 200
            assert await ask_grpc(made, "ServerLive", authority) is grpc.StatusCode.OK
            cert.write_text("no certificate")
            await security.tls.watched.check()
            async with connect(made, trusting(authority)):
                pass  # what cannot be read is not used
            pair = security.tls._pair
            install(second)
            await eventually(lambda: security.tls._pair is not pair, "it was read again")
            async with connect(made, trusting(stranger)) as after:
                assert (await after.ask(infer(MODEL, floats(1.0)))).status == 200
            assert await ask_grpc(made, "ServerLive", stranger) is grpc.StatusCode.OK
            assert await ask_grpc(made, "ServerLive", authority) is grpc.StatusCode.UNAVAILABLE
            assert (await before.ask(get("/v2"))).status == 200


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ({"cert": b""}, "PEM"),
        ({"key": b"x"}, "PEM"),
        ({"cert": None}, "No such file"),
        ({"client_ca": b""}, "--tls-client-ca"),
        ({"client_ca": None}, "No such file"),
    ],
)
def test_files_that_cannot_be_used(
    authority: Authority, server: Pem, tmp_path: Path, spoil: dict[str, bytes | None], told: str
) -> None:
    files = {"cert": server.cert, "key": server.key, "client_ca": authority.ca}
    for name, content in spoil.items():
        files[name] = tmp_path / name
        if content is not None:
            files[name].write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        ServerTls(files["cert"], files["key"], files["client_ca"])


def test_a_key_that_does_not_fit(authority: Authority, server: Pem) -> None:
    with pytest.raises(ConfigError, match=r"MISMATCH|mismatch"):
        ServerTls(server.cert, authority.issue("other.test").key)


def test_a_key_with_a_passphrase_does_not_ask_on_the_terminal(server: Pem, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(server.key.read_bytes(), None)
    protected = tmp_path / "key.pem"
    protected.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="the key has a passphrase"):
        ServerTls(server.cert, protected)


def test_names_of_certificates() -> None:
    assert certificate_names(None) == ()
    assert certificate_names({}) == ()
    subject = ((("organizationName", "O"),), (("commonName", "c"),))
    names = {"subject": subject, "subjectAltName": (("DNS", "d"), ("URI", "spiffe://x/y"))}
    assert certificate_names(names) == ("c", "d", "spiffe://x/y")


async def test_handshakes_end_in_time(make_fleet: MakeFleet, server: Pem) -> None:
    """Clients that connect and say nothing, or too little, do not stay."""
    async with make_fleet(tls_cert=server.cert, tls_key=server.key, receive_timeout=0.3, grpc_port=0) as made:
        assert made.gateway.grpc is not None
        for port in (made.port, made.gateway.grpc.port):
            for said in (b"", b"\x16\x03\x01\x02\x00\x01"):
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(said)
                async with asyncio.timeout(PATIENCE):
                    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                        await reader.readexactly(100_000)
                writer.close()


def test_listening_sockets_are_ours_alone() -> None:
    """What is bound to loopback cannot be reached by another address of this host."""
    from qinfer_gateway.http.server import listen

    with listen(HOST, 0, reuse_port=False) as listener, socket.socket() as client:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match="refused"):
            client.connect(("127.0.0.2", port))
