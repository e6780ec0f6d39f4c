"""What the OpenAPI document is made of: operations, and the errors they may be answered."""

from __future__ import annotations

from dataclasses import dataclass

from qinfer.errors import (
    BY_REASON,
    Cancelled,
    Forbidden,
    HeadTooLarge,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    QInferError,
    RateLimited,
    SetupError,
    Unauthenticated,
    Unavailable,
)

Errors = tuple[type[QInferError], ...]

ANY: Errors = (InternalError, InvalidRequest, HeadTooLarge, Unavailable)
"""What every request may be answered: its bytes are no HTTP, or there are too many connections already."""

REFUSED: Errors = (Unauthenticated, Forbidden, RateLimited)
"""What a request may be answered where credentials are asked for."""

NEVER_OF_INFER: Errors = (
    *(kind for kind in BY_REASON.values() if issubclass(kind, SetupError)),
    Cancelled,  # nobody is left to read it
    MethodNotAllowed,  # an answer of the path, not of the operation
)
"""What a request for inference is not answered over HTTP; it may be answered everything else."""

INFER: Errors = tuple(kind for kind in BY_REASON.values() if kind not in NEVER_OF_INFER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        method: in lower case.
        path: as the router has it; `{model}`, `{version}` and `{job}` are the only parameters.
        id: the operationId.
        summary: what it does.
        answer: name of the answer's schema; "" where there is no body.
        body: name of the request body's schema; "" for none.
        errors: what it may be answered beside `ANY`.
        refused: name of the schema of an answer with status 400 that says no.
        obstacles: the reasons such an answer may have.
        binary: bodies may carry raw tensors.
        headers: request headers, and parameters of the query, beside those of every request.
        events: the answer comes as server-sent events.
        status: of an answer that is no error.
        deferred: it may be answered 202 instead, with a job.
    """

    method: str
    path: str
    id: str
    summary: str
    answer: str = ""
    body: str = ""
    errors: Errors = ()
    refused: str = ""
    obstacles: Errors = ()
    binary: bool = False
    headers: tuple[str, ...] = ()
    events: bool = False
    status: int = 200
    deferred: bool = False
