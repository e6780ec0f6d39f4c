from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from qinfer.bus.kafka.consumer import KafkaConsumer
from qinfer.bus.kafka.member import _assignor
from qinfer.bus.kafka.progress import Progress, extent
from qinfer.bus.kafka.share import Share

NOTHING = (-1, "")


def after(progress: Progress, *, final: bool = False) -> Progress:
    """What the next owner begins with."""
    state, _ = progress.snapshot(final=final)
    return Progress(state)


def test_nothing_is_handed_out_before_its_border_is_committed() -> None:
    progress = Progress(NOTHING, start=5)
    assert (progress.done, progress.reserved) == (5, 5)
    assert progress.wants_reservation
    _, border = progress.snapshot()
    assert progress.reserved == 5
    progress.confirm(border)
    assert progress.reserved == border > 5


def test_a_share_hands_out_nothing_behind_the_border() -> None:
    share = Share(("t", 0), NOTHING, 0)
    share.fetched([SimpleNamespace(offset=offset, value=b"frame") for offset in range(20)])
    assert not share.is_free
    share.progress.approach(0)
    share.progress.confirm(share.progress.snapshot()[1])
    taken = 0
    while share.is_free:
        share.progress.handed_out(share.take().offset)
        taken += 1
    assert taken == share.progress.reserved < 20


async def test_what_was_fetched_before_a_partition_came_back_says_nothing_of_its_new_share() -> None:
    """The frames before it may be undone: whoever had the partition meanwhile gave them back."""
    topic_partition = pytest.importorskip("aiokafka").TopicPartition
    named, other = ("t", 0), ("t", 1)
    shares = {partition: Share(partition, NOTHING, 0) for partition in (named, other)}
    shares[other].fetched([SimpleNamespace(offset=offset, value=b"frame") for offset in range(5)])

    async def doubles(share: Share, _: object) -> list[int]:
        if share.partition == named:  # takes so long that the group is shared out anew
            shares[other].lost = True
            shares[other] = Share(other, NOTHING, 0)
        return []

    async def getmany(**_: object) -> dict[Any, list[SimpleNamespace]]:
        first, later = (SimpleNamespace(offset=offset, value=b"frame") for offset in (0, 5))
        return {topic_partition(*named): [first], topic_partition(*other): [later]}

    consumer: Any = SimpleNamespace(
        _shares=shares, _member=SimpleNamespace(getmany=getmany), _doubles=doubles, _wake=lambda: None
    )
    await KafkaConsumer._fetch_once(consumer)
    assert shares[other].progress.done == shares[other].position == 0
    assert shares[named].position == 1


def test_members_of_one_process_do_not_share_what_they_had() -> None:
    """aiokafka keeps it in the class."""
    one, other = _assignor(), _assignor()
    protocol = pytest.importorskip("aiokafka.coordinator.protocol")
    assignment = protocol.ConsumerProtocolMemberAssignment(0, [("t", [1])], b"")
    one.on_assignment(assignment)
    assert one.member_assignment == [("t", 1)]
    assert other.member_assignment is None


def test_the_border_keeps_ahead_of_what_is_handed_out() -> None:
    progress = Progress(NOTHING)
    for offset in range(100):
        progress.handed_out(offset)
        if progress.wants_reservation:
            progress.confirm(progress.snapshot()[1])
        assert progress.reserved > offset


def test_frames_are_done_in_any_order() -> None:
    progress = Progress(NOTHING)
    for offset in range(6):
        progress.handed_out(offset)
    for offset in (1, 2, 5):
        progress.end(offset)
    assert progress.done == 0
    assert [progress.is_done(offset) for offset in range(6)] == [False, True, True, False, False, True]
    progress.end(0)
    assert progress.done == 3
    progress.end(0)  # late, and told twice
    assert progress.done == 3


def test_the_next_owner_knows_what_is_done_and_what_was_out() -> None:
    first = Progress(NOTHING)
    for offset in range(6):
        first.handed_out(offset)
    first.confirm(first.snapshot()[1])
    for offset in (0, 2, 3):
        first.end(offset)
    second = after(first)
    assert second.done == 1
    assert [second.is_done(offset) for offset in range(7)] == [True, False, True, True, False, False, False]
    assert second.handed_out(1) == 2
    assert second.handed_out(5) == 2
    third = after(second)
    assert third.handed_out(1) == 3
    assert third.handed_out(4) == 2


def test_what_a_dead_owner_may_have_had_counts_as_delivered() -> None:
    first = Progress(NOTHING)
    state, border = first.snapshot()  # committed before anything is handed out: all it ever told
    second = Progress(state)
    assert second.handed_out(border - 1) == 2
    assert second.handed_out(border) == 1


def test_who_leaves_in_order_leaves_nothing_in_doubt() -> None:
    first = Progress(NOTHING)
    first.handed_out(0)
    first.confirm(first.snapshot()[1])
    second = after(first, final=True)
    assert second.handed_out(0) == 2
    assert second.handed_out(1) == 1


def test_after_an_exact_border_the_next_frame_waits_for_a_new_one() -> None:
    progress = Progress(NOTHING)
    progress.confirm(progress.snapshot()[1])
    progress.handed_out(0)
    progress.confirm(progress.snapshot(final=True)[1])
    assert progress.reserved == 1


def test_offsets_without_frames_are_no_frames() -> None:
    progress = Progress(NOTHING)
    progress.skip(0, 1_000_000_000)  # as after somebody deleted records
    assert progress.done == 1_000_000_000
    progress.skip(1_000_000_002, 1_000_000_004)
    progress.end(1_000_000_000)
    progress.end(1_000_000_001)
    assert progress.done == 1_000_000_004


def test_frames_done_far_ahead_do_not_keep_the_next_one_from_its_turn() -> None:
    progress = Progress(NOTHING)
    progress.skip(1, 1000)
    progress.approach(1000)
    assert progress.snapshot()[1] > 1000


@pytest.mark.parametrize("text", ["", "what else is in use", "1;zz;;;;", "2;1;1;1;;", "1;-1;0;0;;"])
def test_what_others_committed_is_taken_as_a_plain_offset(text: str) -> None:
    progress = Progress((7, text), start=3)
    assert (progress.done, progress.reserved) == (7, 7)
    assert extent((7, text), start=3).done_before == 7


def test_an_old_offset_does_not_reach_behind_the_first_frame() -> None:
    assert Progress((7, ""), start=9).done == 9


def test_the_text_fits_a_commit_whatever_happens() -> None:
    chance = random.Random(7)
    progress = Progress(NOTHING)
    for offset in range(20_000):
        progress.handed_out(offset)
        if chance.random() < 0.3:
            progress.handed_out(offset)
        if chance.random() < 0.5:
            progress.end(offset)
    progress.approach(20_000)
    state, _ = progress.snapshot()
    assert len(state[1]) < 4096
    after_all = Progress(state)
    for offset in range(20_000):  # what the text has no room for is done again, never lost
        assert progress.is_done(offset) or not after_all.is_done(offset)


def test_how_far_a_partition_is() -> None:
    progress = Progress(NOTHING)
    for offset in (0, 1, 2, 1):
        progress.handed_out(offset)
    progress.end(2)
    told = extent(progress.snapshot()[0], start=0)
    assert (told.done_before, told.done, told.highest, told.deliveries) == (0, 1, 3, 4)
    progress.end(0)
    progress.end(1)
    told = extent(progress.snapshot()[0], start=0)
    assert (told.done_before, told.done, told.highest) == (3, 0, 3)
    assert extent(NOTHING, start=4).highest == 4
