"""Runs batches on a decoupled Python model."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from qinfer.errors import ModelFailed, QInferError
from qinfer_workers.backends.base import Outputs, Responses, StreamingBatch, StreamingMember
from qinfer_workers.backends.python.failures import describe
from qinfer_workers.backends.python.instance import PythonModel
from qinfer_workers.backends.python.triton import InferenceRequest, InferenceResponseSender


class DecoupledInstance(PythonModel):
    """One `TritonPythonModel` that gives any number of responses to a request.

    Its `execute` uses the requests' senders, as in Triton, and returns None; or it returns one iterator of
    `InferenceResponse` for each request, a generator mostly.
    """

    def execute(self, batch: StreamingBatch) -> Sequence[Responses | QInferError] | None:
        """See `StreamingInstance.execute`.

        Raises:
            ModelFailed: the model raised, or returned something else.
        """
        members = batch.members
        requests, watches = [], []
        for member in members:
            sender = self._sender(member)
            watches.append(weakref.finalize(sender, member.responder.let_go))
            watches[-1].atexit = False
            requests.append(
                InferenceRequest(member, self._name, self._version, read_only=self._read_only, sender=sender)
            )
            del sender
        try:
            with self._scope.active():
                results = self._run(requests)
        except QInferError:
            raise
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error
        if results is None:
            return None
        if not isinstance(results, list | tuple) or len(results) != len(members):
            found = f"{len(results)} of them" if isinstance(results, list | tuple) else repr(results)
            raise ModelFailed(f"{self._where}: execute returned {found}; {self._expected(len(members))}")
        for result in results:
            if not isinstance(result, Iterator):
                raise ModelFailed(
                    f"{self._where}: execute returned a list with a {type(result).__name__}; "
                    f"{self._expected(len(members))}"
                )
        for watch in watches:
            watch.detach()  # what ends with its iterator need not be watched
        return [self._responses(member, result) for member, result in zip(members, results, strict=True)]

    def _sender(self, member: StreamingMember) -> InferenceResponseSender:
        def convert(response: Any) -> Outputs | QInferError:
            return self._answer(member, response, whole=False)

        return InferenceResponseSender(member.responder, convert)

    def _responses(self, member: StreamingMember, given: Iterator[Any]) -> Responses:
        """What a model's iterator gives, as outputs. It is run as the model's code, and closed with this."""
        try:
            while True:
                try:
                    with self._scope.active():
                        response = next(given)
                except StopIteration:
                    return
                except QInferError:
                    raise
                except (Exception, SystemExit) as error:
                    raise self._failure(error) from error
                yield self._answer(member, response, whole=False)
        finally:
            close = getattr(given, "close", None)
            if close is not None:
                with self._scope.active():
                    close()

    def _failure(self, error: BaseException) -> ModelFailed:
        return ModelFailed(f"{self._where}: execute raised {describe(error, self._path)}")

    @staticmethod
    def _expected(count: int) -> str:
        return (
            "expected None, with responses sent by get_response_sender(), or a list of"
            f" {count} generators of InferenceResponse, one for each request"
        )
