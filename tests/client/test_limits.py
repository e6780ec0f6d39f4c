"""Which errors are tried again, when, and how many requests are on their way."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from qinfer.client import limits
from qinfer.client.limits import Gate, Tries
from qinfer.errors import BY_REASON, BusUnavailable, DeadlineExceeded, InvalidRequest, QueueFull, Retry

FAR = 1e12


@pytest.fixture(params=[0.0, 1.0])
def luck(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """The jitter at either end of its range."""
    share: float = request.param
    monkeypatch.setattr(limits.random, "uniform", lambda low, high: low + share * (high - low))
    return share


@pytest.mark.parametrize("reason", BY_REASON)
@pytest.mark.parametrize("once", [False, True])
def test_only_what_is_safe_is_tried_again(reason: str, once: bool) -> None:
    kind = BY_REASON[reason]
    tried = Tries(4, FAR, once=once).pause(kind("no")) is not None
    assert tried == (kind.retry is Retry.LATER or (once and kind.retry is Retry.MAYBE))


def test_pauses_grow_up_to_a_bound(luck: float) -> None:
    tries = Tries(9, FAR, once=False)
    pauses = [tries.pause(QueueFull("full")) for _ in range(10)]
    share = 0.5 + 0.5 * luck
    assert pauses == [
        *(pytest.approx(share * pause) for pause in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5)),
        None,
    ]


def test_a_pause_is_no_shorter_than_told(luck: float) -> None:
    pause = Tries(1, FAR, once=False).pause(QueueFull("full", retry_after=2.0))
    assert pause == 2.0 + 0.5 * luck


def test_there_is_no_pause_beyond_the_deadline() -> None:
    error = QueueFull("full", retry_after=2.0)
    assert Tries(1, monotonic() + 1.0, once=False).pause(error) is None
    assert Tries(0, FAR, once=False).pause(error) is None


def test_errors_of_callers_are_not_counted_as_tries() -> None:
    tries = Tries(1, FAR, once=False)
    assert tries.pause(InvalidRequest("no")) is None
    assert tries.pause(BusUnavailable("no")) is None
    assert tries.pause(QueueFull("full")) is not None


async def test_a_gate_lets_in_in_turn() -> None:
    gate = Gate(1, waits=True)
    await gate.enter(FAR)
    order: list[int] = []

    async def enter(number: int) -> None:
        await gate.enter(monotonic() + 60)
        order.append(number)

    waiting = [asyncio.create_task(enter(number)) for number in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.wait([waiting[1]])
    for count in (1, 2):
        gate.leave()
        await asyncio.wait([waiting[0 if count == 1 else 2]])
    assert order == [0, 2]
    gate.leave()
    await gate.enter(FAR)


async def test_a_gate_keeps_its_places_when_nobody_waits_any_more() -> None:
    gate = Gate(1, waits=True)
    await gate.enter(FAR)
    with pytest.raises(DeadlineExceeded):
        await gate.enter(monotonic())
    gate.leave()
    await gate.enter(FAR)
    refusing = Gate(1, waits=False)
    await refusing.enter(FAR)
    with pytest.raises(QueueFull):
        await refusing.enter(FAR)
