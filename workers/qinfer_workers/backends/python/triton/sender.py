"""How decoupled models answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qinfer.errors import QInferError
from qinfer_workers.backends.base import Outputs, Responder
from qinfer_workers.backends.python.triton.errors import TritonModelException
from qinfer_workers.backends.python.triton.request import TRITONSERVER_RESPONSE_COMPLETE_FINAL


class InferenceResponseSender:
    """Where a decoupled model sends its responses to one request, from any thread.

    Made by qinfer. When the model drops it, and the request it belongs to, without having sent a last
    response, the request fails: nothing more could come.

    Args:
        responder: where the responses go.
        convert: makes of an `InferenceResponse` what the worker wants.
    """

    __slots__ = ("__weakref__", "_convert", "_responder")

    def __init__(self, responder: Responder, convert: Callable[[Any], Outputs | QInferError]) -> None:
        self._responder = responder
        self._convert = convert

    def send(self, response: Any = None, flags: int = 0) -> None:
        """Send a response, the last one with `TRITONSERVER_RESPONSE_COMPLETE_FINAL`.

        Waits while the caller has not taken enough of the earlier ones. What is sent when nobody waits any
        more (`is_cancelled`) is dropped.

        Args:
            response: an `InferenceResponse`; None, with the flag, where there is nothing more to say. One
                with an error is the last one.
            flags: 0 or the flag.

        Raises:
            TritonModelException: wrong arguments, a response after the last one, or a model that goes on long
                after it was told that nobody waits.
        """
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException(
                f"send: flags: found {flags!r}; expected 0 or TRITONSERVER_RESPONSE_COMPLETE_FINAL"
            )
        final = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if response is None and not final:
            raise TritonModelException(
                "send: found neither a response nor TRITONSERVER_RESPONSE_COMPLETE_FINAL; expected one"
            )
        try:
            self._responder.send(None if response is None else self._convert(response), final=final)
        except QInferError as error:
            raise TritonModelException(error.message) from None

    def is_cancelled(self) -> bool:
        """Whether nobody waits for responses any more."""
        return self._responder.is_cancelled()
