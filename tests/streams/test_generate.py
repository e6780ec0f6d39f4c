"""`generate` and `generate_stream` on a gateway with a real broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from qinfer_gateway.streams import WINDOW
from tests.helpers.http import tensor
from tests.helpers.system import Fleet
from tests.helpers.waiting import PATIENCE, eventually
from tests.jobs.http_client import client
from tests.streams.conftest import MakeFleet
from tests.streams.models import COUNTS, GENERATES, ONE, REPEAT, SQUARE, TEXT, THREADED, lines

BOTH = pytest.mark.parametrize("model", [THREADED, GENERATES])


@asynccontextmanager
async def asked(
    fleet: Fleet, model: str, body: Any, *, stream: bool = True, version: str = "", **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer to one request; a body that is not bytes is sent as JSON."""
    path = f"/versions/{version}" if version else ""
    url = f"http://127.0.0.1:{fleet.port}/v2/models/{model}{path}/generate{'_stream' * stream}"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        asyncio.timeout(PATIENCE),
        aiohttp.ClientSession() as session,
        session.post(url, data=data, headers=told) as answer,
    ):
        yield answer


async def events_of(answer: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    """All events of a stream."""
    assert answer.status == 200, await answer.text()
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    parts = (await answer.read()).decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


async def error_of(answer: aiohttp.ClientResponse) -> tuple[int, str, str]:
    """Status, reason and message of an error."""
    return answer.status, answer.headers["x-qinfer-reason"], (await answer.json())["error"]


async def test_events(make_fleet: MakeFleet) -> None:
    async with make_fleet(REPEAT) as fleet:
        body = {"id": "a", "IN": [4, 2, 0], "DELAY": [0, 0, 0], "WAIT": 0}
        async with asked(fleet, REPEAT, body, version="1") as answer:
            about = {"model_name": REPEAT, "model_version": "1", "id": "a"}
            assert await events_of(answer) == [
                {**about, "OUT": value, "IDX": index} for index, value in enumerate([4, 2, 0])
            ]
        await eventually(lambda: not fleet.in_flight)


@pytest.mark.parametrize("model", [GENERATES])
async def test_no_events(make_fleet: MakeFleet, model: str) -> None:
    async with make_fleet(model) as fleet, asked(fleet, model, {"n": 0}) as answer:
        assert await events_of(answer) == []


async def test_what_becomes_of_a_body(make_fleet: MakeFleet) -> None:
    """Inputs by their names, parameters at either level, lists and single elements, and a batch dimension."""
    async with make_fleet(TEXT) as fleet:
        body = {"text": "é", "more": [1, 2, 3], "flat": True, "parameters": {"deep": 0.5}, "id": "7"}
        async with asked(fleet, TEXT, body, stream=False) as answer:
            assert answer.status == 200
            assert answer.headers["content-type"] == "application/json"
            assert await answer.json() == {
                "model_name": TEXT,
                "model_version": "1",
                "id": "7",
                "sum": 6,
                "said": '{"deep": 0.5, "flat": true}',
                "shapes": [1, 1, 1, 3],
                "text": "é",
            }
        async with asked(fleet, TEXT, {"text": [["b"]], "more": [[4]]}, stream=False) as answer:
            told = await answer.json()
            assert (told["text"], told["sum"], told["shapes"]) == ("b", 4, [1, 1, 1, 1])


@pytest.mark.parametrize("model", [ONE, SQUARE])
async def test_generate_answers_with_the_only_response(make_fleet: MakeFleet, model: str) -> None:
    async with make_fleet(model) as fleet:
        async with asked(fleet, model, {"IN": 1}, stream=False) as answer:
            assert (await answer.json())["OUT"] == (1 if model == SQUARE else 2)
        async with asked(fleet, model, {"IN": 1}) as answer:
            assert [event["OUT"] for event in await events_of(answer)] == [1 if model == SQUARE else 2]
        await eventually(lambda: not fleet.in_flight)


async def test_generate_refuses_any_other_number_of_responses(make_fleet: MakeFleet, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with make_fleet(COUNTS) as fleet:
        for n, found in ((0, "none"), (100_000, "more than one")):
            body = {"n": n, "journal": str(journal)}
            async with asked(fleet, COUNTS, body, stream=False) as answer:
                status, reason, message = await error_of(answer)
                assert (status, reason) == (400, "invalid_request")
                assert f"gave {found} of the responses" in message
        await eventually(lambda: "cancelled" in "".join(lines(journal)[-1:]), "the model has stopped")
        await eventually(lambda: not fleet.in_flight)


async def test_infer_is_refused(make_fleet: MakeFleet) -> None:
    async with make_fleet(SQUARE) as fleet:
        url = f"http://127.0.0.1:{fleet.port}/v2/models/{SQUARE}/infer"
        body = {"inputs": [{"name": "IN", "shape": [1], "datatype": "INT32", "data": [2]}]}
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            status, reason, message = await error_of(answer)
        assert (status, reason) == (501, "unsupported")
        assert "expected generate_stream over HTTP, or ModelStreamInfer over gRPC" in message


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "request body"),
    "no object": ([1], "expected a JSON object"),
    "missing input": ({"m": 1}, "no inputs"),
    "wrong type": ({"n": "one"}, "input 'n'"),
    "too many elements": ({"n": [1, 2]}, "'n'"),
    "nested input": ({"n": [[1]]}, "'n'"),
    "null input": ({"n": None}, "input 'n'"),
    "ragged input": ({"n": [[1], [2, 3]]}, "'n'"),
    "list as parameter": ({"n": 1, "m": [1]}, "'m' is no input of the model, which has 'n'"),
    "null as parameter": ({"n": 1, "m": None}, "'m' is no input"),
    "reserved parameter": ({"n": 1, "triton_x": 1}, "reserved"),
    "parameters of another type": ({"n": 1, "parameters": [1]}, "expected an object"),
    "identifier of another type": ({"n": 1, "id": 5}, "'id' is 5; expected a string"),
}


