"""`ModelStreamInfer` with decoupled models, by unmodified `tritonclient` and by bare calls."""

from __future__ import annotations

import asyncio
import queue
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from qinfer.proto import ModelInferRequest, ModelStreamInferResponse
from qinfer_gateway.parameters import EMPTY_FINAL
from qinfer_gateway.streams import WINDOW
from tests.gateway.grpc.calls import CHANNEL, triton_input
from tests.gateway.grpc.conftest import address, client_of
from tests.gateway.grpc.test_stream import channel_to, open_stream
from tests.helpers.system import Fleet
from tests.helpers.waiting import PATIENCE, eventually
from tests.streams.conftest import MakeFleet
from tests.streams.models import COUNTS, GENERATES, ONE, REPEAT, SQUARE, THREADED, lines

BOTH = pytest.mark.parametrize("model", [COUNTS, GENERATES])


def repeat(*values: int, delay: int = 0) -> list[triton.InferInput]:
    """Inputs of Triton's example `repeat_int32`."""
    return [
        triton_input(np.array(values, np.int32), "INT32", "IN"),
        triton_input(np.full(len(values), delay, np.uint32), "UINT32", "DELAY"),
        triton_input(np.array([0], np.uint32), "UINT32", "WAIT"),
    ]


def number(value: int, name: str = "IN") -> list[triton.InferInput]:
    return [triton_input(np.array([value], np.int32), "INT32", name)]


def asking(model: str, request_id: str, value: int, name: str, **parameters: Any) -> ModelInferRequest:
    """A request with one number, which wants empty final responses unless it says otherwise."""
    request = ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name=name, datatype="INT32", shape=[1])
    request.raw_input_contents.append(np.int32(value).tobytes())
    for key, given in {EMPTY_FINAL: True, **parameters}.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(given)]
        setattr(request.parameters[key], kind, given)
    return request


def count(n: int, request_id: str = "1", model: str = COUNTS, **parameters: Any) -> ModelInferRequest:
    """A request to count to `n`."""
    return asking(model, request_id, n, "n", **parameters)


@asynccontextmanager
async def stream_to(fleet: Fleet, *requests: ModelInferRequest, metadata: Any = ()) -> AsyncIterator[Any]:
    """The responses to requests on one stream."""
    async with channel_to(address(fleet)) as channel:
        stream = open_stream(channel, metadata)
        for request in requests:
            await stream.write(request)
        await stream.done_writing()
        yield stream


async def seen_of(fleet: Fleet, *requests: ModelInferRequest, metadata: Any = ()) -> list[Any]:
    """All that comes of requests on one stream: (id, value, final), (id, final) or an error's text."""
    async with stream_to(fleet, *requests, metadata=metadata) as stream:
        return [told(message) async for message in stream]


def told(message: ModelStreamInferResponse) -> Any:
    if message.error_message:
        return message.error_message
    response = message.infer_response
    final = response.parameters["triton_final_response"].bool_param
    return (response.id, *values(message), final)


def values(message: ModelStreamInferResponse) -> list[int]:
    """The number in a response, if it has any."""
    response = message.infer_response
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return [int(np.frombuffer(raw, np.int32)[0]) for output, raw in pairs if output.name in ("i", "OUT")]


async def test_repeat(make_fleet: MakeFleet) -> None:
    """As the client of Triton's example does: callbacks on a thread."""
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def talk(target: str) -> list[tuple[str, int, int, bool]]:
        seen = []
        with triton.InferenceServerClient(target, channel_args=CHANNEL) as client:
            client.start_stream(lambda result, error: results.put((result, error)))
            for request, values in (("a", [4, 2, 0, 1]), ("b", [7])):
                client.async_stream_infer(
                    REPEAT, repeat(*values), request_id=request, enable_empty_final_response=True
                )
            while sum(final for *_, final in seen) < 2:
                result, error = results.get(timeout=PATIENCE)
                assert error is None, error
                response = result.get_response()
                final = response.parameters["triton_final_response"].bool_param
                if final:
                    assert not response.outputs
                    assert (response.model_name, response.model_version) == (REPEAT, "1")
                    seen.append((response.id, -1, -1, True))
                else:
                    out, index = result.as_numpy("OUT")[0], result.as_numpy("IDX")[0]
                    seen.append((response.id, int(index), int(out), False))
            client.stop_stream()
        return seen

    async with make_fleet(REPEAT) as fleet:
        seen = await asyncio.to_thread(talk, address(fleet))
        by_request: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for request, index, out, _ in seen:
            by_request[request].append((index, out))
        assert by_request == {
            "a": [(0, 4), (1, 2), (2, 0), (3, 1), (-1, -1)],
            "b": [(0, 7), (-1, -1)],
        }
        await eventually(lambda: not fleet.in_flight)


