"""A worker's streams on the memory bus; the tests are the client."""

from __future__ import annotations

from pathlib import Path

import pytest

from qinfer.message import END, FINAL, Response
from qinfer_workers.streams.stream import MAX_AHEAD, MAX_UNHEEDED
from tests.helpers.waiting import eventually
from tests.streams.models import COUNTS, GENERATES, THREADED, lines
from tests.streams.stage import Stage, nothing_held, request_of, values

EVERY = pytest.mark.parametrize("model", [COUNTS, THREADED, GENERATES])
BLOCKING = pytest.mark.parametrize("model", [COUNTS, THREADED])


def reason_of(response: Response) -> str:
    return response.error.reason if response.error is not None else ""


@EVERY
async def test_responses_are_numbered_and_the_end_is_marked(stage: Stage, model: str) -> None:
    worker = await stage.serve(model)
    stage.send(request_of(1, 5), model=model)
    responses = await stage.ended(1)
    assert [response.index for response in responses] == [0, 1, 2, 3, 4, 5]
    assert [response.flags for response in responses] == [0] * 5 + [FINAL | END]
    assert values(responses) == [0, 1, 2, 3, 4]
    assert {response.attempt for response in responses} == {1}
    assert responses[0].parameters.keys() == {"pid"}
    await nothing_held(worker.services[model])


@EVERY
async def test_no_responses_at_all(stage: Stage, model: str) -> None:
    worker = await stage.serve(model)
    stage.send(request_of(1, 0), model=model)
    (end,) = await stage.ended(1)
    assert (end.index, end.flags, end.outputs, end.error) == (0, FINAL | END, [], None)
    await nothing_held(worker.services[model])


@BLOCKING
async def test_the_last_response_may_say_so_itself(stage: Stage, model: str) -> None:
    await stage.serve(model)
    stage.send(request_of(1, 3, flag_last=True), model=model)
    responses = await stage.ended(1)
    assert [(response.index, response.flags) for response in responses] == [(0, 0), (1, 0), (2, FINAL)]


@EVERY
async def test_streams_of_one_frame_are_apart(stage: Stage, model: str) -> None:
    worker = await stage.serve(model)
    stage.send(request_of(1, 3), request_of(2, 0), request_of(3, 7, error="no"), model=model)
    for number, count in ((1, 3), (2, 0), (3, 7)):
        responses = await stage.ended(number)
        assert values(responses) == list(range(count))
        assert [response.index for response in responses] == list(range(count + 1))
        assert (responses[-1].error is not None) == (number == 3)
    await nothing_held(worker.services[model])


@EVERY
async def test_an_exception_after_three_responses(stage: Stage, model: str) -> None:
    worker = await stage.serve(model)
    stage.send(request_of(1, 9, raise_at=3), model=model)
    responses = await stage.ended(1)
    assert values(responses) == [0, 1, 2]
    assert (responses[3].index, responses[3].flags) == (3, FINAL)
    assert responses[3].error is not None
    assert reason_of(responses[3]) == "model_failed"
    if model != THREADED:  # there its thread ends, and the request is let go of
        assert "ValueError: at 3" in responses[3].error.message
    else:
        assert "let go of a request after 3 responses" in responses[3].error.message
    await nothing_held(worker.services[model])
    assert len(stage.responses) == 4


@BLOCKING
async def test_a_request_that_is_let_go_of_fails(stage: Stage, model: str) -> None:
    worker = await stage.serve(model)
    stage.send(request_of(1, 2, forget=True), model=model)
    responses = await stage.ended(1)
    assert values(responses) == [0, 1]
    assert responses[2].error is not None
    assert "let go of a request after 2 responses; expected a last one" in responses[2].error.message
    await nothing_held(worker.services[model])