async def test_bad_bodies(make_fleet: MakeFleet) -> None:
    async with make_fleet(COUNTS, max_body_bytes=4096) as fleet:
        for what, (body, part) in BAD.items():
            for stream in (True, False):
                async with asked(fleet, COUNTS, body, stream=stream) as answer:
                    status, reason, message = await error_of(answer)
                    assert (status, reason) == (400, "invalid_request"), what
                    assert part in message, what
        for body, headers, status in (
            (b"x" * 5000, {}, 413),
            (b"{}", {"content_encoding": "br"}, 415),
            ({"n": 1}, {"x_qinfer_timeout_ms": "soon"}, 400),
            ({"n": 1}, {"idempotency_key": "k"}, 400),
        ):
            async with asked(fleet, COUNTS, body, **headers) as answer:  # type: ignore[arg-type]
                assert answer.status == status, await answer.text()
        async with asked(fleet, "nobody", {"n": 1}) as answer:
            assert (await error_of(answer))[:2] == (404, "model_not_found")
        assert not fleet.in_flight


@BOTH
async def test_a_failure_has_a_status_before_the_first_event_and_is_an_event_after(
    make_fleet: MakeFleet, model: str
) -> None:
    async with make_fleet(model) as fleet:
        async with asked(fleet, model, {"n": 0, "error": "enough"}) as answer:
            assert (await error_of(answer))[2] == "enough"
            assert answer.status == (500 if model == GENERATES else 400)
        async with asked(fleet, model, {"n": 3, "error": "enough"}) as answer:
            *events, error = await events_of(answer)
            assert [event["i"] for event in events] == [0, 1, 2]
            assert error["error"] == "enough"
            assert error["reason"] == ("model_failed" if model == GENERATES else "invalid_request")


@pytest.mark.parametrize("model", [GENERATES])
async def test_a_deadline_in_the_middle(make_fleet: MakeFleet, tmp_path: Path, model: str) -> None:
    gate = tmp_path / "gate"
    async with make_fleet(model) as fleet:
        body = {"n": 5, "stop_at": 2, "gate": str(gate)}
        async with asked(fleet, model, body, x_qinfer_timeout_ms="300") as answer:
            *events, error = await events_of(answer)
            assert [event["i"] for event in events] == [0, 1]
            assert error["reason"] == "deadline_exceeded"
        gate.touch()
        await eventually(lambda: not fleet.workers[0].services[model]._streams, "the model has stopped")


