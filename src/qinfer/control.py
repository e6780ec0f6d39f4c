"""Models loaded and unloaded while the fleet serves.

Every worker answers questions about its repository on two topics of the bus. What takes long is started by a
question and asked for again under the same number until it is done: so a worker that dies, an answer that is
lost, and a broker that restarts end nobody's wait, and nothing is done twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias, TypeVar
from uuid import uuid4

import msgspec

from qinfer.bus import Bus
from qinfer.errors import (
    DeadlineExceeded,
    MalformedMessage,
    ModelNotFound,
    NoWorker,
    QInferError,
    Unsupported,
    UnsupportedVersion,
    from_reason,
)
from qinfer.message import WireError
from qinfer.registry import Directory, WorkerRecord, forget_models

CONTROL_VERSION = 1

INDEX = "repository-index"
"""Topic of `Bus.ask` on which every worker tells the state of its models."""

CHANGE = "repository-change"
"""Topic of `Bus.ask` on which every worker loads and unloads models."""

EVERYTHING = "*"
"""Stands for all models of a repository where their names are expected, as in Triton."""

MAX_OVERRIDE = 256 * 1024
"""Largest configuration, in bytes of JSON, that may come with a load; as large as one in a file may be."""

State: TypeAlias = Literal["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
Mode: TypeAlias = Literal["none", "poll", "explicit"]

_RANK: dict[str, int] = {"READY": 4, "LOADING": 3, "UNLOADING": 2, "UNAVAILABLE": 1, "UNKNOWN": 0}
_INDEX_SECONDS = 2.0
_ROUND_SECONDS = 1.0  # one question and its answers
_PAUSE = 0.1  # between two rounds
_HEARD_SECONDS = 2.0  # until this process has heard of what workers have done

logger = logging.getLogger(__name__)


class ModelState(msgspec.Struct, array_like=True, frozen=True):
    """State of one version of one model.

    Attributes:
        name, version: which one; no version where none is loaded.
        state: as in Triton's repository index.
        reason: why it is not ready, or what a worker could not load; empty if all is well.
    """

    name: str
    version: str = ""
    state: State = "UNKNOWN"
    reason: str = ""


class ChangeQuestion(msgspec.Struct, array_like=True, frozen=True):
    """What workers are asked to do.

    Attributes:
        version: of this protocol; the first element in every version.
        operation: unique; the same one asked again is not done again.
        action: "load" (or load again) or "unload".
        model: its name.
        config: for "load": a configuration, as JSON, to use instead of the repository's; empty for that.
    """

    version: int
    operation: str
    action: Literal["load", "unload"]
    model: str
    config: str = ""


class ChangeAnswer(msgspec.Struct, array_like=True, frozen=True):
    """How far a worker is.

    Attributes:
        version: of this protocol.
        worker: its id.
        done: it has finished; else it is to be asked again.
        error: why it failed.
    """

    version: int
    worker: str
    done: bool
    error: WireError | None = None


class IndexAnswer(msgspec.Struct, array_like=True, frozen=True):
    """The models of one worker's repositories."""

    version: int
    worker: str
    models: list[ModelState]


_questions = msgspec.msgpack.Decoder(ChangeQuestion)
_changes = msgspec.msgpack.Decoder(ChangeAnswer)
_indexes = msgspec.msgpack.Decoder(IndexAnswer)
A = TypeVar("A", ChangeAnswer, IndexAnswer)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_question(data: bytes) -> ChangeQuestion:
    """Read a question.

    Raises:
        MalformedMessage: the bytes are none.
        UnsupportedVersion: it is of another version of this protocol.
    """
    try:
        question = _questions.decode(data)
    except _UNREADABLE as error:
        raise MalformedMessage(f"not a question about the repository: {error}") from None
    if question.version != CONTROL_VERSION:
        raise UnsupportedVersion(f"control version {question.version}; expected {CONTROL_VERSION}")
    return question


