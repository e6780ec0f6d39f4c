"""Who may ask for what, over HTTP: bytes on a socket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from qinfer_gateway.auth.http import protect
from tests.helpers import http
from tests.helpers.http import floats, get, infer, infer_path, post
from tests.helpers.served_models import IDENTITY, SAYS_ALL
from tests.helpers.system import Fleet
from tests.helpers.waiting import eventually
from tests.security.conftest import MakeFleet
from tests.security.credentials import bearer, key_of, write_keys

MODEL = IDENTITY["FP32"]
OTHER = IDENTITY["INT32"]
GOOD = floats(1.5)

KEYS = {
    "alice": {"models": ["identity_*"], "tenant": "wonderland"},
    "bob": {"models": [OTHER]},
    "operator": {"models": ["*"], "permissions": ["management"]},
    "late": {"models": ["*"], "expires": datetime.now(UTC) - timedelta(seconds=1)},
    "slow": {"models": ["*"], "rate": 0.001, "burst": 2},
}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "keys.yaml", **KEYS)


@pytest_asyncio.fixture
async def guarded(make_fleet: MakeFleet, keys_file: Path) -> AsyncIterator[Fleet]:
    async with make_fleet(MODEL, OTHER, keys_file=keys_file) as made:
        yield made


async def ask(fleet: Fleet, *parts: bytes) -> http.Answer:
    async with http.connect(fleet.port) as connection:
        return await connection.ask(*parts)


async def test_either_header_carries_a_key(guarded: Fleet) -> None:
    key = key_of("alice")
    for header in (
        bearer(key),
        f"Authorization: bearer   {key}  ",
        f"AUTHORIZATION: BEARER {key}",
        f"x-api-key: {key}",
        f"X-API-Key: {key}",
    ):
        answer = await ask(guarded, infer(MODEL, GOOD, header))
        assert answer.outputs() == {"y": [1.5]}, header
        assert (await ask(guarded, get(f"/v2/models/{MODEL}", header))).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (bearer("wrong"),),
        (bearer(""),),
        ("authorization: Bearer",),
        ("authorization: Basic a2V5LW9mLWFsaWNlOg==",),
        (f"authorization: {key_of('alice')}",),
        ("x-api-key: ",),
        (bearer(key_of("alice").upper()),),
        (bearer(key_of("late")),),
        # What is shown first counts: a bad token is not made good by what stands beside it.
        (bearer("wrong"), f"x-api-key: {key_of('alice')}"),
        (bearer("\xe9\xff"),),
        (bearer("a.b.c"),),
    ],
)
async def test_without_good_credentials_nothing_is_told(guarded: Fleet, headers: tuple[str, ...]) -> None:
    requests = [
        infer(MODEL, GOOD, *headers),
        infer("nobody", GOOD, *headers),
        *(
            get(path, *headers)
            for path in ("/v2", "/v2/models", f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/ready",
                         f"/v2/models/{MODEL}/versions/1/config", "/v2/models/stats", "/v2/models/nobody",
                         "/openapi.json")
        ),
    ]  # fmt: skip
    for request in requests:
        answer = await ask(guarded, request)
        assert answer.status == 401, request
        assert answer.reason == "unauthenticated"
        assert answer.headers["www-authenticate"] == 'Bearer realm="qinfer"'
        assert "alice" not in answer.error


async def test_health_is_open(guarded: Fleet) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert (await ask(guarded, get(path))).status == 200


async def test_a_model_is_forbidden_whether_it_is_there_or_not(guarded: Fleet) -> None:
    header = bearer(key_of("bob"))
    asked = [MODEL, "nobody", "x" * 300, "identity_int32%00", ".."]
    for model in asked:
        answers = [
            await ask(guarded, infer(model, GOOD, header)),
            await ask(guarded, infer(model, GOOD, header, version="1")),
            await ask(guarded, get(f"/v2/models/{model}/ready", header)),
            await ask(guarded, get(f"/v2/models/{model}/config", header)),
        ]
        assert {(answer.status, answer.reason) for answer in answers} == {(403, "forbidden")}
    told = [
        (await ask(guarded, infer(model, GOOD, header))).error.replace(repr(model), "MODEL")
        for model in (MODEL, "nobody")
    ]
    assert told == ["bob may not use model MODEL"] * 2
    assert (await ask(guarded, get(f"/v2/models/{OTHER}/ready", header))).status == 200


async def test_lists_hold_only_what_a_key_may_use(guarded: Fleet) -> None:
    async def names(who: str) -> tuple[set[str], set[str]]:
        header = bearer(key_of(who))
        models = (await ask(guarded, get("/v2/models", header))).json()["models"]
        statistics = (await ask(guarded, get("/v2/models/stats", header))).json()["model_stats"]
        return {row["name"] for row in models}, {row["name"] for row in statistics}

    assert await names("alice") == ({MODEL, OTHER}, {MODEL, OTHER})
    assert await names("bob") == ({OTHER}, {OTHER})


async def test_permissions_are_apart(guarded: Fleet) -> None:
    manager, user = bearer(key_of("operator")), bearer(key_of("alice"))
    for request in (infer(MODEL, GOOD, manager), get("/v2", manager), get(f"/v2/models/{MODEL}", manager)):
        assert (await ask(guarded, request)).reason == "forbidden"
    index = "/v2/repository/index"
    assert (await ask(guarded, post(index, b"{}", user))).reason == "forbidden"
    assert (await ask(guarded, post(index, b"{}"))).reason == "unauthenticated"
    assert (await ask(guarded, post(index, b"{}", manager))).reason not in ("forbidden", "unauthenticated")


async def test_a_rate_is_kept(guarded: Fleet) -> None:
    header = bearer(key_of("slow"))
    statuses = []
    async with http.connect(guarded.port) as connection:
        for _ in range(4):
            answer = await connection.ask(infer(MODEL, GOOD, header))
            statuses.append(answer.status)
        assert statuses == [200, 200, 429, 429]
        assert answer.reason == "rate_limited"
        assert 900 <= int(answer.headers["retry-after"]) <= 1000
        # On every route, and nobody else's.
        assert (await connection.ask(get("/v2", header))).reason == "rate_limited"
        assert (await connection.ask(infer(MODEL, GOOD, bearer(key_of("alice"))))).status == 200


async def test_a_body_is_not_read_before_its_head_is_good(guarded: Fleet) -> None:
    """Whoever may not send it is told so when its first bytes come."""
    for headers, status in (
        ((), 401),
        ((bearer(key_of("bob")),), 403),
    ):
        async with http.connect(guarded.port) as connection:
            connection.send(post(infer_path(MODEL), b"{", *headers, length=10_000_000))
            answer = await connection.answer()
            assert answer.status == status
            assert await connection.ended() == b""


async def test_a_key_that_is_revoked_is_refused_on_open_connections(guarded: Fleet, keys_file: Path) -> None:
    request = infer(MODEL, GOOD, bearer(key_of("alice")))
    async with http.connect(guarded.port) as connection:
        for _ in range(3):  # its head is known by now
            assert (await connection.ask(request)).status == 200
        write_keys(keys_file, **{name: entry for name, entry in KEYS.items() if name != "alice"})
        access = guarded.front.access
        assert access is not None
        before = access._ring
        await eventually(lambda: access._ring is not before, "the file was read again")
        assert (await connection.ask(request)).status == 401


async def test_a_key_that_is_revoked_while_its_body_comes_is_refused(guarded: Fleet, keys_file: Path) -> None:
    request = infer(MODEL, GOOD, bearer(key_of("alice")))
    async with http.connect(guarded.port) as connection:
        connection.send(request[:-5])
        await connection.flush()
        (protocol,) = guarded.gateway.http._server.server_state.connections  # type: ignore[union-attr]
        await eventually(lambda: protocol.cycle is not None, "its head has come")
        access = guarded.front.access
        assert access is not None
        access.use_keys(())
        assert (await connection.ask(request[-5:])).status == 401


def spoil(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


async def test_a_broken_file_changes_nothing_and_says_so(
    guarded: Fleet, keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = infer(MODEL, GOOD, bearer(key_of("alice")))
    broken = ["keys: [", "keys: [{name: alice}]", "something else", None]
    for text in broken:
        caplog.clear()
        spoil(keys_file, text)
        errors = lambda: [r for r in caplog.records if r.levelno == logging.ERROR]  # noqa: E731
        await eventually(errors, f"{text!r} was complained about")
        assert "NOT used" in errors()[-1].getMessage()
        assert str(keys_file) in errors()[-1].getMessage()
        assert (await ask(guarded, request)).status == 200
    write_keys(keys_file, carol={"models": ["*"]})
    await eventually(lambda: "was read again" in caplog.text, "the file was read again")
    assert (await ask(guarded, request)).status == 401
    assert (await ask(guarded, infer(MODEL, GOOD, bearer(key_of("carol"))))).status == 200


async def test_a_file_that_changes_does_not_fill_up_rates(guarded: Fleet, keys_file: Path) -> None:
    request = infer(MODEL, GOOD, bearer(key_of("slow")))
    assert [(await ask(guarded, request)).status for _ in range(3)] == [200, 200, 429]
    access = guarded.front.access
    assert access is not None
    for entries, status in (
        (KEYS, 429),
        ({**KEYS, "slow": {"models": ["*"], "rate": 0.001, "burst": 3}}, 200),
    ):
        before = access._ring
        write_keys(keys_file, **entries)
        await eventually(lambda before=before: access._ring is not before, "the file was read again")
        assert (await ask(guarded, request)).status == status


async def test_pipelined_requests_each_need_their_own(guarded: Fleet) -> None:
    good, bad = infer(MODEL, GOOD, bearer(key_of("alice"))), infer(MODEL, GOOD)
    async with http.connect(guarded.port) as connection:
        connection.send(good, good, bad)
        assert [(await connection.answer()).status for _ in range(3)] == [200, 200, 401]
        assert await connection.ended() == b""


async def test_the_worker_learns_tenant_and_priority_but_no_credentials(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    keys = write_keys(
        tmp_path / "keys.yaml",
        urgent={"models": ["*"], "tenant": "a"},
        patient={"models": ["*"], "tenant": "b", "priority_ceiling": 3},
    )
    seen = []
    async with make_fleet(keys_file=keys) as made:
        await made.add_worker(SAYS_ALL)
        dispatcher = made.dispatcher
        submit = dispatcher.submit

        def spy(call, target, request, **more):  # type: ignore[no-untyped-def]
            seen.append((request.tenant, request.priority))
            return submit(call, target, request, **more)

        made.front.dispatcher.submit = spy  # type: ignore[method-assign]
        for who in ("urgent", "patient"):
            for priority in (0, 1, 3, 5):
                body = {
                    "inputs": [http.tensor([1], "INT32", [1, 1])],
                    "parameters": {"priority": priority},
                }
                answer = await ask(made, infer(SAYS_ALL, body, bearer(key_of(who))))
                assert answer.status == 200, answer
                assert "key-of" not in json.dumps(answer.json())
    assert seen == [("a", 0), ("a", 1), ("a", 3), ("a", 5), ("b", 0), ("b", 3), ("b", 3), ("b", 5)]


async def test_without_keys_everybody_may(make_fleet: MakeFleet) -> None:
    async with make_fleet(MODEL) as made:
        assert made.front.access is None
        for headers in ((), (bearer("whatever"),)):
            assert (await ask(made, infer(MODEL, GOOD, *headers))).status == 200
            assert (await ask(made, get("/v2/models", *headers))).status == 200


async def test_no_web_page_manages_models(make_fleet: MakeFleet) -> None:
    """Where no key is asked for, a browser on this host could be made to send such requests."""
    async with make_fleet() as made:
        index = "/v2/repository/index"
        assert (await ask(made, post(index, b"{}", "origin: https://evil.test"))).reason == "forbidden"
        assert (await ask(made, post(index, b"{}"))).reason != "forbidden"


async def test_many_at_once_are_told_apart(guarded: Fleet) -> None:
    """Identity belongs to the request, not to the process: answers of lists, asked at the same time."""

    async def models(who: str) -> set[str]:
        answer = await ask(guarded, get("/v2/models", bearer(key_of(who))))
        return {row["name"] for row in answer.json()["models"]}

    found = await asyncio.gather(*(models(who) for who in ("alice", "bob") * 20))
    assert found == [{MODEL, OTHER}, {OTHER}] * 20


def test_every_route_is_guarded() -> None:
    """A route that nobody thought of needs permission for inference."""
    from starlette.routing import Route

    async def endpoint(_: object) -> None:
        raise AssertionError

    routes = [
        Route(path, endpoint) for path in ("/v2/health/live", "/v2/something/new", "/v2/repository/new")
    ]
    plain = [route.app for route in routes]
    protect(routes, None)
    assert [after.app is before for after, before in zip(routes, plain, strict=True)] == [True, False, False]
