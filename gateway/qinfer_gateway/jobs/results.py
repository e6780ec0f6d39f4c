"""Results of jobs in the form that the synchronous call would have had."""

from __future__ import annotations

from collections.abc import Hashable

from qinfer.errors import QInferError
from qinfer.jobs import JobResult, JobStore
from qinfer.jobs.stored import StoredJob
from qinfer.message import Request
from qinfer_gateway.http.codec import InferBody, encode_body
from qinfer_gateway.parameters import RequestParameters

_SMALL = 64 * 1024  # bytes of a result that still goes with a webhook


class Answering:
    """A model that has answered, which may be gone by now; in the place of its target."""

    __slots__ = ("json_parts", "model")

    def __init__(self, model: str) -> None:
        self.model = model
        self.json_parts: dict[Hashable, bytes] = {}


def encode_result(model: str, result: JobResult, *, binary: bool = False) -> tuple[bytes, int | None]:
    """A result as the body of an answer.

    Args:
        model: that was asked.
        result: of the job.
        binary: all outputs are wanted in binary, whatever the request said.

    Returns:
        The body, and the length of its JSON part when binary tensors follow it.

    Raises:
        InvalidRequest: an output has no JSON form.
    """
    form = result.form
    body = InferBody(Request(0, form.request_id, []), RequestParameters(binary_output=binary or form.binary))
    if not binary:
        body.binary_outputs = frozenset(form.binary_outputs)
        body.json_outputs = frozenset(form.json_outputs)
    return encode_body(Answering(model), result.frame.model_version, body, result.response)


async def small_result(store: JobStore, job: StoredJob) -> bytes | None:
    """The result of a job as JSON; None where it is large, has no such form, or is not kept any more."""
    if job.result is None or job.result.size > _SMALL:
        return None
    try:
        result = await store.result(job.id)
        if result is None or result.form.binary or result.form.binary_outputs:
            return None
        body, _ = encode_result(job.record.model, result)
    except QInferError:
        return None
    return body if len(body) <= _SMALL else None
