"""What goes over the control topic: questions to everybody, and news for the workers of a model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from qinfer.bus.base import AnswerHandler, ReplyHandler, Watcher
from qinfer.bus.kafka.connection import Partition
from qinfer.bus.kafka.sender import Headers, Sender
from qinfer.errors import QInferError
from qinfer.lifecycle import cancelled
from qinfer.naming import escape

logger = logging.getLogger(__name__)

_ASK, _CANCEL = "ask", "cancel"
_ID, _FROM = "id", "from"  # headers of a question
_MAX_ANSWERING = 256  # questions being answered at a time

Reply = Callable[[str, bytes, Headers], None]


class Questions:
    """Asks, answers and passes news on.

    Args:
        control: where everybody listens.
        reply_to: this connection's inbox.
        reply: publishes on an inbox.
    """

    def __init__(self, sender: Sender, control: Partition, *, reply_to: str, reply: Reply) -> None:
        self._sender = sender
        self._control = control
        self._reply_to = reply_to
        self._reply = reply
        self._asked: dict[bytes, Callable[[bytes], None]] = {}
        self._answering: dict[str, list[AnswerHandler]] = {}
        self._listening: dict[str, list[Listener]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop answering. Idempotent."""
        self._answering.clear()
        await cancelled(*self._tasks)

    async def ask(self, topic: str, question: bytes, *, answers: int, timeout: float) -> list[bytes]:
        if answers <= 0:
            return []
        collected: list[bytes] = []
        done = asyncio.Event()

        def receive(answer: bytes) -> None:
            collected.append(answer)
            if len(collected) >= answers:
                done.set()

        name = uuid4().bytes
        self._asked[name] = receive
        try:
            headers = [(_ID, name), (_FROM, self._reply_to.encode())]
            self._sender.send(self._control, question, key=f"{_ASK}/{topic}".encode(), headers=headers)
            await asyncio.wait_for(done.wait(), timeout)
        except TimeoutError:
            logger.info("%d of %d answers about %s came in time", len(collected), answers, topic)
        finally:
            del self._asked[name]
        return collected

    def answered(self, headers: dict[str, bytes], answer: bytes) -> bool:
        """What came to our inbox: whether it is an answer to a question."""
        name = headers.get(_ID)
        if name is None:
            return False
        receive = self._asked.get(name)
        if receive is not None:
            receive(answer)
        return True

    def answer(self, topic: str, handler: AnswerHandler) -> None:
        """Answer questions on a topic from now on."""
        self._answering.setdefault(topic, []).append(handler)

    def cancel(self, model: str, notice: bytes) -> None:
        """Tell all workers of a model."""
        self._sender.send(self._control, notice, key=f"{_CANCEL}/{escape(model)}".encode())

    def on_cancel(self, model: str, handler: ReplyHandler) -> Listener:
        """Call `handler` with each notice for a model."""
        return Listener(self._listening.setdefault(escape(model), []), handler)

    def receive(self, record: Any) -> None:
        """A record of the control topic."""
        kind, _, about = record.key.decode().partition("/")
        if kind == _CANCEL:
            for listener in list(self._listening.get(about, ())):
                listener.handler(record.value)
        elif kind == _ASK:
            headers = dict(record.headers)
            for handler in self._answering.get(about, ()):
                self._begin(handler, record.value, headers)

    def _begin(self, handler: AnswerHandler, question: bytes, headers: dict[str, bytes]) -> None:
        if len(self._tasks) >= _MAX_ANSWERING:
            logger.warning("too many questions at a time: one is not answered")
            return
        task = asyncio.create_task(self._answer(handler, question, headers), name="answer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, handler: AnswerHandler, question: bytes, headers: dict[str, bytes]) -> None:
        answer = await handler(question)
        try:
            self._reply(headers[_FROM].decode(), answer, [(_ID, headers[_ID])])
        except QInferError as error:
            logger.warning("a question is not answered: %s", error)


class Listener(Watcher):
    """A handler in a list of those that want to know."""

    def __init__(self, listeners: list[Listener], handler: ReplyHandler) -> None:
        self._listeners = listeners
        self.handler = handler
        listeners.append(self)

    async def close(self) -> None:
        if self in self._listeners:
            self._listeners.remove(self)
