"""Has rows scored: asks again where that can help, and finds the row that is to blame where it cannot."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TypeAlias

import numpy as np

from qinfer.client.base import ModelInfo
from qinfer.datatypes import Array
from qinfer.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelFailed,
    NotFound,
    PayloadTooLarge,
    Poisoned,
    QInferError,
    Retry,
    Unsupported,
)
from qinfer.message import Tensor
from qinfer.scoring.formats import Field
from qinfer.scoring.mapping import Ask

Infer: TypeAlias = Callable[[Sequence[Tensor]], Awaitable[Sequence[Tensor]]]
"""Asks a model once, for inputs, and returns its outputs; raises `QInferError`."""

_OF_ROWS = (InvalidRequest, PayloadTooLarge, ModelFailed, NotFound, Unsupported)
"""What a row, and nothing else, can be to blame for."""

_PERHAPS_OF_ROWS = (DeadlineExceeded, InternalError)
"""What a row can be to blame for when it happens again and again."""

_TRIES = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Rows that were answered.

    Attributes:
        places: of the rows in their chunk.
        outputs: by column of the output file, arrays whose first dimension is these rows.
    """

    places: Sequence[int]
    outputs: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Failed:
    """A row, by its place in the chunk, that cannot be scored."""

    place: int
    error: QInferError


class Asker:
    """Asks a model about rows.

    Args:
        infer: asks once.
        model: its signature.
        fields: columns of the output file.
        patience: seconds without any answer in which a server that is away or busy is asked again.
    """

    def __init__(self, infer: Infer, model: ModelInfo, fields: Sequence[Field], *, patience: float) -> None:
        self._infer = infer
        self._batched = model.max_batch_size != 0
        self._datatypes = {spec.name: spec.datatype for spec in model.inputs}
        self._fields = [field for field in fields if field.output]
        self._patience = patience
        self._answered = monotonic()

    async def ask(self, ask: Ask) -> list[Scored | Failed]:
        """Have rows scored; what comes back is in their order.

        Raises:
            QInferError: none of the rows is to blame: no such model, no permission, no server.
        """
        try:
            return [await self._persist(ask)]
        except QInferError as error:
            if not isinstance(error, (*_OF_ROWS, *_PERHAPS_OF_ROWS)):
                raise
            if len(ask.places) == 1 or isinstance(error, Poisoned):
                # Each further try of a request that kills its workers would cost the fleet some more.
                return [Failed(place, error) for place in ask.places]
        middle = len(ask.places) // 2
        first = await self.ask(ask.part(0, middle))
        return [*first, *await self.ask(ask.part(middle, len(ask.places)))]

    async def _persist(self, ask: Ask) -> Scored:
        begun = monotonic()
        tries = doubtful = 0
        while True:
            tries += 1
            try:
                scored = await self._once(ask)
            except QInferError as error:
                if error.retry is Retry.NEVER or isinstance(error, _OF_ROWS):
                    raise
                if isinstance(error, _PERHAPS_OF_ROWS):
                    doubtful += 1
                    if doubtful == _TRIES:
                        raise
                elif monotonic() - max(begun, self._answered) > self._patience:
                    raise
                await asyncio.sleep(_pause(error, tries))
            else:
                self._answered = monotonic()
                return scored

    async def _once(self, ask: Ask) -> Scored:
        inputs = [
            Tensor.from_numpy(name, array if self._batched else array[0], self._datatypes[name])
            for name, array in ask.inputs.items()
        ]
        outputs = {tensor.name: tensor for tensor in await self._infer(inputs)}
        rows = len(ask.places)
        return Scored(
            places=ask.places,
            outputs={
                field.name: self._rows(outputs.get(field.output), field, rows) for field in self._fields
            },
        )

    def _rows(self, tensor: Tensor | None, field: Field, rows: int) -> Array:
        """An output, by rows, if it is what the signature says."""
        if tensor is None:
            raise InternalError(f"the answer has no output {field.output!r}, which the model's signature has")
        array = tensor.numpy() if self._batched else tensor.numpy()[np.newaxis]
        fits = tensor.datatype == field.datatype and len(array.shape) == 1 + len(field.dims)
        if not fits or any(
            want not in (-1, got) for got, want in zip(array.shape, (rows, *field.dims), strict=True)
        ):
            raise InternalError(
                f"output {field.output!r}: found {tensor.datatype} of shape {list(array.shape)}; expected "
                f"{field.datatype} of shape {[rows, *field.dims]}"
            )
        return array


def _pause(error: QInferError, tries: int) -> float:
    """Seconds until the next try; not the same for all, who would come at once again."""
    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(tries, 10))
    least: float = max(error.retry_after or 0.0, pause)
    return least * random.uniform(0.75, 1.25)
