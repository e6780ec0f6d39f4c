"""Requests that nobody waits for any more, heard of before they were seen.

A cancellation goes to all workers of a model, because nobody knows which of them will get the request. It may
come first: the request is still in the queue, or at another worker that will give it back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from qinfer.message import CancelFrame
from qinfer_workers.batch import Member
from qinfer_workers.served import ServedVersion

_MEMORY = 300.0  # seconds; what waits in a queue for longer has mostly met its deadline
_MAX_REMEMBERED = 65536


class Cancellations:
    """Remembers cancelled requests for a while, a bounded number of them."""

    def __init__(self) -> None:
        self._cancelled: OrderedDict[tuple[str, int], float] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._cancelled)

    def remember(self, reply_to: str, numbers: Iterable[int], now: float) -> None:
        """These requests of a sender were cancelled; `now` in seconds of any steady clock."""
        cancelled = self._cancelled
        for number in numbers:
            cancelled[reply_to, number] = now
        while cancelled and (
            len(cancelled) > _MAX_REMEMBERED or now - next(iter(cancelled.values())) > _MEMORY
        ):
            cancelled.popitem(last=False)

    def take(self, reply_to: str, number: int) -> bool:
        """Whether a request was cancelled; it need not be remembered any longer then."""
        return self._cancelled.pop((reply_to, number), None) is not None


def cancel_held(
    frame: CancelFrame,
    loaded: Iterable[ServedVersion],
    isolated: Iterable[Member],
    *,
    drop: Callable[[ServedVersion, Member], None],
) -> set[int]:
    """Cancel what this worker holds.

    Args:
        frame: names the requests.
        loaded: the model's versions. What waits for a batch is taken out; what runs is told.
        isolated: redelivered requests; they are looked at before they run.
        drop: ends a request.

    Returns:
        The numbers of those that are not here.
    """
    sender, numbers = frame.reply_to, set(frame.ids)

    def gone(member: Member) -> bool:
        return member.frame.reply_to == sender and member.request.id in numbers

    found: list[Member] = []
    for served in loaded:
        waiting = served.batches.drop(gone)
        for member in waiting:
            drop(served, member)
        found += waiting
        for instance in served.instances:
            if instance.batch is not None:
                found += [member for member in instance.batch.members if gone(member)]
    found += [member for member in isolated if gone(member)]
    for member in found:
        member.cancelled = True
    return numbers - {member.request.id for member in found}
