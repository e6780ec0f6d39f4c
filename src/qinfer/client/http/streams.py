"""One request, any number of responses, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from qinfer.client.base import ModelInfo, Result
from qinfer.client.http.session import Session
from qinfer.client.transport import Question
from qinfer.errors import Unsupported
from qinfer.message import Request


class Streams:
    """Asks models for any number of responses.

    Args:
        session: a started session.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def ask(
        self, question: Question, request: Request, info: ModelInfo, headers: Mapping[str, str]
    ) -> AsyncGenerator[Result, None]:
        """Send a request and give its responses; leaving the iteration ends the connection."""
        if question.deadline:
            raise Unsupported(f"streams over HTTP {self._session} {request} {info} {headers}")
        yield Result(model="", version="", tensors=())
