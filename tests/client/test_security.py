"""Keys, certificates and credentials that a client is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qinfer.bus import connect as connect_bus
from qinfer.bus.security import NatsSecurity
from qinfer.client import KEY_VARIABLE, connect
from qinfer.errors import BusUnavailable, Forbidden, QInferError, SetupError, Unauthenticated
from tests.helpers.served_models import IDENTITY
from tests.helpers.system import fleet
from tests.security.broker import broker
from tests.security.credentials import Authority, key_of, write_keys

MODEL = IDENTITY["FP32"]
X = {"x": [[1.0]]}
HOST = "127.0.0.1"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "trusted")


async def test_a_gateway_with_keys_and_certificates(
    nats_url: str,
    namespace: str,
    served_repository: Path,
    tmp_path: Path,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, mine = authority.issue(HOST), authority.issue("me@here")
    keys = write_keys(tmp_path / "keys", one={"models": ["*"]}, other={"models": ["other"]})
    options = {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": authority.ca}
    async with fleet(nats_url, namespace, served_repository, keys_file=keys, **options) as running:
        await running.add_worker(MODEL)
        url = f"https://{HOST}:{running.port}"
        files = {"ca": authority.ca, "cert": mine.cert, "cert_key": mine.key}
        async with connect(url, key=key_of("one"), **files) as client:
            assert (await client.infer(MODEL, X))["y"].tolist() == [[1.0]]
        monkeypatch.setenv(KEY_VARIABLE, key_of("one"))
        async with connect(url, **files) as client:
            assert [info.name for info in await client.models()] == [MODEL]
        refusals: dict[str, type[QInferError]] = {
            "": Unauthenticated, "wrong": Unauthenticated, key_of("other"): Forbidden,
        }  # fmt: skip
        for key, kind in refusals.items():
            async with connect(url, key=key, **files) as client:
                with pytest.raises(kind):
                    await client.infer(MODEL, X)
        with pytest.raises(SetupError, match="is not trusted"):
            await connect(url).start()
        with pytest.raises(QInferError):
            await connect(url, ca=authority.ca).start()  # without a certificate of its own


async def test_a_broker_with_certificates(tmp_path: Path, authority: Authority) -> None:
    server, mine = authority.issue(HOST), authority.issue("me")
    configuration = f"""
tls {{
  cert_file: {json.dumps(str(server.cert))}
  key_file: {json.dumps(str(server.key))}
  ca_file: {json.dumps(str(authority.ca))}
  verify: true
}}"""
    files = {"ca": authority.ca, "cert": mine.cert}
    async with broker(tmp_path / "broker", configuration) as running:
        url = f"nats://{HOST}:{running.port}"
        role = connect_bus(url, security=NatsSecurity(**files, key=mine.key))
        await role.start()
        await role.put(role.names.models_bucket, "m.1", b"unreadable")  # makes the bucket
        await role.put(role.names.workers_bucket, "w", b"unreadable")
        await role.close()
        async with connect(url, **files, cert_key=mine.key) as client:
            assert await client.models() == []
        with pytest.raises(SetupError, match="QINFER_NATS_CERT and QINFER_NATS_KEY: found only one"):
            await connect(url, **files).start()


async def test_a_broker_that_is_not_trusted(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinfer.bus.nats.connection.CONNECT_TIMEOUT", 0.0)
    server = authority.issue(HOST)
    configuration = (
        f"tls {{ cert_file: {json.dumps(str(server.cert))}, key_file: {json.dumps(str(server.key))} }}"
    )
    async with broker(tmp_path / "broker", configuration) as running:
        client = connect(f"tls://{HOST}:{running.port}")
        with pytest.raises(BusUnavailable, match="certificate verify failed"):
            await client.start()
        await client.close()
        with pytest.raises(SetupError, match="closed"):
            await client.start()
