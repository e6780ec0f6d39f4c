"""From responses to frames on the senders' inboxes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import msgspec

from qinfer.bus import Bus, Delivery
from qinfer.errors import BusUnavailable, ModelFailed, PayloadTooLarge, QInferError
from qinfer.message import (
    PROTOCOL_VERSION,
    BatchInfo,
    Response,
    ResponseFrame,
    WireError,
    encode,
    reply_address,
)
from qinfer_workers.senders import Senders

logger = logging.getLogger(__name__)

NO_BATCH = BatchInfo()
"""Of responses that were in no batch."""


class _EncodedFrame(msgspec.Struct, array_like=True, gc=False):
    """A `ResponseFrame` whose responses are encoded already."""

    version: int
    worker: str
    model_version: str
    batch: BatchInfo
    responses: list[msgspec.Raw]
    error: None
    backlog: int


class Replies:
    """Publishes the responses of one model.

    Args:
        bus: a started bus.
        worker: this worker's id.
        model: name of the model.
        senders: told how many of a sender's requests were answered.
        backlog: requests known to wait; every frame tells it.
    """

    def __init__(
        self, bus: Bus, worker: str, model: str, *, senders: Senders, backlog: Callable[[], int]
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._model = model
        self._senders = senders
        self._backlog = backlog

    def answer(self, reply_to: str, version: str, info: BatchInfo, responses: list[Response]) -> bool:
        """Publish responses to one sender.

        Returns:
            False when the broker could not be reached: the requests must be run again.
        """
        self._senders.answered(reply_to, len(responses))
        backlog = self._backlog()
        frame = ResponseFrame(PROTOCOL_VERSION, self._worker, version, info, responses, backlog=backlog)
        return self._publish(reply_to, frame)

    def stream(self, reply_to: str, version: str, info: BatchInfo, responses: Sequence[bytes]) -> bool:
        """Publish some of many responses to one sender, encoded and together not too large for a message.

        Returns:
            False when the connection does not take them.
        """
        raw = [msgspec.Raw(response) for response in responses]
        frame = _EncodedFrame(PROTOCOL_VERSION, self._worker, version, info, raw, None, self._backlog())
        return self.tell(reply_to, encode(frame))

    def encode(self, version: str, info: BatchInfo, response: Response) -> bytes:
        """A frame with one response; one that has no wire form becomes the error that says so."""
        while True:
            frame = ResponseFrame(
                PROTOCOL_VERSION, self._worker, version, info, [response], backlog=self._backlog()
            )
            try:
                return encode(frame)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                if response.error is not None:
                    raise
                response.error = WireError.of(self._unsendable(error))
                response.outputs, response.parameters = [], {}

    def tell(self, reply_to: str, frame: bytes) -> bool:
        """Publish a frame that is encoded already, and not too large. Returns as `answer`."""
        try:
            self._bus.reply(reply_to, frame)
        except BusUnavailable as error:
            logger.warning("model %s: an answer was not sent: %s", self._model, error)
            return False
        except QInferError as error:
            logger.warning("model %s: cannot answer %r: %s", self._model, reply_to[:80], error)
        return True

    def _unsendable(self, error: Exception) -> ModelFailed:
        return ModelFailed(f"model {self._model!r}: its answer has no wire form: {error}")

    def refuse_frame(self, delivery: Delivery, error: QInferError) -> None:
        """Drop bytes that cannot be read or answered; say so where they name an inbox."""
        size = len(delivery.payload)
        logger.warning("model %s: dropped a message of %d bytes: %s", self._model, size, error)
        address = reply_address(delivery.payload)
        if address:
            frame = ResponseFrame(PROTOCOL_VERSION, self._worker, "", NO_BATCH, [], WireError.of(error))
            self._publish(address, frame)
        delivery.term()

    def _publish(self, reply_to: str, frame: ResponseFrame) -> bool:
        """Publish a frame of responses, in parts where it is above the broker's limit."""
        try:
            data = encode(frame)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            return self._publish_parts(reply_to, frame, self._unsendable(error))
        try:
            self._bus.reply(reply_to, data)
        except PayloadTooLarge as error:
            return self._publish_parts(reply_to, frame, error)
        except BusUnavailable as error:
            logger.warning("model %s: %d answers not sent: %s", self._model, len(frame.responses), error)
            return False
        except QInferError as error:
            logger.warning("model %s: cannot answer %r: %s", self._model, reply_to[:80], error)
        return True

    def _publish_parts(self, reply_to: str, frame: ResponseFrame, error: QInferError) -> bool:
        """Publish halves of a frame that cannot be sent, down to the response that is the reason."""
        responses = frame.responses
        if len(responses) > 1:
            middle = len(responses) // 2
            parts = [responses[:middle], responses[middle:]]
        elif responses and responses[0].error is None:
            parts = [[Response(responses[0].id, responses[0].attempt, WireError.of(error))]]
        else:
            logger.warning("model %s: an error cannot be sent: %s", self._model, error)
            return True
        sent = [self._publish(reply_to, msgspec.structs.replace(frame, responses=part)) for part in parts]
        return all(sent)
