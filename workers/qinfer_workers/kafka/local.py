"""Scores in this process, with the backends, instances and bisection that workers have."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns

from qinfer.bus import Delivery
from qinfer.client.base import ModelInfo
from qinfer.errors import (
    ConfigError,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    QInferError,
    ShuttingDown,
)
from qinfer.message import PROTOCOL_VERSION, Request, RequestFrame, Response, WireError
from qinfer.repository import Repository
from qinfer.telemetry.stats import CloseReason, ModelStats
from qinfer_workers.batch import Batch, HeldFrame, Member
from qinfer_workers.instance import Completion
from qinfer_workers.kafka.contract import BadRecord, ModelUse, Rows
from qinfer_workers.kafka.group import Dead
from qinfer_workers.kafka.scoring import Score, cut, each, tensors
from qinfer_workers.loading import close, load_version, record_of
from qinfer_workers.served import ServedVersion

_NEVER = float("inf")


class LocalScorer:
    """Scores with models of a repository.

    Args:
        repositories: where the models are.
        models: which.
        close_timeout: seconds that a batch may still take at the end.
    """

    def __init__(
        self, repositories: Sequence[Path], models: Sequence[ModelUse], *, close_timeout: float = 10.0
    ) -> None:
        self._close_timeout = close_timeout
        self._repositories = repositories
        self._uses = models
        self._models: dict[str, _Model] = {}

    async def start(self) -> Mapping[str, ModelInfo]:
        repository = Repository(*self._repositories)
        loaded: dict[tuple[str, int], _Loaded] = {}
        for use in self._uses:
            entry = await asyncio.to_thread(repository.load, use.name)
            version = _version(use, entry.versions)
            if (use.name, version) not in loaded:
                model = _Loaded()
                model.served = await load_version(
                    entry, version, on_done=model.done, tracing=None, subject=""
                )
                loaded[use.name, version] = model
            self._models[use.label] = _Model(use, loaded[use.name, version])
            if loaded[use.name, version].version.config.decoupled:
                raise ConfigError(
                    f"{entry.config.source or entry.directory}: model_transaction_policy.decoupled: true; "
                    "expected a model with one response for each request, to score a stream"
                )
        return {label: model.info() for label, model in self._models.items()}

    async def score(self, inputs: Mapping[str, Sequence[Rows]]) -> Score:
        score = Score()
        runs = [
            self._run(score, label, piece)
            for label, parts in inputs.items()
            for rows in parts
            for piece in cut(rows, self._models[label].limit)
        ]
        await asyncio.gather(*runs)
        return score

    async def close(self) -> None:
        models, self._models = self._models, {}
        for loaded in {id(model.loaded): model.loaded for model in models.values()}.values():
            await loaded.close(self._close_timeout)

    def stats(self) -> list[ModelStats]:
        """Counters of every model."""
        loaded = {id(model.loaded): model.loaded for model in self._models.values()}
        return [model.version.recorder.stats for model in loaded.values()]

    async def _run(self, score: Score, label: str, rows: Rows) -> None:
        """Score a piece; if its batch fails, its records one by one by halves."""
        model = self._models[label]
        outputs = score.outputs.setdefault(label, [])
        (response,) = await model.run([rows])
        if response.error is None:
            outputs.append(_outputs(rows, response))
            return
        if len(rows.places) == 1:
            score.failed[rows.places[0]] = _dead(response, 1)
            return
        alone = each(rows)
        responses = await model.run(alone)
        for index, (record, single) in enumerate(zip(alone, responses, strict=True)):
            if single.error is None:
                outputs.append(_outputs(record, single))
            else:
                score.failed[record.places[0]] = _dead(single, 1 + _runs(len(alone), index))


class _Loaded:
    """A loaded version: batches wait here for an idle instance."""

    def __init__(self) -> None:
        self.served: ServedVersion | None = None
        self._waiting: deque[Batch] = deque()  # bounded by the groups that are scored at once
        self._ended: dict[Batch, asyncio.Future[None]] = {}

    @property
    def version(self) -> ServedVersion:
        assert self.served is not None
        return self.served

    async def run(self, batch: Batch) -> None:
        """Run a batch; returns when its members have their responses."""
        ended = self._ended[batch] = asyncio.get_running_loop().create_future()
        self._waiting.append(batch)
        self._submit()
        await ended

    def done(self, _: str, completion: Completion) -> None:
        """An instance is done with a batch."""
        self.version.recorder.executed(completion)
        ended = self._ended.pop(completion.batch)
        if not ended.done():
            ended.set_result(None)
        self._submit()

    async def close(self, timeout: float) -> None:
        self._waiting.clear()
        for ended in self._ended.values():
            if not ended.done():
                ended.set_exception(ShuttingDown("the scorer stops"))
        await close(self.version.instances, timeout)

    def _submit(self) -> None:
        for instance in self.version.instances:
            if instance.idle and self._waiting:
                instance.submit(self._waiting.popleft())


@dataclass(slots=True, eq=False)
class _Model:
    """A model as the pipeline uses it."""

    use: ModelUse
    loaded: _Loaded

    @property
    def limit(self) -> int:
        """Rows of a batch; 0 for a model without batch dimension."""
        return self.loaded.version.config.max_batch_size

    def info(self) -> ModelInfo:
        record = record_of(self.loaded.version)
        return ModelInfo(
            name=record.name,
            versions=[record.version],
            platform=record.platform,
            ready=True,
            inputs=record.inputs,
            outputs=record.outputs,
            max_batch_size=record.max_batch_size,
        )

    async def run(self, pieces: Sequence[Rows]) -> list[Response]:
        """Run one piece; or the records of one that failed, each for itself, in two batches to begin with."""
        served = self.loaded.version
        datatypes = {spec.name: spec.datatype for spec in served.config.inputs}
        members: list[Member] = []
        responses: dict[int, Response] = {}
        frame = _frame(len(pieces))
        for index, piece in enumerate(pieces):
            try:
                request = Request(index, "", tensors(piece, datatypes), outputs=list(self.use.outputs))
                plan, rows = served.signature.check(request)
            except InvalidRequest as error:
                responses[index] = _refused(index, error)
                continue
            members.append(Member(request, frame, plan, rows, _NEVER))
        if members:
            reason: CloseReason = "window"
            if len(pieces) > 1:
                reason = "isolated"
            elif members[0].rows == self.limit:
                reason = "full"
            batch = Batch(members, reason, batched=self.limit > 0)
            parts = batch.halves() if len(members) > 1 else (batch,)
            await asyncio.gather(*(self.loaded.run(part) for part in parts))
        for member in members:
            if member.response is None:
                raise InternalError(f"model {self.use.name!r} was run, and a request has no response")
            responses[member.request.id] = member.response
        return [responses[index] for index in range(len(pieces))]


class _Read(Delivery):
    """Stands where workers have a frame of the bus: here progress is kept by offsets."""

    __slots__ = ()

    def __init__(self) -> None:
        self.payload = b""
        self.sequence = self.pending = self.stored_us = 0
        self.attempt = 1

    def ack(self) -> None: ...

    def nak(self, delay: float = 0.0) -> None: ...

    def in_progress(self) -> None: ...

    def term(self) -> None: ...


def _frame(members: int) -> HeldFrame:
    now = asyncio.get_running_loop().time()
    held = HeldFrame(_Read(), RequestFrame(PROTOCOL_VERSION, "", "", "", 0, 0, []), perf_counter_ns(), now)
    held.open = members
    return held


def _version(use: ModelUse, versions: Sequence[int]) -> int:
    """The wanted version, the newest if none is.

    Raises:
        ModelNotFound: there is no such version.
    """
    if not use.version:
        return versions[-1]
    if use.version not in map(str, versions):
        have = ", ".join(map(str, versions))
        raise ModelNotFound(f"model {use.name!r} has no version {use.version!r}; expected one of {have}")
    return int(use.version)


def _outputs(rows: Rows, response: Response) -> Rows:
    arrays = {tensor.name: tensor.numpy() for tensor in response.outputs}
    return Rows(rows.places, arrays, rows.counts)


def _refused(index: int, error: QInferError) -> Response:
    return Response(index, 1, WireError.of(error))


def _dead(response: Response, attempts: int) -> Dead:
    assert response.error is not None
    error = response.error.exception()
    return Dead(BadRecord(error.reason, error.message), attempts)


def _runs(members: int, index: int) -> int:
    """How often a member ran by itself and in ever smaller batches, before it stood alone."""
    runs = 0
    while members > 1:
        middle = members // 2
        members, index = (middle, index) if index < middle else (members - middle, index - middle)
        runs += 1
    return runs
