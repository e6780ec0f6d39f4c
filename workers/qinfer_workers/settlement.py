"""How requests end: answered, refused, dropped or given back; and their frames with them.

A frame is acked when the last of its requests has ended, after the answers were published. Where one of them
could not be, the whole frame is delivered again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from qinfer.bus import Bus
from qinfer.errors import Cancelled, DeadlineExceeded, QInferError
from qinfer.message import BatchInfo, Request, Response, WireError
from qinfer_workers.answers import Answers, size_of
from qinfer_workers.batch import HeldFrame, Member
from qinfer_workers.credit import Credit
from qinfer_workers.execution import failure
from qinfer_workers.held import HeldFrames
from qinfer_workers.instance import Completion
from qinfer_workers.replies import NO_BATCH, Replies
from qinfer_workers.senders import Senders
from qinfer_workers.served import ServedVersion

_FRAME_SHARE = 7 / 8  # of max_payload, for the tensors of a response; the rest is for what goes with them


class Settlement:
    """Ends the requests of one model.

    Args:
        bus: a started bus.
        model: its name, for messages.
        held: the frames this worker holds.
        credit: gets back the rows of requests that end.
        senders: told what became of their requests.
        replies: publishes answers.
        answers: those that are stored first.
    """

    def __init__(
        self,
        bus: Bus,
        model: str,
        *,
        held: HeldFrames,
        credit: Credit,
        senders: Senders,
        replies: Replies,
        answers: Answers,
    ) -> None:
        self._bus = bus
        self._model = model
        self._held = held
        self._credit = credit
        self._senders = senders
        self._replies = replies
        self._answers = answers

    # With an answer

    def answer(self, served: ServedVersion, completion: Completion) -> None:
        """Answer the members of a batch that ran."""
        batch, timing = completion.batch, completion.timing
        self._credit.freed(batch.rows)
        info = BatchInfo(batch.rows, len(batch.members), timing.input_ns, timing.infer_ns, timing.output_ns)
        by_sender: dict[str, list[Response]] = {}
        largest = self._bus.max_payload * _FRAME_SHARE
        stored: list[Member] = []
        for member in batch.members:
            response = member.response
            if response is None:  # an executor sets every response
                raise AssertionError(f"request {member.request.id} was not answered")
            response.queue_us = (completion.started_ns - member.frame.received_ns) // 1000
            if member.cancelled:
                self._senders.answered(member.frame.reply_to, 1)
            elif member.request.idempotency or size_of(response) > largest:
                stored.append(member)
            else:
                by_sender.setdefault(member.frame.reply_to, []).append(response)
        unsent = {
            reply_to
            for reply_to, responses in by_sender.items()
            if not self._replies.answer(reply_to, served.version, info, responses)
        }
        self._credit.top_up()  # before the acks, which carry the pull
        for member in batch.members:
            frame = member.frame
            if stored and member in stored and member.response is not None:
                self._store(frame, member.request, served.version, info, member.response, member.rows)
                continue
            frame.unsent = frame.unsent or frame.reply_to in unsent
            self._close(frame)
        served.recorder.executed(completion)

    def ended(self, member: Member, *, sent: bool) -> None:
        """A request that many responses were given to has ended; with `sent` false it is delivered again."""
        frame = member.frame
        self._senders.answered(frame.reply_to, 1)
        frame.unsent = frame.unsent or not sent
        self._close(frame)

    def refuse(
        self, held: HeldFrame, refused: Iterable[tuple[Request, QInferError]], served: ServedVersion | None
    ) -> None:
        """Answer requests that never became members of anything with what is wrong with them."""
        attempt = held.delivery.attempt
        version = served.version if served is not None else ""
        responses = []
        for request, error in refused:
            response = Response(request.id, request.attempt + attempt, WireError.of(error))
            if served is not None:
                served.recorder.refused(error, request, held)
            if request.idempotency:
                self._store(held, request, version, NO_BATCH, response)
            else:
                responses.append(response)
        if responses:
            sent = self._replies.answer(held.reply_to, version, NO_BATCH, responses)
            held.unsent = held.unsent or not sent
        for _ in responses:
            self._close(held)

    def give_up(self, served: ServedVersion, member: Member, error: QInferError) -> None:
        """Answer a request that will not run with an error."""
        served.recorder.refused(error, member.request, member.frame)
        self._credit.freed(member.rows)
        held, response = member.frame, failure(member, error)
        if member.request.idempotency:
            self._store(held, member.request, served.version, NO_BATCH, response)
            return
        sent = self._replies.answer(held.reply_to, served.version, NO_BATCH, [response])
        held.unsent = held.unsent or not sent
        self._close(held)

    def expire(self, served: ServedVersion, members: Sequence[Member]) -> None:
        """Answer requests whose deadline passed before they reached the model."""
        error = DeadlineExceeded(f"deadline passed in the queue of model {self._model!r}")
        for member in members:
            self.give_up(served, member, error)
        self._credit.top_up()

    def is_wanted(self, served: ServedVersion, member: Member) -> bool:
        """Whether a request is to be run yet; it has been ended where not."""
        if member.frame not in self._held:
            return False  # given back when its version had to leave
        if member.cancelled:
            self.drop(served, member)
        elif member.deadline <= asyncio.get_running_loop().time():
            self.expire(served, [member])
        else:
            return True
        return False

    def _store(
        self,
        held: HeldFrame,
        request: Request,
        version: str,
        info: BatchInfo,
        response: Response,
        rows: int = 0,
    ) -> None:
        """Answer a request by way of the broker's store; what it takes here is taken until then."""
        self._credit.hold(rows)

        def done(sent: bool) -> None:
            self._credit.freed(rows)
            self._senders.answered(held.reply_to, 1)
            held.unsent = held.unsent or not sent
            self._close(held)
            self._credit.top_up()

        self._answers.send(held.reply_to, version, info, request, response, done)

    # Without

    def drop(self, served: ServedVersion, member: Member) -> None:
        """End a request that nobody waits for."""
        member.cancelled = True
        served.recorder.refused(Cancelled("the caller has gone"), member.request, member.frame)
        self.pass_over(served, member)

    def pass_over(self, _: ServedVersion, member: Member) -> None:
        """End a request without a word: it was answered before."""
        self._credit.freed(member.rows)
        self.skip(member.frame)

    def skip(self, held: HeldFrame) -> None:
        """End a request of a frame that was never admitted, without a word."""
        self._senders.answered(held.reply_to, 1)
        self._close(held)

    def give_back(self, held: HeldFrame, pause: float, members: Iterable[Member]) -> None:
        """Return a frame to the queue for `pause` seconds; `members` were not answered."""
        for member in members:
            self._credit.freed(member.rows)
            self._senders.answered(held.reply_to, 1)
        if held in self._held:
            self._held.release(held)
            held.delivery.nak(pause)
        self._credit.top_up()

    def _close(self, frame: HeldFrame) -> None:
        """One more of a frame's requests has ended; the last one acks the frame."""
        frame.open -= 1
        if frame.open or frame not in self._held:
            return
        self._held.release(frame)
        if frame.unsent:
            frame.delivery.nak()
        else:
            frame.delivery.ack()