@BOTH
async def test_a_client_that_leaves_stops_the_model(
    make_fleet: MakeFleet, tmp_path: Path, model: str
) -> None:
    journal = tmp_path / "journal"
    async with make_fleet(model) as fleet:
        async with asked(fleet, model, {"n": 10_000_000, "journal": str(journal)}) as answer:
            assert await answer.content.readline()
            answer.close()
        await eventually(lambda: not fleet.in_flight)
        await eventually(lambda: "c" in "".join(lines(journal)[-1:]), "the model has stopped")
        await eventually(lambda: not fleet.workers[0].services[model]._streams)


async def test_a_client_that_leaves_before_the_first_response(make_fleet: MakeFleet, tmp_path: Path) -> None:
    journal, gate = tmp_path / "journal", tmp_path / "gate"
    async with make_fleet(THREADED) as fleet:
        for stream in (True, False):
            body = {"n": 3, "stop_at": 0, "gate": str(gate), "journal": str(journal)}
            url = f"http://127.0.0.1:{fleet.port}/v2/models/{THREADED}/generate{'_stream' * stream}"
            async with aiohttp.ClientSession() as session:
                asking = asyncio.create_task(session.post(url, json=body))
                await eventually(lambda: fleet.in_flight == 1)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
            await eventually(lambda: not fleet.in_flight)
        gate.touch()
        await eventually(lambda: lines(journal) == ["cancelled at 0"] * 2, "both models have stopped")


@pytest.mark.parametrize("model", [GENERATES])
async def test_a_slow_reader_pauses_the_model(make_fleet: MakeFleet, tmp_path: Path, model: str) -> None:
    journal = tmp_path / "journal"
    total = 80
    async with make_fleet(model) as fleet:
        body = {"n": total, "journal": str(journal), "size": 100_000}
        async with asked(fleet, model, body) as answer:
            open_ = fleet.workers[0].services[model]._streams._open
            await eventually(lambda: any(stream.waits for stream in list(open_)), "the model waits")
            assert len(lines(journal)) <= 3 * WINDOW
            assert [event["i"] for event in await events_of(answer)] == list(range(total))


async def test_connections_are_kept_and_calls_are_counted(make_fleet: MakeFleet) -> None:
    async with make_fleet(SQUARE) as fleet, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{fleet.port}/v2/models/{SQUARE}/generate_stream"
        for n in (2, 0, 3):
            async with session.post(url, json={"IN": n}) as answer:
                assert len(await events_of(answer)) == n
        assert len(fleet.gateway.http._server.server_state.connections) == 1  # type: ignore[union-attr]
        stats = fleet.dispatcher._observer.stats
        assert stats.requests[SQUARE, "http", "ok"].count == 3
        assert stats.first_responses[SQUARE, "http"].count == 3


async def test_streams_are_no_jobs(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """A job has one result: that a model gives any number of them is said when it is submitted."""
    (tmp_path / "in.jsonl").write_text('{"n": 1}')
    async with make_fleet(GENERATES, batch_roots=(f"d={tmp_path}",)) as fleet, client(fleet.port) as asks:
        jobs = fleet.gateway.jobs
        await eventually(lambda: jobs is not None and jobs.ready, "jobs can be taken in")
        request = {"inputs": [tensor([1], "INT32", [1, 1], name="n")]}
        batch = {"input": "d/in.jsonl", "output": "d/out.jsonl"}
        for answer, status in (
            (await asks.infer(GENERATES, request, prefer="respond-async"), 501),
            (await asks.ask("POST", "/v2/jobs", {"model": GENERATES, "request": request}), 501),
            (await asks.ask("POST", "/v2/jobs", {"model": GENERATES, "batch": batch}), 400),
        ):
            assert answer.status == status, answer
            assert "is decoupled" in answer.json["error"]
        assert (await asks.ask("GET", "/v2/jobs")).json["jobs"] == []
