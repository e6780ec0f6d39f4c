"""A loaded version of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qinfer.repository import ModelConfig
from qinfer.signature import Signature
from qinfer_workers.batch import Member
from qinfer_workers.batcher import Batcher
from qinfer_workers.instance import InstanceThread
from qinfer_workers.record import BatchRecorder


@dataclass(slots=True, kw_only=True, eq=False)
class ServedVersion:
    """A loaded version: its configuration, instances, and where its batches form."""

    version: str
    config: ModelConfig
    instances: Sequence[InstanceThread]
    recorder: BatchRecorder
    signature: Signature
    batcher: Batcher | None = None
    member: type[Member] = Member
    """What its requests become: of a decoupled model, `StreamMember`s."""

    @property
    def streams(self) -> bool:
        """Whether it gives many responses to a request."""
        return self.member is not Member

    @property
    def batches(self) -> Batcher:
        """Where its batches form, once it is served."""
        if self.batcher is None:  # set by the service
            raise AssertionError("version is not served yet")
        return self.batcher
