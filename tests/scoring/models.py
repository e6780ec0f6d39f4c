"""Models for tests that need no server: a signature, and a function that answers as a model would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from qinfer.client.base import ModelInfo
from qinfer.errors import QInferError
from qinfer.message import Tensor
from qinfer.registry import TensorRecord
from qinfer.scoring import Infer, Progress, Run, Settings, make_plan


def model(
    inputs: Sequence[TensorRecord], outputs: Sequence[TensorRecord], *, max_batch_size: int = 4
) -> ModelInfo:
    return ModelInfo(
        name="m",
        versions=("1",),
        platform="python",
        ready=True,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        max_batch_size=max_batch_size,
    )


def spec(name: str, datatype: str = "FP32", *dims: int, optional: bool = False) -> TensorRecord:
    return TensorRecord(name, datatype, dims, optional)


DOUBLE = model([spec("x", "FP32", 2)], [spec("y", "FP32", 2)])
"""Doubles vectors of two."""

ECHO = model([spec("x", "BYTES", 1)], [spec("y", "BYTES", 1)])
"""Gives a text back."""


class Server:
    """Answers with what a function makes of the inputs, and counts.

    Attributes:
        rows: how many rows each request had, in the order in which they came.
        most: the most requests there were at once.
        failing: errors to be raised, one a request, before anything is answered.
    """

    def __init__(self, answer: Callable[..., dict[str, np.ndarray]], *, pause: float = 0.0) -> None:
        self._answer = answer
        self._pause = pause
        self.rows: list[int] = []
        self.most = self._now = 0
        self.failing: list[QInferError] = []

    async def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            self.rows.append(inputs[0].shape[0] if inputs[0].shape else 1)
            await asyncio.sleep(self._pause)
            if self.failing:
                raise self.failing.pop(0)
            answers = self._answer(**{tensor.name: tensor.numpy() for tensor in inputs})
            return [Tensor.from_numpy(name, array) for name, array in answers.items()]
        finally:
            self._now -= 1


def doubling() -> Server:
    return Server(lambda x: {"y": 2 * x})


def echoing() -> Server:
    return Server(lambda x: {"y": x})


async def score(
    source: Path,
    target: Path,
    signature: ModelInfo,
    infer: Infer,
    settings: Settings | None = None,
    **run: object,
) -> Progress:
    return await Run(make_plan(source, target, signature, settings or Settings()), infer, **run)()  # type: ignore[arg-type]
