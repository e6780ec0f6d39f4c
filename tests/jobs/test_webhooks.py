"""Webhooks: sent at least once, signed, and to the cost of nobody else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
import trustme
from aiohttp import web

from qinfer.bus import Bus, connect
from qinfer.errors import ConfigError, Forbidden, Unsupported
from qinfer.jobs import InferWork, JobOptions, JobRecord, JobState, JobStore, Submission, transitions
from qinfer.jobs.lanes import WEBHOOK_QUEUE
from qinfer.message import Request
from qinfer_gateway.jobs import hosts as receivers
from qinfer_gateway.jobs.guard import Guard
from qinfer_gateway.jobs.hosts import Hosts
from qinfer_gateway.jobs.posting import Outcome, Poster
from qinfer_gateway.jobs.signing import read_secrets, signed
from qinfer_gateway.jobs.stats import JobStats
from qinfer_gateway.jobs.webhooks import PAUSES, Webhooks
from tests.helpers.http import floats
from tests.helpers.served_models import IDENTITY, PICKY, RAISES
from tests.helpers.system import fleet
from tests.helpers.waiting import eventually
from tests.jobs.http_client import client
from tests.jobs.receiver import SECRET, Receiver, receiving, secret_file, secret_line, verify

FP32 = IDENTITY["FP32"]
QUICK = (0.01, 0.01)


@pytest_asyncio.fixture
async def bus(namespace: str) -> AsyncIterator[Bus]:
    bus = connect("memory://webhooks", namespace=namespace)
    await bus.start()
    yield bus
    await bus.close()


@asynccontextmanager
async def teller(bus: Bus, *allowed: str, timeout: float = 5.0, **told: object) -> AsyncIterator[Webhooks]:
    """What tells of jobs, without anything that runs them."""
    store = JobStore(bus)
    await store.declare()
    guard = Guard(allowed or ("127.0.0.0/8",))
    options = {"secrets": (SECRET,), "pauses": QUICK, "stats": JobStats(), **told}
    webhooks = Webhooks(store, guard=guard, poster=Poster(guard, timeout=timeout), **options)  # type: ignore[arg-type]
    await webhooks.start()
    try:
        yield webhooks
    finally:
        await webhooks.close()


async def ended(store: JobStore, url: str) -> JobRecord:
    """A job that has ended, and whose webhook is queued."""
    options = JobOptions(webhook=url)
    record = await store.submit(Submission(model="m", work=InferWork(Request(0, "", [])), options=options))
    return await store.cancel(record.id)


async def told(store: JobStore, job_id: str) -> str:
    """How the webhook of a job ended."""
    state = "pending"
    async with asyncio.timeout(20):
        while state == "pending":
            await asyncio.sleep(0.01)
            state = (await store.get(job_id)).webhook_state
    return state


# The whole way


async def test_ends_are_told(nats_url: str, namespace: str, served_repository: Path, tmp_path: Path) -> None:
    options = {"webhook_secret_file": (secret_file(tmp_path),), "webhook_allow": ("127.0.0.1/32",)}
    async with (
        fleet(nats_url, namespace, served_repository, **options) as running,
        receiving() as receiver,
        client(running.port) as asks,
    ):
        await running.add_worker(FP32, PICKY)
        await eventually(lambda: running.gateway.jobs and running.gateway.jobs.ready, "jobs")
        good = await asks.submit(FP32, floats(1, 2), x_qinfer_job_webhook=receiver.url)
        bad = await asks.submit(PICKY, floats(RAISES), x_qinfer_job_webhook=receiver.url)
        await eventually(lambda: len(receiver.came) == 2, "two webhooks")
        assert receiver.invalid == 0
        by_id = {job["id"]: job for job in receiver.came}
        assert by_id[good]["state"] == "succeeded"
        assert by_id[good]["result"]["outputs"][0]["data"] == [1, 2]
        assert by_id[bad]["error"]["reason"] == "model_failed"
        assert "result" not in by_id[bad]
        ids = {headers["webhook-id"] for headers in receiver.headers}
        assert ids == {f"{good}.0", f"{bad}.0"}

        store = running.gateway.jobs.store if running.gateway.jobs else None
        assert store is not None
        for job_id in (good, bad):
            assert await told(store, job_id) == "delivered"
        refused = await asks.infer(
            FP32, floats(1), prefer="respond-async", x_qinfer_job_webhook="http://10.0.0.1/"
        )
        assert (refused.status, refused.reason) == (403, "forbidden")


# Receivers that misbehave


async def test_a_receiver_that_fails_is_tried_again(bus: Bus) -> None:
    async def fails(_: web.Request) -> web.StreamResponse:
        return web.Response(status=200 if len(receiver.came) == 3 else 500)

    async with receiving(fails) as receiver, teller(bus) as webhooks:
        store = webhooks._store
        record = await ended(store, receiver.url)
        assert await told(store, record.id) == "delivered"
        assert len(receiver.came) == 3
        assert len({headers["webhook-id"] for headers in receiver.headers}) == 1
        assert receiver.invalid == 0


async def test_a_receiver_that_always_fails_is_given_up(bus: Bus) -> None:
    async def fails(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    stats = JobStats()
    async with receiving(fails) as receiver, teller(bus, stats=stats) as webhooks:
        record = await ended(webhooks._store, receiver.url)
        assert await told(webhooks._store, record.id) == "failed"
        assert len(receiver.came) == len(QUICK) + 1
        job, _ = await webhooks._store.read(record.id)
        assert job.webhook is not None
        assert (job.webhook.attempts, job.webhook.problem) == (3, "status 503")
    assert (stats.webhooks["failed"], stats.webhooks["given_up"]) == (2, 1)


def test_tries_go_on_for_most_of_a_day() -> None:
    assert 20 * 3600 < sum(PAUSES) < transitions.WEBHOOK_WINDOW
    assert list(PAUSES) == sorted(PAUSES)


async def test_redirects_are_not_followed(bus: Bus) -> None:
    async def redirects(_: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect(f"http://127.0.0.1:{receiver.port}/elsewhere")

    async with receiving(redirects) as receiver, teller(bus, pauses=()) as webhooks:
        record = await ended(webhooks._store, receiver.url)
        assert await told(webhooks._store, record.id) == "failed"
        assert set(receiver.paths) == {"/hook"}


async def test_a_receiver_that_wants_no_more(bus: Bus) -> None:
    async def gone(_: web.Request) -> web.StreamResponse:
        return web.Response(status=410)

    async with receiving(gone) as receiver, teller(bus) as webhooks:
        record = await ended(webhooks._store, receiver.url)
        assert await told(webhooks._store, record.id) == "failed"
        assert len(receiver.came) == 1


async def test_a_receiver_that_hangs_costs_others_nothing(bus: Bus) -> None:
    release = asyncio.Event()

    async def hangs(_: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.Response()

    async with (
        receiving(hangs) as hanging,
        receiving() as good,
        teller(bus, timeout=30.0) as webhooks,
    ):
        store = webhooks._store
        for _ in range(40):  # more than are sent to one receiver at once
            await ended(store, hanging.url)
        await eventually(lambda: len(hanging.came) == receivers._AT_ONCE, "as many as it gets")
        record = await ended(store, good.url)
        assert await told(store, record.id) == "delivered"
        assert len(hanging.came) == receivers._AT_ONCE
        release.set()


async def test_an_answer_without_end_is_not_read(bus: Bus) -> None:
    written = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(headers={"content-type": "text/plain"})
        await response.prepare(request)
        for _ in range(10_000):
            await response.write(bytes(65536))
            written += 1
        return response

    async with receiving(endless) as receiver, teller(bus) as webhooks:
        record = await ended(webhooks._store, receiver.url)
        assert await told(webhooks._store, record.id) == "delivered"
        assert written < 1000


async def test_nobody_listens(bus: Bus) -> None:
    async with teller(bus, pauses=()) as webhooks:
        record = await ended(webhooks._store, "http://127.0.0.1:1/")
        assert await told(webhooks._store, record.id) == "failed"
        job, _ = await webhooks._store.read(record.id)
        assert job.webhook is not None
        assert "Connect" in job.webhook.problem


async def test_a_name_for_a_private_address_is_refused(bus: Bus) -> None:
    stats = JobStats()
    async with receiving() as receiver, teller(bus, "192.0.2.0/24", stats=stats) as webhooks:
        record = await ended(webhooks._store, f"http://localhost:{receiver.port}/")
        assert await told(webhooks._store, record.id) == "failed"
        assert not receiver.came
    assert stats.webhooks["refused"] == 1


async def test_a_private_address_is_refused_whoever_accepted_the_job(bus: Bus) -> None:
    """The gateway that accepted it may have been told to allow it, or no gateway was asked at all."""
    async with receiving() as receiver, teller(bus, "192.0.2.0/24") as webhooks:
        record = await ended(webhooks._store, receiver.url)
        assert await told(webhooks._store, record.id) == "failed"
        assert not receiver.came


async def test_no_spelling_of_a_private_address_is_connected_to() -> None:
    """Neither those that the parser of URLs makes addresses of, nor those that the system does."""
    connected = 0

    def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        writer.close()

    poster = Poster(Guard())
    await poster.start()
    async with await asyncio.start_server(count, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for host in (
            "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0", "[::ffff:127.0.0.1]",
            "\N{FULLWIDTH DIGIT ONE}27.0.0.1", "\N{CIRCLED DIGIT ONE}27.0.0.1", "1.1.1.1@127.0.0.1",
        ):  # fmt: skip
            outcome = await poster.post(f"http://{host}:{port}/", {}, b"{}")
            assert (outcome.final, connected) == (True, 0), (host, outcome)
    await poster.close()


async def test_https_is_verified(bus: Bus) -> None:
    authority = trustme.CA()
    server, mine = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(mine)
    async with receiving(tls=server) as receiver:
        outcomes = []
        for tls in (mine, None):
            poster = Poster(Guard(["localhost"]), tls=tls)
            await poster.start()
            headers = signed([SECRET], "id", 1, b"{}")
            outcomes.append(await poster.post(f"https://localhost:{receiver.port}/", headers, b"{}"))
            await poster.close()
    assert outcomes[0] == Outcome()
    assert "ertificate" in outcomes[1].problem
    assert len(receiver.came) == 1


# What survives


async def test_the_next_gateway_goes_on(bus: Bus) -> None:
    """One that dies while it tells leaves the webhook in its queue, and how far it is in the record."""
    hangs = asyncio.Event()

    async def waits(_: web.Request) -> web.StreamResponse:
        if len(receiver.came) == 1:
            await hangs.wait()
        return web.Response()

    async with receiving(waits) as receiver:
        async with teller(bus, timeout=30.0) as first:
            record = await ended(first._store, receiver.url)
            await eventually(lambda: receiver.came, "the first try")
        async with teller(bus) as second:
            assert await told(second._store, record.id) == "delivered"
        assert len(receiver.came) == 2
        hangs.set()


async def test_a_webhook_is_not_tried_before_its_time(bus: Bus) -> None:
    async def fails(_: web.Request) -> web.StreamResponse:
        return web.Response(status=500)

    async with receiving(fails) as receiver, teller(bus, pauses=(1000.0,)) as webhooks:
        store = webhooks._store
        record = await ended(store, receiver.url)
        await eventually(lambda: webhooks._stats.webhooks["failed"], "the first try")
        await bus.enqueue(
            WEBHOOK_QUEUE, "", f"{record.id} again".encode()
        )  # as after a restart of the broker
        other = await ended(store, "http://127.0.0.1:1/")
        await eventually(lambda: webhooks._stats.webhooks["failed"] == 2, "another one's try")
        assert other
        assert len(receiver.came) == 1
        job, _ = await store.read(record.id)
        assert job.webhook is not None
        assert job.webhook.next_us > store.now_us() + 900_000_000


async def test_told_once_more_after_a_retry(bus: Bus) -> None:
    async with receiving() as receiver, teller(bus) as webhooks:
        store = webhooks._store
        record = await ended(store, receiver.url)
        assert await told(store, record.id) == "delivered"
        assert (await store.retry(record.id)).webhook_state == "pending"
        await store.cancel(record.id)
        assert await told(store, record.id) == "delivered"
        assert [job["state"] for job in receiver.came] == [JobState.CANCELLED] * 2
        assert [headers["webhook-id"] for headers in receiver.headers] == [f"{record.id}.0", f"{record.id}.1"]


# Secrets


def test_signatures_are_those_of_the_specification() -> None:
    secret = b"\x30\x31" * 16
    old = b"\x32" * 32
    headers = signed([secret, old], "msg_1", 1_700_000_000, b'{"a":1}')
    assert headers["webhook-id"] == "msg_1"
    assert headers["webhook-timestamp"] == "1700000000"
    for known in (secret, old):
        assert verify(known, headers, b'{"a":1}')
        assert not verify(known, headers, b'{"a":2}')
    assert not verify(b"x" * 32, headers, b'{"a":1}')


def test_secrets_of_several_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text(f"# new\n\n{secret_line(b'a' * 24)}")
    second.write_text(secret_line(b"b" * 64) + secret_line(b"c" * 32))
    assert read_secrets([first, second]) == (b"a" * 24, b"b" * 64, b"c" * 32)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no secret"),
        ("# nothing\n", "has no secret"),
        ("hunter2\n", "line 1 is no secret"),
        ("\nwhsec_!!!\n", "line 2 is no base64"),
        (secret_line(b"short"), "line 1 has 5 bytes; expected whsec_ and the base64 of 24 to 64"),
    ],
)
def test_secrets_that_are_none(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "secrets"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_secrets([path])
    assert told in caught.value.message
    assert str(path) in caught.value.message
    assert "hunter2" not in caught.value.message
    with pytest.raises(ConfigError, match="cannot be read"):
        read_secrets([tmp_path / "missing"])


async def test_without_a_secret_there_are_none(bus: Bus) -> None:
    async with teller(bus, secrets=()) as webhooks:
        webhooks.check("")
        with pytest.raises(Unsupported, match="--webhook-secret-file"):
            webhooks.check("https://example.com/")
    async with teller(bus, "192.0.2.0/24") as webhooks:
        with pytest.raises(Forbidden):
            webhooks.check("http://127.0.0.1/")


# Turns


async def test_a_receiver_that_fails_is_left_alone_for_longer_each_time() -> None:
    now = 100.0
    hosts = Hosts(lambda: now)
    assert hosts.pause("h") == 0
    pauses = []
    for _ in range(8):
        assert await hosts.enter("h")
        hosts.leave("h", well=False)
        pauses.append(hosts._hosts["h"].paused_until - now)
    assert pauses[:3] == [-100, -100, receivers._PAUSE]
    assert pauses[3:] == sorted(pauses[3:])
    assert max(pauses) <= receivers._LONGEST_PAUSE
    assert hosts.pause("h") > 0
    assert hosts.pause("other") == 0
    now += 1000
    assert hosts.pause("h") == 0
    assert await hosts.enter("h")
    hosts.leave("h", well=True)
    assert hosts._hosts["h"].failures == 0


async def test_hosts_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receivers, "_MOST_HOSTS", 5)
    now = 0.0
    hosts = Hosts(lambda: now)
    assert await hosts.enter("held")
    held = hosts._hosts["held"]
    for number in range(50):
        now += 1000
        assert await hosts.enter(str(number))
        hosts.leave(str(number), well=number % 2 == 0)
    assert len(hosts._hosts) <= 6
    assert hosts._hosts["held"] is held


def test_receivers_are_what_they_are_for(tmp_path: Path) -> None:
    """The helper refuses what is not signed as it should."""
    assert Receiver().url.endswith("/hook")
    assert read_secrets([secret_file(tmp_path)]) == (SECRET,)
