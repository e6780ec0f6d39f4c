"""When a worker loads and unloads: at its start, when its repositories change, and when it is told to.

The modes are Triton's. `none`: what is there at the start is served. `poll`: the repositories are looked at
again and again. `explicit`: what is named at the start, and from then on what questions on the bus say. A
worker of any mode looks once when it gets SIGHUP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

import msgspec

from qinfer.bus import Bus
from qinfer.control import (
    CHANGE,
    CONTROL_VERSION,
    EVERYTHING,
    INDEX,
    MAX_OVERRIDE,
    ChangeAnswer,
    ChangeQuestion,
    IndexAnswer,
    ModelState,
    decode_question,
)
from qinfer.errors import (
    InternalError,
    ModelNotFound,
    PayloadTooLarge,
    QInferError,
    QueueFull,
    ShuttingDown,
    Unsupported,
)
from qinfer.lifecycle import cancelled
from qinfer.message import WireError
from qinfer.registry import Directory
from qinfer.repository import ModelEntry, Problem, Repository
from qinfer_workers.models import Models
from qinfer_workers.options import WorkerOptions

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 0.25  # what is done within this time is told in the first answer
_MAX_OPERATIONS = 64


class Control:
    """Decides what `Models` loads.

    Args:
        bus: a started bus.
        directory: a started directory.
        models: loads and unloads.
        worker: this worker's id.
        options: repositories, models and mode.
    """

    def __init__(
        self, bus: Bus, directory: Directory, models: Models, *, worker: str, options: WorkerOptions
    ) -> None:
        self._bus = bus
        self._directory = directory
        self._models = models
        self._worker = worker
        self._options = options
        self._repository: Repository | None = None
        self._operations: dict[str, asyncio.Task[None]] = {}
        self._again = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @property
    def _explicit(self) -> bool:
        return self._options.model_control_mode == "explicit"

    async def start(self) -> None:
        """Load what is to be served from the start. A model that cannot be loaded is a problem, not a stop.

        Raises:
            SetupError: a repository cannot be read.
        """
        self._repository = await asyncio.to_thread(Repository, *self._options.repositories)
        entries, problems = await asyncio.to_thread(self._repository.scan)
        overrides = self._overrides()
        wanted = {*self._options.models, *overrides}
        everything = not wanted and not self._explicit
        if not everything and EVERYTHING not in wanted:
            found = {entry.config.name for entry in entries} | {problem.model for problem in problems}
            self._complain_of_missing(found)
            entries = [entry for entry in entries if entry.config.name in wanted]
            problems = [problem for problem in problems if problem.model in wanted]
        await self._apply(entries, problems, overrides)

    async def listen(self) -> None:
        """Begin to look again, and to answer questions."""
        self._looking = asyncio.create_task(self._look_again(), name="repository")
        await self._bus.answer(INDEX, self._index)
        await self._bus.answer(CHANGE, self._change)

    async def close(self) -> None:
        """Load nothing more. Idempotent."""
        tasks = [*self._operations.values(), *([self._looking] if self._looking is not None else [])]
        await cancelled(*tasks)

    def look(self) -> None:
        """Look at the repositories soon: load what is new or changed, unload what is gone."""
        logger.info("looking at the model repositories")
        self._again.set()

    # From the repositories

    async def _look_again(self) -> None:
        polling = self._options.model_control_mode == "poll"
        every = self._options.repository_poll_secs if polling else None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), every)
            asked = self._again.is_set()
            self._again.clear()
            try:
                await self._look(again=asked)
            except QInferError as error:
                # What cannot be read may be there again in a moment: nothing is unloaded for that.
                logger.error("the model repositories cannot be looked at: %s", error)
            except Exception:
                logger.exception("looking at the model repositories failed")

    async def _look(self, *, again: bool) -> None:
        assert self._repository is not None
        entries, problems = await asyncio.to_thread(self._repository.scan)
        there = {entry.config.name for entry in entries} | {problem.model for problem in problems}
        served, named = set(self._models.services), set(self._options.models)
        if self._explicit:
            wanted = served
        elif named and EVERYTHING not in named:
            wanted = named
        else:
            wanted = there
        overrides = {name: self._models.override(name) for name in served}
        await self._apply(
            [entry for entry in entries if entry.config.name in wanted],
            [problem for problem in problems if problem.model in wanted],
            overrides,
            again=again,
        )
        for name in (served | set(self._models.problems)) - (there & wanted):
            await self._remove(name)
        self._complain_of_missing(there)
        await self._models.tell()

    def _complain_of_missing(self, there: set[str]) -> None:
        for name in self._options.models:
            if name not in there and name != EVERYTHING:
                self._models.complain(name, "not in any model repository")

    async def _apply(
        self,
        entries: Sequence[ModelEntry],
        problems: Sequence[Problem],
        overrides: dict[str, str],
        *,
        again: bool = True,
    ) -> None:
        for problem in problems:
            if not overrides.get(problem.model):
                self._models.complain(problem.model, problem.error.message)
        for entry in entries:
            if not overrides.get(entry.config.name):
                await self._put(entry, again=again)
        for name, override in overrides.items():
            if override:
                await self._put_overridden(name, override, again=again)

    async def _put_overridden(self, name: str, override: str, *, again: bool) -> None:
        try:
            entry = await asyncio.to_thread(self._load_entry, name, override)
        except QInferError as error:
            self._models.complain(name, error.message)
        else:
            await self._put(entry, override, again=again)

    async def _put(self, entry: ModelEntry, override: str = "", *, again: bool) -> None:
        try:
            await self._models.put(entry, override, again=again)
        except QInferError:
            logger.debug("told as a problem of model %s", entry.config.name)

    async def _remove(self, name: str) -> None:
        try:
            await self._models.remove(name)
        except ModelNotFound:
            logger.debug("model %s was never loaded", name)

    def _load_entry(self, name: str, override: str) -> ModelEntry:
        assert self._repository is not None
        return self._repository.load(name, override)

    def _overrides(self) -> dict[str, str]:
        """What the fleet has been told to load, with the configurations given then.

        A worker that is started anew, in place of one that died or for more capacity, serves that too.
        """
        if not self._explicit:
            return {}
        return {
            name: next((record.override for record in versions.values() if record.override), "")
            for name, versions in self._directory.models.items()
        }

    # From the bus

    async def _index(self, _: bytes) -> bytes:
        states = self._models.states()
        told = {state.name for state in states}
        try:
            assert self._repository is not None
            names = await asyncio.to_thread(self._repository.names)
        except QInferError as error:
            logger.warning("the model repositories cannot be listed: %s", error)
            names = []
        states += [ModelState(name, "", "UNAVAILABLE", "not loaded") for name in names if name not in told]
        return msgspec.msgpack.encode(IndexAnswer(CONTROL_VERSION, self._worker, states))

    async def _change(self, data: bytes) -> bytes:
        done, error = True, None
        try:
            question = decode_question(data)
            operation = self._operations.get(question.operation) or self._begin(question)
            done = bool((await asyncio.wait({operation}, timeout=_ANSWER_SECONDS))[0])
            if done:
                error = _outcome(operation)
        except QInferError as refusal:
            error = refusal
        answer = ChangeAnswer(
            CONTROL_VERSION, self._worker, done, None if error is None else WireError.of(error)
        )
        return msgspec.msgpack.encode(answer)

    def _begin(self, question: ChangeQuestion) -> asyncio.Task[None]:
        if not self._explicit:
            raise Unsupported(
                f"models are not loaded or unloaded on demand: --model-control-mode is"
                f" {self._options.model_control_mode}; expected explicit"
            )
        if len(question.config) > MAX_OVERRIDE:
            raise PayloadTooLarge(
                f"configuration of {len(question.config)} characters; expected at most {MAX_OVERRIDE}"
            )
        for number in [number for number, task in self._operations.items() if task.done()]:
            if len(self._operations) >= _MAX_OPERATIONS:
                del self._operations[number]
        if len(self._operations) >= _MAX_OPERATIONS:
            raise QueueFull(f"{_MAX_OPERATIONS} loads and unloads are under way here", retry_after=1.0)
        name = f"{question.action} {question.model}"
        task = self._operations[question.operation] = asyncio.create_task(self._run(question), name=name)
        return task

    async def _run(self, question: ChangeQuestion) -> None:
        if question.action == "unload":
            await self._models.remove(question.model, everywhere=True)
            return
        entry = await asyncio.to_thread(self._load_entry, question.model, question.config)
        await self._models.put(entry, question.config)


def _outcome(operation: asyncio.Task[None]) -> QInferError | None:
    if operation.cancelled():
        return ShuttingDown("this worker is shutting down", retry_after=1.0)
    error = operation.exception()
    if error is None or isinstance(error, QInferError):
        return error
    logger.error("%s failed", operation.get_name(), exc_info=error)
    return InternalError(f"the worker failed to {operation.get_name()}")
