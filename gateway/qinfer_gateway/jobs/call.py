"""A job's request on its way through the dispatcher."""

from __future__ import annotations

import asyncio
from time import monotonic

from qinfer.errors import QInferError
from qinfer.message import KEPT, Response, ResponseFrame
from qinfer_gateway.call import Call


class JobCall(Call):
    """One attempt of a job."""

    __slots__ = ("answer",)

    protocol = "job"
    operation = "job {model}"

    def __init__(self) -> None:
        super().__init__(monotonic())
        self.answer: asyncio.Future[ResponseFrame] = asyncio.get_running_loop().create_future()

    def answered(self, frame: ResponseFrame, response: Response) -> None:
        """Keep the answer alone, with its data in it."""
        response.claim, response.claim_bytes, response.fingerprint = "", 0, ""
        response.flags &= ~KEPT
        response.id = 0
        if not self.answer.done():
            self.answer.set_result(
                ResponseFrame(frame.version, frame.worker, frame.model_version, frame.batch, [response])
            )

    def failed(self, error: QInferError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
