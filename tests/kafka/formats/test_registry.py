"""The schema registry: what is asked, what is remembered, and what becomes of its failures."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from qinfer.errors import SetupError, Unavailable
from qinfer_workers.kafka.registry import client as module
from qinfer_workers.kafka.registry import wire
from qinfer_workers.kafka.registry.client import Registry
from qinfer_workers.kafka.settings import SchemaRegistry, Tls
from tests.kafka.formats.registry import FakeRegistry, running


@pytest.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    async with running() as registry:
        yield registry


async def asking(fake: FakeRegistry, folder: Path = Path(), **given: Any) -> Registry:
    registry = Registry(SchemaRegistry(**{"url": fake.url, **given}), folder)
    await registry.start()
    return registry


async def test_a_schema_is_asked_for_once(fake: FakeRegistry) -> None:
    number = fake.add('"string"')
    registry = await asking(fake)
    assert registry.known(number) is None
    await registry.fetch([number, number])
    await registry.fetch([number])
    schema = registry.known(number)
    assert schema is not None
    assert (schema.id, schema.kind, schema.text) == (number, "AVRO", '"string"')
    assert fake.asked == [f"GET /schemas/ids/{number}"]
    await registry.close()
    await registry.close()


async def test_an_unknown_schema_is_asked_for_again_after_a_while(
    fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = await asking(fake)
    await registry.fetch([7])
    await registry.fetch([7])
    assert len(fake.asked) == 1
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.UNKNOWN_FOR + 1)
    fake.schemas[7] = {"schema": '"int"', "schemaType": "AVRO", "references": []}
    await registry.fetch([7])
    assert registry.known(7) is not None
    await registry.close()


async def test_what_is_remembered_is_bounded(fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_KNOWN", 3)
    registry = await asking(fake)
    await registry.fetch(range(20))
    assert len(registry._known) == 3
    await registry.close()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 401, 403])
async def test_a_registry_that_fails_is_asked_again_later(fake: FakeRegistry, status: int) -> None:
    number = fake.add('"int"')
    registry = await asking(fake)
    fake.status = status
    with pytest.raises(Unavailable, match=str(status)):
        await registry.fetch([number])
    fake.status = 0
    await registry.fetch([number])
    assert registry.known(number) is not None
    await registry.close()


async def test_a_registry_that_is_away_is_asked_again_later() -> None:
    async with running() as fake:
        pass
    registry = await asking(fake)
    with pytest.raises(Unavailable, match=fake.url):
        await registry.fetch([1])
    await registry.close()


async def test_a_registry_that_hangs_is_given_up(fake: FakeRegistry) -> None:
    hung = asyncio.Event()

    async def hang(*_: Any) -> None:
        hung.set()
        await asyncio.Event().wait()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    registry = Registry(SchemaRegistry(url=f"http://{host}:{port}", timeout=0.2), Path())
    await registry.start()
    with pytest.raises(Unavailable):
        await registry.fetch([1])
    assert hung.is_set()
    await registry.close()
    server.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"[1]"),
        (200, b'{"schema": 5}'),
        (200, b"[" * 200_000),
        (200, b'{"schema": "x"}' + b" " * module.MAX_ANSWER),
        (302, b""),
        (400, b"\xff"),
    ],
)
async def test_an_answer_that_is_none_means_there_is_no_schema(
    fake: FakeRegistry, status: int, body: bytes
) -> None:
    registry = await asking(fake)
    fake.status, fake.body = status, body
    await registry.fetch([1])
    assert registry.known(1) is None
    assert fake.asked == ["GET /schemas/ids/1"]  # no redirect was followed
    await registry.close()


async def test_schemas_come_with_what_they_refer_to_the_innermost_first(fake: FakeRegistry) -> None:
    fake.add('"inner"', subject="c")
    fake.add('"middle"', subject="b", references=[{"name": "C", "subject": "c", "version": 1}])
    both = [{"name": "B", "subject": "b", "version": 1}, {"name": "C", "subject": "c", "version": 1}]
    number = fake.add('"outer"', references=both)
    registry = await asking(fake)
    await registry.fetch([number])
    schema = registry.known(number)
    assert schema is not None
    assert schema.references == (("C", '"inner"'), ("B", '"middle"'))
    await registry.close()


async def test_references_in_circles_and_without_end_are_refused(
    fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add('"b"', subject="b", references=[{"name": "A", "subject": "a", "version": 1}])
    number = fake.add('"a"', subject="a", references=[{"name": "B", "subject": "b", "version": 1}])
    registry = await asking(fake)
    await registry.fetch([number])
    assert len(fake.asked) <= 4
    monkeypatch.setattr(module, "MAX_REFERENCES", 3)
    many = [{"name": f"R{n}", "subject": "c", "version": 1} for n in range(5)]
    fake.add('"c"', subject="c")
    number = fake.add('"many"', references=many)
    await registry.fetch([number])
    assert registry.known(number) is None
    await registry.close()


async def test_a_schema_is_registered_or_looked_up(fake: FakeRegistry) -> None:
    registry = await asking(fake)
    with pytest.raises(SetupError, match=r"subject 'a/b': 404: Schema not found"):
        await registry.look_up("a/b", "AVRO", '"int"')
    number = await registry.register("a/b", "AVRO", '"int"')
    assert await registry.register("a/b", "AVRO", '"int"') == number
    assert await registry.look_up("a/b", "AVRO", '"int"') == number
    assert (await registry.latest("a/b")).text == '"int"'
    assert fake.asked[0] == "POST /subjects/a%2Fb"
    with pytest.raises(SetupError, match="Subject 'none' not found"):
        await registry.latest("none")
    fake.incompatible.add("a/b")
    with pytest.raises(SetupError, match="409: Schema being registered is incompatible"):
        await registry.register("a/b", "AVRO", '"long"')
    await registry.close()


async def test_credentials_come_from_files_and_the_environment(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.add('"int"', subject="s")
    (tmp_path / "secret").write_text("pass:word\n")
    users = [{"username": "u", "password": "pass:word"}, {"username": "u", "password_file": "secret"}]
    for given_ in users:
        registry = await asking(fake, tmp_path, **given_)
        await registry.latest("s")
        assert fake.authorization == "Basic dTpwYXNzOndvcmQ="
        await registry.close()
    registry = await asking(fake, tmp_path, token_file="secret")
    await registry.latest("s")
    assert fake.authorization == "Bearer pass:word"
    (tmp_path / "secret").write_text("next")
    await registry.latest("s")
    assert fake.authorization == "Bearer next"
    await registry.close()


async def test_tls_checks_whom_it_talks_to(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with running(server) as fake:
        fake.add('"int"', subject="s")
        registry = await asking(fake, tmp_path, tls=Tls(ca_file="ca.pem"))
        assert (await registry.latest("s")).text == '"int"'
        await registry.close()
        registry = await asking(fake)
        with pytest.raises(Unavailable, match="certificate"):
            await registry.latest("s")
        await registry.close()
        with pytest.raises(SetupError, match=r"none\.pem"):
            await asking(fake, tmp_path, tls=Tls(ca_file="none.pem"))


@given(st.integers(0, 2**32 - 1), st.binary(max_size=8))
def test_a_header_tells_the_id(number: int, rest: bytes) -> None:
    assert wire.schema_id(wire.header(number) + rest) == number


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=wire.MAX_DEPTH), st.binary(max_size=8))
def test_message_indexes_come_back(indexes: list[int], rest: bytes) -> None:
    written = wire.write_indexes(indexes)
    assert wire.read_indexes(b"head" + written + rest, 4) == (tuple(indexes), 4 + len(written))


def test_message_indexes_are_those_of_the_specification() -> None:
    assert wire.write_indexes([0]) == b"\x00"
    assert wire.write_indexes([1, 0]) == b"\x04\x02\x00"
    assert wire.header(513) == b"\x00\x00\x00\x02\x01"


@given(st.binary(max_size=20))
def test_indexes_of_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        indexes, offset = wire.read_indexes(data, 0)
    except ValueError:
        return
    assert 1 <= len(indexes) <= wire.MAX_DEPTH
    assert 0 < offset <= len(data)


@pytest.mark.parametrize("value", [b"", b"\x00\x00\x00\x01", b"\x01\x00\x00\x00\x01", b"{"])
def test_a_value_without_header_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="id of a schema"):
        wire.schema_id(value)