async def test_a_response_after_the_last_is_the_models_fault_alone(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await stage.serve(COUNTS)
    stage.send(request_of(1, 2, again=True))
    assert [response.flags for response in await stage.ended(1)] == [0, 0, FINAL | END]
    await nothing_held(worker.services[COUNTS])
    assert "sent a response after its last one" in caplog.text
    assert len(stage.responses) == 3


@EVERY
async def test_a_window_pauses_the_model(stage: Stage, model: str, journal: Path) -> None:
    worker = await stage.serve(model)
    stage.send(request_of(1, 40, window=4, journal=str(journal)), model=model)
    for taken in (0, 1, 5, 30):
        stage.taken(1, taken, model)
        await eventually(lambda: len(stage.of(1)) == taken + 4)  # noqa: B023
        # A model that sends waits within `send`, an iterator is not asked.
        assert len(lines(journal)) <= taken + 5
    assert len(stage.of(1)) == 34
    stage.taken(1, 100, model)
    assert values(await stage.ended(1)) == list(range(40))
    await nothing_held(worker.services[model])


@EVERY
async def test_without_a_window_little_waits_in_the_worker(
    stage: Stage, model: str, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await stage.serve(model)
    streams = worker.services[model]._streams
    monkeypatch.setattr(streams._replies, "stream", lambda *_: False)  # the connection takes nothing
    stage.send(request_of(1, 1000, journal=str(journal)), model=model)
    await eventually(lambda: streams and not any(stream.has_room() for stream in list(streams._open)))
    assert MAX_AHEAD <= len(lines(journal)) <= MAX_AHEAD + 2
    monkeypatch.undo()
    assert values(await stage.ended(1)) == list(range(1000))
    await nothing_held(worker.services[model])


@EVERY
async def test_a_cancelled_stream_stops_its_model(stage: Stage, model: str, journal: Path) -> None:
    worker = await stage.serve(model)
    stage.send(request_of(1, 1000000, window=3, journal=str(journal)), model=model)
    await eventually(lambda: len(stage.of(1)) == 3)
    stage.cancel(1, model=model)
    await eventually(lambda: lines(journal)[-1:] in (["closed"], ["cancelled at 5"], ["cancelled at 4"]))
    await nothing_held(worker.services[model])
    assert len(stage.responses) == 3
    stats = worker.stats()[0]
    assert stats.failed == {"cancelled": 1}


@BLOCKING
async def test_a_model_that_goes_on_regardless_is_stopped(stage: Stage, model: str, journal: Path) -> None:
    worker = await stage.serve(model)
    stage.send(request_of(1, 10_000_000, window=1, deaf=True, journal=str(journal)), model=model)
    await eventually(lambda: stage.of(1))
    stage.cancel(1, model=model)
    await eventually(lambda: "stopped" in "".join(lines(journal)[-1:]))
    assert "expected the model to ask is_cancelled()" in lines(journal)[-1]
    assert len(lines(journal)) <= MAX_UNHEEDED + 4
    await nothing_held(worker.services[model])


@EVERY
async def test_a_deadline_ends_the_stream_and_stops_the_model(
    stage: Stage, model: str, journal: Path
) -> None:
    worker = await stage.serve(model)
    stage.send(request_of(1, 1000, window=3, journal=str(journal)), model=model, timeout=0.4)
    responses = await stage.ended(1)
    assert values(responses) == [0, 1, 2]
    assert reason_of(responses[3]) == "deadline_exceeded"
    assert responses[3].error is not None
    assert "after 3 responses" in responses[3].error.message
    await eventually(lambda: "c" in "".join(lines(journal)[-1:]))  # closed, or cancelled
    await nothing_held(worker.services[model])
    assert len(stage.responses) == 4


async def test_generators_take_turns_and_new_ones_join(stage: Stage) -> None:
    """One that waits for its reader does not hold up the others, nor those that come later."""
    worker = await stage.serve(GENERATES)
    stage.send(request_of(1, 9, window=1), model=GENERATES)
    await eventually(lambda: stage.of(1))
    stage.send(request_of(2, 9), model=GENERATES)
    assert values(await stage.ended(2)) == list(range(9))
    assert values(stage.of(1)) == [0]
    stage.taken(1, 100, GENERATES)
    responses = await stage.ended(1)
    assert values(responses) == list(range(9)), responses
    await nothing_held(worker.services[GENERATES])


@EVERY
async def test_a_request_that_is_sent_again_takes_the_place_of_the_first(stage: Stage, model: str) -> None:
    worker = await stage.serve(model)
    for attempt in (0, 1):
        request = request_of(1, 9, window=2)
        request.attempt = attempt
        stage.send(request, model=model)
        await eventually(lambda: len(stage.of(1)) == 2 * (attempt + 1))  # noqa: B023
    await eventually(lambda: len(worker.services[model]._streams) == 1, "the first has ended")
    stage.taken(1, 9, model)
    assert [response.attempt for response in await stage.ended(1)] == [1] * 2 + [2] * 10
    await nothing_held(worker.services[model])


@EVERY
async def test_large_responses_stay_in_their_place(stage: Stage, model: str) -> None:
    worker = await stage.serve(model)
    size = stage.client.max_payload + 10
    stage.send(request_of(1, 3, size=size), request_of(2, 200), model=model)
    responses = await stage.ended(1)
    assert [response.index for response in responses] == [0, 1, 2, 3]
    assert all(response.claim for response in responses[:3])
    assert all(response.claim_bytes > size for response in responses[:3])
    assert values(await stage.ended(2)) == list(range(200))
    await nothing_held(worker.services[model])


@EVERY
async def test_idempotency_keys_are_refused(stage: Stage, model: str) -> None:
    worker = await stage.serve(model)
    request = request_of(1, 3)
    request.idempotency = "a" * 64
    stage.send(request, model=model)
    (response,) = await stage.ended(1)
    assert reason_of(response) == "invalid_request"
    await nothing_held(worker.services[model])


@EVERY
async def test_a_drain_waits_for_streams_and_then_gives_them_back(
    stage: Stage, model: str, journal: Path
) -> None:
    worker = await stage.serve(model, drain_timeout=0.3)
    stage.send(request_of(1, 50, window=2, journal=str(journal)), model=model)
    await eventually(lambda: len(stage.of(1)) == 2)
    await worker.drain()
    assert len(stage.responses) == 2
    other = await stage.serve(model)
    stage.taken(1, 100, model)
    await eventually(lambda: len(stage.of(1)) > 2)
    stage.taken(1, 100, model)
    responses = await stage.ended(1)
    assert {response.attempt for response in responses[2:]} == {2}
    assert responses[2].index == 0
    await nothing_held(other.services[model])
