"""A client of another language that does what a test says, and says what came of it.

Its driver (`drivers/`) reads commands as JSON, one a line, and answers each. Values travel as text, which
every language can make numbers of; elements of BYTES as hexadecimal digits.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from qinfer.lifecycle import cancelled
from tests.clients.built import Built
from tests.helpers.waiting import PATIENCE

DONE = "done"
"""What is got when a stream has ended."""

Input = Sequence[Any]
"""Name, datatype, shape and values."""


class Failed(Exception):
    """The client raised one of its errors.

    Attributes:
        reason, retry_after: as the client's user sees them.
    """

    def __init__(self, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Got:
    """A response as the client's user sees it: outputs by name with datatype, shape and values as text."""

    version: str
    parameters: dict[str, Any]
    outputs: dict[str, tuple[str, list[int], list[str]]]


def floats(*values: float) -> Input:
    """Input `x` of one row of FP32."""
    return ["x", "FP32", [1, len(values)], [repr(value) for value in values]]


class Client:
    """The client in its process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._keys = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def listen(self) -> None:
        """Hand answers to who waits for them."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            self._answers.pop(told["key"]).set_result(told)
        for answer in self._answers.values():
            answer.set_exception(ConnectionError("the driver has ended"))

    def do(self, verb: str, of: int, **told: Any) -> asyncio.Future[dict[str, Any]]:
        """Tell the driver to do something with a request; its answer comes in its time."""
        assert self._process.stdin is not None
        key = next(self._keys)
        answer = self._answers[key] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"key": key, "of": of, "do": verb, **told}).encode() + b"\n")
        return answer

    async def infer(self, model: str, *inputs: Input, **options: Any) -> Got | None:
        """One answer, None where there is none."""
        return await self.begin(model, *inputs, **options).answer()

    def begin(self, model: str, *inputs: Input, **options: Any) -> Asked:
        """Ask and do not wait."""
        key = next(self._keys)
        return Asked(self, key, self.do("infer", key, **_options(model, inputs, options)))

    async def stream(self, model: str, *inputs: Input, **options: Any) -> Stream:
        """Begin a stream; the request is sent with the first `next`."""
        key = next(self._keys)
        told = self.do("open", key, **_options(model, inputs, options))
        if "error" not in (await told):
            return Stream(self, key)
        raise AssertionError(told.result())


def _options(model: str, inputs: Sequence[Input], options: dict[str, Any]) -> dict[str, Any]:
    seconds = options.pop("timeout", PATIENCE)
    told = {"version": "", "window": 0, "parameters": {}, **options}
    return {"model": model, "inputs": inputs, "timeout": round(seconds * 1000), **told}


class Asked:
    """A request that waits for its answer."""

    def __init__(self, client: Client, key: int, told: asyncio.Future[dict[str, Any]]) -> None:
        self._client = client
        self._key = key
        self._told = told

    async def answer(self) -> Got | None:
        return _got(await _heard(self._told))

    async def abort(self) -> None:
        """Have the client give up."""
        await _heard(self._client.do("abort", self._key))


class Stream:
    """A stream that is read step by step."""

    def __init__(self, client: Client, key: int) -> None:
        self._client = client
        self._key = key

    async def next(self) -> Got | str | None:
        """The next response; `DONE` after the last."""
        got = await _heard(self._client.do("next", self._key))
        return got if got == DONE else _got(got)

    async def rest(self) -> list[Got]:
        """All responses to the end."""
        found: list[Got] = []
        while isinstance(response := await self.next(), Got):
            found.append(response)
        assert response == DONE
        return found

    async def leave(self) -> None:
        """Leave the loop."""
        await _heard(self._client.do("leave", self._key))

    async def abort(self) -> None:
        """Have it ended from elsewhere."""
        await _heard(self._client.do("abort", self._key))


async def _heard(told: asyncio.Future[dict[str, Any]]) -> Any:
    async with asyncio.timeout(2 * PATIENCE):
        answer = await told
    error = answer.get("error")
    if error:
        raise Failed(error["reason"], error["message"], error.get("retry_after"))
    return answer["got"]


def _got(told: Any) -> Got | None:
    if told is None:
        return None
    outputs = {name: (datatype, shape, values) for name, datatype, shape, values in told["outputs"]}
    return Got(told["version"], told["parameters"] or {}, outputs)


@asynccontextmanager
async def client(built: Built, url: str, namespace: str) -> AsyncIterator[Client]:
    """A client that is connected to a broker."""
    process = await asyncio.create_subprocess_exec(
        *built.driver,
        url,
        namespace,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    made = Client(process)
    listening = asyncio.create_task(made.listen())
    try:
        yield made
    finally:
        await cancelled(listening)
        if process.returncode is None:
            process.kill()
        await process.wait()