async def test_responses_of_several_requests_are_interleaved(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """The second request's responses come while the first one's model waits."""
    gate = tmp_path / "gate"
    async with make_fleet(THREADED) as fleet:
        waiting = asyncio.create_task(
            seen_of(
                fleet,
                count(3, "1", THREADED, stop_at=1, gate=str(gate)),
                count(3, "2", THREADED, journal=str(tmp_path / "second")),
            )
        )
        await eventually(lambda: len(lines(tmp_path / "second")) == 3)
        await eventually(lambda: fleet.in_flight == 1, "the second is answered")
        gate.touch()
        seen = await waiting
        assert seen[-3:] == [("1", 1, False), ("1", 2, False), ("1", True)]
        assert [answer for answer in seen if answer[0] == "2"] == [
            ("2", 0, False), ("2", 1, False), ("2", 2, False), ("2", True),
        ]  # fmt: skip


async def test_the_asyncio_client(make_fleet: MakeFleet) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for request, many in (("a", [4, 2, 0]), ("b", [7])):
            yield {"model_name": REPEAT, "inputs": repeat(*many), "request_id": request}

    async with make_fleet(REPEAT) as fleet, client_of(fleet) as client:
        seen = defaultdict(list)
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            response = result.get_response()
            assert not response.parameters["triton_final_response"].bool_param
            seen[response.id].append(int(result.as_numpy("OUT")[0]))
        assert seen == {"a": [4, 2, 0], "b": [7]}


@pytest.mark.parametrize("model", [COUNTS])
async def test_no_responses(make_fleet: MakeFleet, model: str) -> None:
    async with make_fleet(model) as fleet:
        silent = count(0, "2", model, **{EMPTY_FINAL: False})
        assert await seen_of(fleet, count(0, "1", model), silent) == [("1", True)]


async def test_models_that_give_one_response_are_answered_in_order(make_fleet: MakeFleet) -> None:
    requests = [
        asking(ONE if i % 2 else SQUARE, str(i), i, "IN", **{EMPTY_FINAL: bool(i % 3)}) for i in range(12)
    ]
    async with make_fleet(ONE, SQUARE) as fleet:
        seen = await seen_of(fleet, *requests)
        odd = [(str(i), 2 * i, True) for i in range(1, 12, 2)]
        assert [answer for answer in seen if int(answer[0]) % 2] == odd
        for i in range(0, 12, 2):
            end = [(str(i), True)] if i % 3 else []
            assert [answer for answer in seen if answer[0] == str(i)] == [(str(i), i, False)] * i + end


@BOTH
async def test_an_error_after_three_responses_ends_its_request_alone(
    make_fleet: MakeFleet, model: str
) -> None:
    failing = count(3, "1", model, error="enough")
    async with make_fleet(model) as fleet:
        first = [("1", 0, False), ("1", 1, False), ("1", 2, False)]
        assert await seen_of(fleet, failing) == [*first, "enough"]
        assert await seen_of(fleet, count(1, "2", model)) == [("2", 0, False), ("2", True)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await seen_of(fleet, failing, metadata=(("triton_grpc_error", "true"),))
        code = grpc.StatusCode.INTERNAL if model == GENERATES else grpc.StatusCode.INVALID_ARGUMENT
        assert (caught.value.code(), caught.value.details()) == (code, "enough")


@pytest.mark.parametrize("model", [COUNTS])
async def test_a_deadline_in_the_middle(make_fleet: MakeFleet, tmp_path: Path, model: str) -> None:
    gate = tmp_path / "gate"
    async with make_fleet(model) as fleet:
        seen = await seen_of(fleet, count(9, "1", model, stop_at=2, gate=str(gate), timeout=300_000))
        assert seen[:-1] == [("1", 0, False), ("1", 1, False)]
        assert "deadline" in seen[-1]
        gate.touch()
        await eventually(lambda: not fleet.workers[0].services[model]._streams, "the model has stopped")


@BOTH
async def test_a_caller_that_has_gone_stops_the_model(
    make_fleet: MakeFleet, tmp_path: Path, model: str
) -> None:
    journal = tmp_path / "journal"
    async with make_fleet(model) as fleet:
        async with stream_to(fleet, count(10_000_000, "1", model, journal=str(journal))) as stream:
            assert values(await stream.read()) == [0]
            stream.cancel()
        await eventually(lambda: not fleet.in_flight)
        await eventually(lambda: "c" in "".join(lines(journal)[-1:]), "the model has stopped")
        await eventually(lambda: not fleet.workers[0].services[model]._streams)


@BOTH
async def test_a_slow_reader_pauses_the_model(make_fleet: MakeFleet, tmp_path: Path, model: str) -> None:
    """HTTP/2 and grpcio buffer some; the model gives the window more than that, and then waits."""
    journal = tmp_path / "journal"
    total = 200
    async with make_fleet(model) as fleet:
        asked = count(total, "1", model, journal=str(journal), size=256 * 1024)
        async with stream_to(fleet, asked) as stream:
            (streaming,) = await _begun(fleet, model)
            await eventually(lambda: streaming.waits, "the model waits for its reader")
            assert len(lines(journal)) <= 3 * WINDOW
            seen = [value async for message in stream for value in values(message)]
            assert seen == list(range(total))


async def _begun(fleet: Fleet, model: str) -> list[Any]:
    open_ = fleet.workers[0].services[model]._streams._open
    await eventually(lambda: open_, "the stream has begun")
    return list(open_)


async def test_unary_calls_are_refused(make_fleet: MakeFleet) -> None:
    async with make_fleet(SQUARE) as fleet, client_of(fleet) as client:
        with pytest.raises(triton_aio.InferenceServerException, match="decoupled") as caught:
            await client.infer(SQUARE, number(3))
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert not fleet.in_flight
