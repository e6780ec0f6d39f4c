"""Forms batches: which requests go together, and when a batch has waited long enough.

A window opens with its first request and closes at the earliest of
  full       the batch has max_batch_size rows,
  preferred  it has reached a preferred size,
  window     max_queue_delay is over,
  deadline   its tightest member would be late otherwise (deadline minus the learned batch time),
  alone      every request the senders have in flight is here already: nobody can join,
  idle       no delay is configured and an instance is free,
  drain      the worker is stopping.
Nothing is closed before an instance is idle: until then more requests may join for free. Requests whose
deadline passes meanwhile are taken out then: their senders hear of it, and their rows are free for others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter

from qinfer.repository import ModelConfig
from qinfer.signature import Plan
from qinfer.telemetry.stats import CloseReason
from qinfer_workers.batch import Batch, Member
from qinfer_workers.instance import Completion, InstanceThread

_LEARNING_RATE = 0.1
_GRAIN = 0.002  # deadlines this close together are served by one look; timers may be a millisecond early
# uvloop's clock counts whole milliseconds and its timers are rounded to them. Rounded down, a timer would
# fire again and again until the next one has begun; and sums of milliseconds are a rounding error from it.
_ROUND_UP = 0.000499
_ROUNDING = 1e-6


_load = attrgetter("load")


class _Window:
    """Requests of one plan that wait for a batch."""

    __slots__ = ("deadline", "members", "opened", "rows")

    def __init__(self, now: float) -> None:
        self.members: deque[Member] = deque()
        self.rows = 0
        self.opened = now
        self.deadline = float("inf")


class Batcher:
    """Batches of one model version for its instances.

    Args:
        config: gives max_batch_size and dynamic_batching.
        instances: where batches run.
        company: how many more requests could still arrive, as far as the senders told; None if unknown.
        expired: called with the members whose deadline passed before they could run, when it passes.
    """

    def __init__(
        self,
        config: ModelConfig,
        instances: Sequence[InstanceThread],
        *,
        company: Callable[[], int | None],
        expired: Callable[[Sequence[Member]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._instances = instances
        self._company = company
        self._expired = expired
        self._batched = config.max_batch_size > 0
        self._limit = max(1, config.max_batch_size)
        batching = config.dynamic_batching
        self._delay = batching.max_queue_delay_us / 1e6 if batching else 0.0
        self._preferred = sorted(batching.preferred_batch_sizes) if batching else []
        self._windows: dict[Plan, _Window] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pump_handle: asyncio.Handle | None = None
        self._watched = float("inf")  # the earliest deadline the watch is set for
        self._watch_handle: asyncio.TimerHandle | None = None
        self._batch_seconds = 0.0
        self._draining = False
        self._held = False
        self._finished = asyncio.Event()
        self.waiting = 0
        """Requests that wait for a batch."""

    def add(self, member: Member) -> None:
        """Let a request wait for its batch."""
        plan = member.plan
        window = self._windows.get(plan)
        if window is None:
            window = self._windows[plan] = _Window(self._loop.time())
        window.members.append(member)
        window.rows += member.rows
        if member.deadline < window.deadline:
            window.deadline = member.deadline
        if member.deadline < self._watched:
            self._watch(member.deadline)
        self.waiting += 1
        self.schedule()

    def schedule(self) -> None:
        """Look for closed windows once everything that arrives in this tick is here."""
        if self._pump_handle is None:
            self._pump_handle = self._loop.call_soon(self._pump)

    def completed(self, completion: Completion) -> None:
        """Learn how long batches take; an instance is idle again."""
        seconds = (completion.ended_ns - completion.started_ns) / 1e9
        learned = self._batch_seconds
        self._batch_seconds = learned + _LEARNING_RATE * (seconds - learned) if learned else seconds
        if self._held:
            self._finished.set()
        else:
            self.schedule()

    def calmed(self) -> None:
        """An instance has ended what it had begun before."""
        self._finished.set()

    def drop(self, gone: Callable[[Member], bool]) -> list[Member]:
        """Take out the waiting requests that are `gone`."""
        dropped: list[Member] = []
        for plan, window in list(self._windows.items()):
            leaving = [member for member in window.members if gone(member)]
            if not leaving:
                continue
            dropped += leaving
            window.members = deque([member for member in window.members if not gone(member)])
            if window.members:
                window.rows = sum([member.rows for member in window.members])
                window.deadline = min([member.deadline for member in window.members])
                window.opened = window.members[0].frame.arrived
            else:
                del self._windows[plan]
        self.waiting -= len(dropped)
        return dropped

    async def hold(self, timeout: float, wanted: Callable[[], bool]) -> None:
        """Submit no further batches until `release`; returns when nothing runs on the instances.

        After `timeout` seconds one has to do: an instance that hangs must not stop the others for ever. Where
        none is, it is waited for as long as what it is wanted for is `wanted`.
        """
        self._held = True
        give_up = self._loop.time() + timeout
        while not all(instance.quiet for instance in self._instances):
            self._finished.clear()
            try:
                async with asyncio.timeout_at(give_up):
                    await self._finished.wait()
            except TimeoutError:
                if any(instance.idle for instance in self._instances) or not wanted():
                    return
                give_up = self._loop.time() + timeout

    def release(self) -> None:
        """Go on after `hold`."""
        self._held = False
        self.schedule()

    def drain(self) -> None:
        """Hold no window open from now on."""
        self._draining = True
        self.schedule()

    def close(self) -> Sequence[Member]:
        """Stop; returns the requests that still wait."""
        for handle in (self._timer, self._pump_handle, self._watch_handle):
            if handle is not None:
                handle.cancel()
        left = [member for window in self._windows.values() for member in window.members]
        self._windows.clear()
        return left

    def _pump(self) -> None:
        """Submit what is due to the idle instances, or wake up again when something will be."""
        self._pump_handle = None
        if self._held:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        idle = [instance for instance in self._instances if instance.idle]
        if len(idle) > 1:
            idle.sort(key=_load)
        now = self._loop.time()
        wake = float("inf")
        # Oldest window first; dictionaries keep that order because an emptied window is removed.
        for plan, window in list(self._windows.items()):
            while window.members and idle:
                reason, due = self._close_reason(window, now)
                if reason is None:
                    wake = min(wake, due)
                    break
                batch = self._take(plan, window, reason, now)
                if batch is not None:
                    idle.pop(0).submit(batch)
            if not idle:
                return
        if wake < float("inf"):
            self._timer = self._loop.call_at(wake + _ROUND_UP, self._pump)

    def _watch(self, deadline: float) -> None:
        """Look for expired requests at `deadline`: one timer for all, since few ever need it."""
        if self._watch_handle is not None:
            self._watch_handle.cancel()
        self._watched = deadline
        self._watch_handle = self._loop.call_at(deadline + _GRAIN, self._drop_expired)

    def _drop_expired(self) -> None:
        self._watched, self._watch_handle = float("inf"), None
        now = self._loop.time()
        late = self.drop(lambda member: member.deadline <= now)
        earliest = min([window.deadline for window in self._windows.values()], default=float("inf"))
        if earliest < self._watched:
            self._watch(earliest)
        if late:
            self._expired(late)

    def _close_reason(self, window: _Window, now: float) -> tuple[CloseReason | None, float]:
        """Why a window closes now, or None and when it will."""
        if window.rows >= self._limit:
            return "full", now
        if self._preferred and window.rows >= self._preferred[0]:
            return "preferred", now
        if self._draining:
            return "drain", now
        if not self._delay:
            return "idle", now
        due = window.opened + self._delay
        if now >= due - _ROUNDING:
            return "window", now
        latest = window.deadline - self._batch_seconds
        if now >= latest - _ROUNDING:
            return "deadline", now
        if self._company() == 0:
            return "alone", now
        return None, min(due, latest)

    def _take(self, plan: Plan, window: _Window, reason: CloseReason, now: float) -> Batch | None:
        """Take the next batch out of a window; None when all it would have held had expired."""
        limit = self._limit
        if reason == "preferred":
            limit = max(size for size in self._preferred if size <= window.rows)
        members: list[Member] = []
        late: list[Member] = []
        rows = 0
        waiting = window.members
        while waiting:
            member = waiting[0]
            if member.deadline <= now:
                late.append(waiting.popleft())
                window.rows -= member.rows
                continue
            if rows + member.rows > limit and members:
                break
            members.append(waiting.popleft())
            rows += member.rows
        window.rows -= rows
        self.waiting -= len(members) + len(late)
        if not waiting:
            del self._windows[plan]
        elif window.deadline <= now or members:
            window.deadline = min(member.deadline for member in waiting)
            window.opened = waiting[0].frame.arrived  # the delay bounds each request's wait, not a window's
        if late:
            self._expired(late)
        return Batch(members, reason, batched=self._batched) if members else None
