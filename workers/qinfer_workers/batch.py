"""Requests on their way through a worker, and the batches made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from qinfer.bus import Delivery
from qinfer.datatypes import DATATYPES, Array
from qinfer.message import Request, RequestFrame, Response
from qinfer.signature import Plan
from qinfer.telemetry.stats import CloseReason

if TYPE_CHECKING:
    from qinfer_workers.served import ServedVersion


class HeldFrame:
    """A frame this worker has taken and not ended yet. It is acked when its last request is answered.

    Attributes:
        arrived: when it came, of the event loop's clock.
        claimed: bytes of large tensors that were read for it.
        open: requests not answered yet.
        served: the version that is to answer it; None if there is none here.
        received_ns: when it came, of `time.perf_counter_ns`.
        age_ns: how long it had waited at the broker then.
        sign_of_life: when the broker last heard that it is being worked on, of the event loop's clock.
        unsent: an answer could not be published: the frame has to be delivered again.
    """

    __slots__ = (
        "age_ns",
        "arrived",
        "claimed",
        "delivery",
        "open",
        "received_ns",
        "reply_to",
        "served",
        "sign_of_life",
        "unsent",
    )

    def __init__(self, delivery: Delivery, frame: RequestFrame, received_ns: int, now: float) -> None:
        self.delivery = delivery
        self.reply_to = frame.reply_to
        self.open = len(frame.requests)
        self.received_ns = received_ns
        self.age_ns = 0
        self.claimed = 0
        self.arrived = self.sign_of_life = now
        self.unsent = False
        self.served: ServedVersion | None = None


class Member:
    """One request of a batch (implements `backends.base.Member`)."""

    __slots__ = ("_inputs", "cancelled", "deadline", "frame", "plan", "request", "response", "rows")

    def __init__(self, request: Request, frame: HeldFrame, plan: Plan, rows: int, deadline: float) -> None:
        self.request = request
        self.frame = frame
        self.plan = plan
        self.rows = rows
        self.deadline = deadline  # of the event loop's clock
        self.cancelled = False  # nobody waits for the answer
        self.response: Response | None = None
        self._inputs: dict[str, Array] | None = None

    @property
    def inputs(self) -> Mapping[str, Array]:
        if self._inputs is None:
            self._inputs = {tensor.name: tensor.numpy() for tensor in self.request.inputs}
        return self._inputs

    @property
    def input_datatypes(self) -> Mapping[str, str]:
        return {tensor.name: tensor.datatype for tensor in self.request.inputs}

    @property
    def outputs(self) -> Sequence[str]:
        return self.request.outputs

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.request.parameters

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def deadline_us(self) -> int:
        return self.request.deadline_us

    def is_cancelled(self) -> bool:
        # Also asked from an instance's thread, in the middle of a run.
        return self.cancelled or monotonic() > self.deadline


class Batch:
    """Members that an instance executes at once (implements `backends.base.Batch`).

    Attributes:
        members: the requests, all of one plan.
        rows: sum of the members' rows.
        reason: why the batch was closed.
        received_ns: when each member reached this worker.
    """

    def __init__(self, members: Sequence[Member], reason: CloseReason, *, batched: bool) -> None:
        self.members = members
        self.reason = reason
        self.rows = sum([member.rows for member in members])
        self._batched = batched

    @property
    def batched(self) -> bool:
        """Whether the tensors have a batch dimension."""
        return self._batched

    @cached_property
    def inputs(self) -> Mapping[str, Array]:
        if len(self.members) == 1:
            return self.members[0].inputs
        stacked: dict[str, Array] = {}
        for index, (name, datatype, dims) in enumerate(self.members[0].plan.key):
            if datatype == "BYTES":
                stacked[name] = np.concatenate([member.inputs[name] for member in self.members])
            else:
                # Joining the raw bytes is one copy and no numpy object a member.
                raw = b"".join([member.request.inputs[index].data for member in self.members])
                stacked[name] = np.frombuffer(raw, DATATYPES[datatype].dtype).reshape(self.rows, *dims)
        return stacked

    def is_cancelled(self) -> bool:
        """Whether nobody waits for any member's answer any more."""
        return all(member.is_cancelled() for member in self.members)

    @cached_property
    def outputs(self) -> Sequence[str]:
        wanted: set[str] = set()
        for member in self.members:
            names = member.request.outputs
            if not names:
                return ()
            wanted.update(names)
        return tuple(wanted)

    def halves(self) -> tuple[Batch, Batch]:
        """The same members in two batches, to find out which of them makes the batch fail."""
        middle = len(self.members) // 2
        return (
            Batch(self.members[:middle], self.reason, batched=self._batched),
            Batch(self.members[middle:], self.reason, batched=self._batched),
        )
