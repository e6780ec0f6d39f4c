"""Jobs in the OpenAPI document: operations, parameters, headers and bodies."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypeAlias, TypedDict

from msgspec import Meta

from qinfer.errors import (
    BusUnavailable,
    Forbidden,
    JobNotFound,
    KeyReused,
    ModelNotFound,
    NoWorker,
    PayloadTooLarge,
    QueueFull,
    Unsupported,
    UnsupportedEncoding,
)
from qinfer.jobs import JobOptions, JobState
from qinfer_gateway.http import jobs
from qinfer_gateway.http.openapi_operation import INFER, Operation
from qinfer_gateway.http.prefer import APPLIED, LONGEST_WAIT, NUMBERS, OPTION_PREFIX, SPARE, WEBHOOK
from qinfer_gateway.jobs.batch import BatchSpec
from qinfer_gateway.jobs.describe import JOBS_PATH

Moment: TypeAlias = Annotated[
    str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339, in UTC.")
]


class JobError(TypedDict):
    """Why a job failed."""

    reason: str
    message: str


class JobProgress(TypedDict):
    """How far a job of many rows is."""

    done: int
    total: Annotated[int, Meta(description="An estimate where the rows are not counted beforehand.")]
    failed: Annotated[int, Meta(description="Rows that could not be scored.")]


class Job(TypedDict):
    """A job."""

    id: str
    state: JobState
    model_name: str
    model_version: Annotated[str, Meta(description="Empty for the newest.")]
    created_at: Moment
    started_at: Moment | None
    ended_at: Moment | None
    attempts: Annotated[int, Meta(description="How often it was begun since it was submitted or retried.")]
    priority: int
    queue_position: Annotated[
        int | None, Meta(description="Jobs before it and itself, approximately; null where it does not wait.")
    ]
    progress: JobProgress | None
    error: JobError | None
    webhook_state: Annotated[str, Meta(extra_json_schema={"enum": ["", "pending", "delivered", "failed"]})]
    status_url: str
    result_url: str
    cancel_url: str
    events_url: str


class JobList(TypedDict):
    """Some jobs, the newest first."""

    jobs: list[Job]
    next: Annotated[str, Meta(description="What to go on `after`; empty at the end of the list.")]


class JobRequest(TypedDict):
    """A submission: a request for a model, or a file of inputs."""

    model: str
    model_version: NotRequired[str]
    request: NotRequired[dict[str, Any]]
    batch: NotRequired[BatchSpec | None]
    priority: NotRequired[Annotated[int, Meta(ge=0)]]
    options: NotRequired[JobOptions]
    idempotency_key: NotRequired[str]


BODIES: tuple[Any, ...] = (Job, JobList, JobRequest)

WAIT, STATE, MODEL, LIMIT, AFTER = "wait", "state", "model_name", "limit", "after"
PREFER = "Prefer"
OPTION_HEADERS = tuple(f"{OPTION_PREFIX}{name}" for name in (*NUMBERS, WEBHOOK, SPARE))


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _header(name: str, description: str) -> dict[str, Any]:
    # Without patterns: those of options are not looked at where nobody asks for a job.
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


PARAMETERS: dict[str, dict[str, Any]] = {
    "job": {
        "name": "job",
        "in": "path",
        "required": True,
        "description": "Id of a job.",
        "schema": {"type": "string", "minLength": 1},
    },
    WAIT: _query(
        WAIT,
        f"Seconds to wait for the job's end, at most {LONGEST_WAIT:g}.",
        {"type": "integer", "minimum": 0, "maximum": int(LONGEST_WAIT)},
    ),
    STATE: _query(STATE, "Only jobs in this state.", {"type": "string", "enum": [*JobState]}),
    MODEL: _query("model", "Only jobs of this model.", {"type": "string"}),
    LIMIT: _query(
        LIMIT, "Most jobs of the page.", {"type": "integer", "minimum": 1, "maximum": jobs.MAX_PAGE}
    ),
    AFTER: _query(AFTER, "Begin behind this one: `next` of the page before.", {"type": "string"}),
    PREFER: _header(
        PREFER,
        "`respond-async`: make a job of the request. `wait=SECONDS`: as well, but answer with the result if "
        "it is there by then (RFC 7240).",
    ),
    f"{OPTION_PREFIX}max-queue-time": _header(
        f"{OPTION_PREFIX}max-queue-time", "Seconds after which a job that was not begun fails."
    ),
    f"{OPTION_PREFIX}timeout": _header(
        f"{OPTION_PREFIX}timeout", "Seconds that an attempt of the job may take."
    ),
    f"{OPTION_PREFIX}max-attempts": _header(
        f"{OPTION_PREFIX}max-attempts", "How often the job is tried before it fails."
    ),
    f"{OPTION_PREFIX}keep": _header(
        f"{OPTION_PREFIX}keep", "Seconds for which the job is kept after its end."
    ),
    f"{OPTION_PREFIX}{WEBHOOK}": _header(f"{OPTION_PREFIX}{WEBHOOK}", "URL that is told of the job's end."),
    f"{OPTION_PREFIX}{SPARE}": _header(
        f"{OPTION_PREFIX}{SPARE}", "Run the job on capacity that nobody else wants."
    ),
}

HEADERS: dict[str, dict[str, Any]] = {
    "Location": {"description": "The job.", "schema": {"type": "string"}},
    APPLIED: {"description": "What was done of `Prefer`.", "schema": {"type": "string"}},
}

_LOOK = (JobNotFound, BusUnavailable, Unsupported)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="get", path=JOBS_PATH, id="jobs", summary="The caller's jobs, the newest first",
        answer="JobList", headers=(STATE, MODEL, LIMIT, AFTER), errors=(BusUnavailable, Unsupported),
    ),
    Operation(
        method="post", path=JOBS_PATH, id="submitJob", summary="Have a model asked later",
        body="JobRequest", answer="Job", status=202, headers=("Idempotency-Key",),
        errors=(
            *(ModelNotFound, Forbidden, KeyReused, PayloadTooLarge, QueueFull, NoWorker, BusUnavailable),
            *(Unsupported, UnsupportedEncoding),
        ),
    ),
    Operation(
        method="get", path=jobs.JOB_PATH, id="job", summary="How a job is doing", answer="Job",
        headers=(WAIT,), errors=_LOOK,
    ),
    Operation(
        method="delete", path=jobs.JOB_PATH, id="forgetJob", status=204, errors=_LOOK,
        summary="Cancel a job if it has not ended, and forget it",
    ),
    Operation(
        method="get", path=jobs.RESULT_PATH, id="jobResult", answer="InferAnswer", binary=True, deferred=True,
        summary="What the synchronous call would have answered", headers=(WAIT, "Accept-Encoding"),
        errors=INFER,
    ),
    Operation(
        method="get", path=jobs.EVENTS_PATH, id="jobEvents", answer="Job", events=True, errors=_LOOK,
        summary="The job now, and at each change until it has ended",
    ),
    Operation(
        method="post", path=jobs.CANCEL_PATH, id="cancelJob", answer="Job", errors=_LOOK,
        summary="Have a job not run, or stopped",
    ),
    Operation(
        method="post", path=jobs.RETRY_PATH, id="retryJob", answer="Job", status=202,
        errors=(*_LOOK, QueueFull, NoWorker), summary="Have a job that failed or was cancelled run once more",
    ),
)  # fmt: skip