class FleetRepository:
    """The model repositories of a fleet, as the gateways and the command line see them.

    Args:
        bus: a started bus.
        directory: a started directory of the same fleet.
    """

    def __init__(self, bus: Bus, directory: Directory) -> None:
        self._bus = bus
        self._directory = directory

    async def index(self, *, ready: bool = False) -> list[ModelState]:
        """State of every model that a worker's repository or the registry has, by name and version.

        Args:
            ready: only those that are ready.

        Raises:
            BusUnavailable: the workers cannot be asked.
        """
        workers = self._directory.workers
        answers = await self._bus.ask(INDEX, b"", answers=len(workers), timeout=_INDEX_SECONDS)
        told = [answer for data in answers if (answer := _read(_indexes.decode, data)) is not None]
        merged = merge(told)
        for name, versions in self._directory.models.items():
            for version in versions:
                if (name, version) not in merged and version not in self._directory.serving(name):
                    reason = "no live worker serves it"
                    merged[name, version] = ModelState(name, version, "UNAVAILABLE", reason)
        states = sorted(merged.values(), key=lambda one: (one.name, int(one.version or 0)))
        return [one for one in states if one.state == "READY" or not ready]

    async def load(self, model: str, *, config: str = "", timeout: float = 300.0) -> None:
        """Have every worker that controls its models explicitly load a model, or load it again.

        Args:
            model: its name.
            config: a configuration, as JSON, instead of the repository's.
            timeout: seconds it may take.

        Raises:
            NoWorker: there is no live worker.
            Unsupported: the workers do not let models be controlled.
            ModelNotFound: no worker's repository has it.
            QInferError: a worker could not load it; where others could, they serve it.
            DeadlineExceeded: a worker is not done yet; it goes on with it.
        """
        answers = await self._change("load", model, config, timeout)
        errors = {worker: answer.error for worker, answer in answers.items() if answer.error is not None}
        absent = {worker for worker, error in errors.items() if error.reason == ModelNotFound.reason}
        # Workers may have different repositories: what one does not have is no matter if another has it.
        failed = [(worker, error) for worker, error in errors.items() if worker not in absent]
        if failed:
            worker, error = failed[0]
            raise from_reason(error.reason, f"worker {worker}: {error.message}", error.retry_after)
        if absent and len(absent) == len(answers):
            raise errors[next(iter(absent))].exception()
        directory = self._directory
        await self._heard(lambda: bool(directory.serving(model) & directory.models.get(model, {}).keys()))

    async def unload(self, model: str, *, timeout: float = 60.0) -> None:
        """Have every worker finish what it holds of a model and forget it; requests find no such model.

        Raises:
            NoWorker: there is no live worker.
            Unsupported: the workers do not let models be controlled.
            ModelNotFound: nobody knows it.
            DeadlineExceeded: a worker is not done yet; it goes on with it.
        """
        self._workers()
        known = list(self._directory.models.get(model, ()))
        # Before the first worker lets go of it: requests go from answers to "no such model" without a moment
        # in which it is known and nobody serves it.
        await forget_models(self._bus, {model: known})
        answers = await self._change("unload", model, "", timeout)
        errors = [answer.error for answer in answers.values() if answer.error is not None]
        failed = [error for error in errors if error.reason != ModelNotFound.reason]
        if failed:
            raise failed[0].exception()
        if errors and len(errors) == len(answers) and not known:
            raise errors[0].exception()
        await self._heard(lambda: not self._directory.serving(model) and model not in self._directory.models)

    def _workers(self) -> list[WorkerRecord]:
        """The workers to ask."""
        workers = [worker for worker in self._directory.workers if not worker.draining]
        if not workers:
            raise NoWorker("no live worker could do it", retry_after=1.0)
        for worker in workers:
            if worker.control != "explicit":
                raise Unsupported(
                    f"worker {worker.id} does not let models be loaded or unloaded: its --model-control-mode"
                    f" is {worker.control}; expected explicit"
                )
        return workers

    async def _change(
        self, action: Literal["load", "unload"], model: str, config: str, timeout: float
    ) -> dict[str, ChangeAnswer]:
        """Ask until every worker that lives is done; returns the last word of each."""
        question = ChangeQuestion(CONTROL_VERSION, uuid4().hex, action, model, config)
        data = msgspec.msgpack.encode(question)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + timeout
        answers: dict[str, ChangeAnswer] = {}
        while True:
            asked = {worker.id for worker in self._workers()}
            for raw in await self._bus.ask(CHANGE, data, answers=len(asked), timeout=_ROUND_SECONDS):
                if (answer := _read(_changes.decode, raw)) is not None:
                    answers[answer.worker] = answer
            waiting = {worker for worker in asked if worker not in answers or not answers[worker].done}
            if not waiting:
                return {worker: answer for worker, answer in answers.items() if worker in asked}
            if loop.time() >= give_up:
                raise DeadlineExceeded(
                    f"{action} of model {model!r}: not done within {timeout:g} s by worker(s)"
                    f" {', '.join(sorted(waiting))}, which go on; the repository index tells how far they are"
                )
            await asyncio.sleep(_PAUSE)

    async def _heard(self, condition: Callable[[], bool]) -> None:
        """Wait a moment until this process, too, has heard of what the workers have written."""
        give_up = asyncio.get_running_loop().time() + _HEARD_SECONDS
        while not condition():
            if asyncio.get_running_loop().time() > give_up:
                return
            await asyncio.sleep(_PAUSE / 4)


def merge(answers: Iterable[IndexAnswer]) -> dict[tuple[str, str], ModelState]:
    """One state a version, of what several workers told: the best, with the reasons of the others."""
    found: dict[tuple[str, str], list[tuple[str, ModelState]]] = {}
    for answer in answers:
        for state in answer.models:
            found.setdefault((state.name, state.version), []).append((answer.worker, state))
    versions = {name for (name, version), _ in found.items() if version}
    merged = {}
    for (name, version), states in found.items():
        if not version and name in versions:
            continue  # one worker has not loaded what another has
        best = max((state for _, state in states), key=lambda state: _RANK[state.state])
        reasons = {state.reason: worker for worker, state in states if state.reason}
        only = len(states) == 1 or (len(reasons) == 1 and best.reason)
        reason = "; ".join(text if only else f"worker {worker}: {text}" for text, worker in reasons.items())
        merged[name, version] = ModelState(name, version, best.state, reason)
    return merged


def _read(decode: Callable[[bytes], A], data: bytes) -> A | None:
    """An answer, or None for one that cannot be read."""
    try:
        answer = decode(data)
    except _UNREADABLE as error:
        logger.warning("a worker's answer about its repository cannot be read: %s", error)
        return None
    return answer if answer.version == CONTROL_VERSION else None


def refusal(worker: str, error: QInferError) -> bytes:
    """The answer of a worker that cannot do what it was asked."""
    return msgspec.msgpack.encode(ChangeAnswer(CONTROL_VERSION, worker, done=True, error=WireError.of(error)))
