"""The open streams of one model: publishes what the model gives, and ends them.

A stream ends with its last response, with an error, when its caller has gone or its deadline passes. Its
request's frame is acked when all requests of the frame have ended; the room it takes is free again when the
model has let go of it, too. After a lost connection nobody knows what arrived: streams are broken off then,
and their frames delivered again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from time import perf_counter_ns
from typing import TypeAlias

from qinfer.bus import Bus
from qinfer.errors import BusUnavailable, Cancelled, DeadlineExceeded, QInferError
from qinfer.message import END, FINAL, BatchInfo, CancelFrame, encode
from qinfer.telemetry.stats import ResponseOutcome
from qinfer_workers.answers import Answers
from qinfer_workers.batch import Batch, HeldFrame
from qinfer_workers.credit import Credit
from qinfer_workers.execution import failure
from qinfer_workers.instance import Completion
from qinfer_workers.replies import Replies
from qinfer_workers.served import ServedVersion
from qinfer_workers.settlement import Settlement
from qinfer_workers.streams.member import StreamMember
from qinfer_workers.streams.stream import Entry, Stream
from qinfer_workers.streams.thread import StreamingThread

logger = logging.getLogger(__name__)

SILENCE = 300.0
"""Seconds that a caller without a deadline may take nothing of what it has asked for."""

_FRAME_SHARE = 7 / 8  # of max_payload, for the responses of a frame; the rest is for what goes with them
_RETRY = 0.05  # seconds before responses are published again that the connection did not take
_FAREWELL = 10.0  # seconds after a stream's end in which the model may let go of it
_GRAIN = 0.002  # seconds; timers may be a millisecond early
_LAST_POSITION = 63  # responses after that are counted together with it


class _Running:
    """A batch that was begun."""

    __slots__ = ("batch", "begun_ns", "completion", "open", "served", "thread")

    def __init__(self, served: ServedVersion, thread: StreamingThread, batch: Batch) -> None:
        self.served = served
        self.thread = thread
        self.batch = batch
        self.open = 0  # streams that the model has not let go of
        self.begun_ns = perf_counter_ns()
        self.completion: Completion | None = None

    def info(self) -> BatchInfo:
        """What its responses share so far."""
        elapsed = perf_counter_ns() - self.begun_ns
        return BatchInfo(self.batch.rows, len(self.batch.members), compute_infer_ns=elapsed)


class _Open:
    """A stream that was begun, as the event loop sees it."""

    __slots__ = ("ended", "heard", "member", "running", "storing", "stream", "timer")

    def __init__(self, stream: Stream, running: _Running, now: float) -> None:
        self.stream = stream
        self.member = stream.member
        self.running = running
        self.ended = False
        self.storing = False  # a response is on its way into the broker's store; later ones wait
        self.heard = now  # when the caller last said that it had taken any
        self.timer: asyncio.TimerHandle | None = None

    @property
    def reply_to(self) -> str:
        return self.member.frame.reply_to


_Given: TypeAlias = tuple[_Open, Entry]


class Streams:
    """Open streams of all versions of one model.

    Args:
        bus: a started bus.
        model: its name.
        settlement: ends requests.
        replies: publishes responses.
        answers: stores those that are too large for a message.
        credit: gets back the rows of requests that the model has let go of.
        finished: called with each batch, when the model has let go of all its members.
    """

    def __init__(
        self,
        bus: Bus,
        model: str,
        *,
        settlement: Settlement,
        replies: Replies,
        answers: Answers,
        credit: Credit,
        finished: Callable[[Batch], None],
    ) -> None:
        self._bus = bus
        self._model = model
        self._settlement = settlement
        self._replies = replies
        self._answers = answers
        self._credit = credit
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._running: dict[Batch, _Running] = {}
        self._open: dict[Stream, _Open] = {}
        self._ready: deque[Stream] = deque()  # filled by any thread; a stream gives little before it is heard
        self._scheduled = False
        self._largest = int(bus.max_payload * _FRAME_SHARE)

    def __len__(self) -> int:
        return len(self._open)

    # Batches

    def adopt(self, served: ServedVersion) -> None:
        """Open the streams of a version's requests, from now on."""
        for instance in served.instances:
            if isinstance(instance, StreamingThread):
                instance.begin = partial(self._begin, served)

    def executed(self, completion: Completion) -> None:
        """The model's `execute` has returned."""
        running = self._running[completion.batch]
        running.completion = completion
        if not running.open:
            self._finish(running, completion)

    def _begin(self, served: ServedVersion, thread: StreamingThread, batch: Batch) -> None:
        running = self._running[batch] = _Running(served, thread, batch)
        datatypes = {spec.name: spec.datatype for spec in served.config.outputs}
        for member in batch.members:
            if not isinstance(member, StreamMember):  # made by the service
                raise TypeError("a request for a decoupled model was not read as one")
            stream = Stream(
                member,
                where=f"model {self._model!r}",
                datatypes=datatypes,
                largest=self._largest,
                begun_ns=running.begun_ns,
                changed=self._changed,
            )
            member.start(stream)
            opened = self._open[stream] = _Open(stream, running, self._loop.time())
            running.open += 1
            thread.open += 1
            self._watch(opened)

    def _finish(self, running: _Running, completion: Completion) -> None:
        del self._running[running.batch]
        completion.ended_ns = perf_counter_ns()
        completion.timing.infer_ns = completion.ended_ns - completion.started_ns
        running.served.recorder.executed(completion)
        self._finished(running.batch)

    # From the model

    def _changed(self, stream: Stream) -> None:
        """Any thread: a stream has something to publish, or was let go of."""
        self._ready.append(stream)
        if not self._scheduled:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._flush)
            except RuntimeError:  # the loop has been closed: nobody listens any more
                logger.debug("model %s outlived its event loop", self._model)

    def _flush(self) -> None:
        """Publish what there is, a frame for each sender and batch."""
        self._scheduled = False
        frames: dict[tuple[str, _Running], list[_Given]] = {}
        looked: dict[Stream, _Open] = {}
        while self._ready:
            stream = self._ready.popleft()
            opened = self._open.get(stream)
            if opened is not None:
                looked[stream] = opened
                self._collect(opened, frames)
        for (reply_to, running), given in frames.items():
            self._publish(reply_to, running, given)
        for stream, opened in looked.items():
            if opened.ended and stream.released:
                self._remove(opened)
            else:
                stream.flushed()

    def _collect(self, opened: _Open, frames: dict[tuple[str, _Running], list[_Given]]) -> None:
        queue = opened.stream.queue
        while queue and not opened.storing:
            entry = queue.popleft()
            if entry.raw:
                frames.setdefault((opened.reply_to, opened.running), []).append((opened, entry))
            else:
                self._store(opened, entry, frames)

    def _publish(self, reply_to: str, running: _Running, given: list[_Given]) -> None:
        """Publish encoded responses in as few frames as the broker's limit allows."""
        while given:
            size = count = 0
            for _, entry in given:
                size += len(entry.raw)
                if count and size > self._largest:
                    break
                count += 1
            raw = [entry.raw for _, entry in given[:count]]
            if not self._replies.stream(reply_to, running.served.version, running.info(), raw):
                self._hold_back(given)
                return
            for opened, entry in given[:count]:
                self._sent(opened, entry)
            given = given[count:]

    def _hold_back(self, given: list[_Given]) -> None:
        """The connection did not take responses."""
        if not self._bus.connected:
            for opened, _ in given:
                self._break_off(opened, BusUnavailable("the connection to the broker is down"))
            return
        for opened, entry in reversed(given):
            opened.stream.queue.appendleft(entry)
            self._ready.append(opened.stream)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_later(_RETRY, self._flush)

    def _store(self, opened: _Open, entry: Entry, frames: dict[tuple[str, _Running], list[_Given]]) -> None:
        """Publish a response by way of the broker's store, after those before it."""
        before = frames.pop((opened.reply_to, opened.running), [])
        self._publish(opened.reply_to, opened.running, before)
        if opened.ended:
            return
        opened.storing = True

        def done(sent: bool) -> None:
            opened.storing = False
            if opened.ended:
                return
            if sent:
                self._sent(opened, entry)
            else:
                self._break_off(opened, BusUnavailable("a response could not be stored"))
            self._changed(opened.stream)

        running, request = opened.running, opened.member.request
        info = running.info()
        self._answers.send(opened.reply_to, running.served.version, info, request, entry.response, done)

    def _sent(self, opened: _Open, entry: Entry) -> None:
        response, stats = entry.response, opened.running.served.recorder.stats
        outcome: ResponseOutcome = "success"
        if response.error is not None:
            outcome = "fail"
        elif response.flags & END:
            outcome = "empty_response"
        stats.record_response(
            min(response.index, _LAST_POSITION),
            outcome,
            compute_infer_ns=entry.infer_ns,
            compute_output_ns=entry.output_ns,
        )
        if not response.index:
            stats.first_response.observe(perf_counter_ns() - opened.member.frame.received_ns)
        if response.flags & FINAL or response.error is not None:
            opened.member.response = response
            self._end(opened)

    # From the caller

    def sent_again(self, held: HeldFrame, numbers: Collection[int]) -> None:
        """A caller has sent requests: earlier tries at them end.

        Not those that the broker has delivered again: their ack would be that of both.
        """
        for opened in list(self._open.values()):
            earlier = opened.member.frame
            if (
                opened.member.request.id in numbers
                and earlier.reply_to == held.reply_to
                and earlier.delivery.sequence != held.delivery.sequence
            ):
                self._break_off(opened, Cancelled("the caller has sent the request again"))

    def heard(self, frame: CancelFrame) -> set[int]:
        """A caller tells which requests it wants no longer, and what it has taken of others.

        Returns:
            The numbers of those it wants no longer that were found.
        """
        numbers, taken = set(frame.ids), dict(frame.taken)
        found: set[int] = set()
        for opened in list(self._open.values()):
            number = opened.member.request.id
            if opened.reply_to != frame.reply_to:
                continue
            if number in numbers:
                found.add(number)
                opened.member.cancelled = True
                self._break_off(opened, Cancelled("the caller has gone"))
            elif number in taken:
                opened.heard = self._loop.time()
                opened.stream.take(taken[number])
        return found

    def _watch(self, opened: _Open) -> None:
        when = min(opened.member.deadline, opened.heard + SILENCE)
        opened.timer = self._loop.call_at(max(when, self._loop.time()) + _GRAIN, self._look, opened)

    def _look(self, opened: _Open) -> None:
        """End a stream whose time is over."""
        now = self._loop.time()
        what = f"after {opened.stream.published} responses of model {self._model!r}"
        if opened.member.deadline <= now:
            self._break_off(opened, DeadlineExceeded(f"deadline passed {what}"), told=True)
        elif not opened.stream.waits:
            opened.heard = now
            self._watch(opened)
        elif now - opened.heard >= SILENCE:
            error = DeadlineExceeded(f"nothing was taken for {SILENCE:g} s, {what}")
            self._break_off(opened, error, told=True)
        else:
            self._watch(opened)

    # The end

    def interrupt(self, served: ServedVersion | None = None) -> None:
        """Break off the streams of a version, or of all: their requests are to be delivered again."""
        for opened in list(self._open.values()):
            if served is None or opened.running.served is served:
                self._break_off(opened, BusUnavailable("the stream was broken off, to be begun anew"))

    def _break_off(self, opened: _Open, error: QInferError, *, told: bool = False) -> None:
        """End a stream that the model has not ended."""
        if opened.ended:
            return
        stream, member = opened.stream, opened.member
        response = member.response = failure(member, error)
        response.index = stream.published
        sent = not isinstance(error, BusUnavailable)
        if told:
            running = opened.running
            info, raw = running.info(), [encode(response)]
            sent = self._replies.stream(opened.reply_to, running.served.version, info, raw)
        outcome: ResponseOutcome = "fail" if told else "cancel"
        stats = opened.running.served.recorder.stats
        stats.record_response(min(response.index, _LAST_POSITION), outcome, compute_infer_ns=0)
        self._end(opened, sent=sent)

    def _end(self, opened: _Open, *, sent: bool = True) -> None:
        opened.ended = True
        if opened.timer is not None:
            opened.timer.cancel()
        self._settlement.ended(opened.member, sent=sent)
        opened.stream.stop()
        if opened.stream.released:
            self._remove(opened)
        else:
            opened.timer = self._loop.call_later(_FAREWELL, self._abandon, opened)

    def _abandon(self, opened: _Open) -> None:
        """The model holds on to a request whose stream has ended: others get its place."""
        logger.warning(
            "model %s holds on to request %r, whose stream ended %g s ago; expected it to ask is_cancelled()",
            self._model,
            opened.member.request_id,
            _FAREWELL,
        )
        self._remove(opened)

    def _remove(self, opened: _Open) -> None:
        if self._open.pop(opened.stream, None) is None:
            return
        if opened.timer is not None:
            opened.timer.cancel()
        running = opened.running
        running.open -= 1
        running.thread.open -= 1
        self._credit.freed(opened.member.rows)
        self._credit.top_up()
        running.served.batches.calmed()
        if not running.open and running.completion is not None:
            self._finish(running, running.completion)
