"""`reshape` between the client's shapes and the model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.backends.support import batch_of, config_of, tensor

from qinfer.errors import InvalidRequest, ModelFailed, QInferError
from qinfer_workers.backends.base import Batch, Outputs, OutputsWithParameters
from qinfer_workers.backends.reshape import reshaping


class Echo:
    """Returns its input as the output; in one piece, or a piece for each member."""

    def __init__(self, *, apart: bool = False, **parameters: Any) -> None:
        self.apart = apart
        self.parameters = parameters
        self.shapes: list[tuple[int, ...]] = []
        self.closed = False

    def execute(self, batch: Batch) -> Outputs | Sequence[Outputs | QInferError]:
        if not self.apart:
            self.shapes.append(batch.inputs["x"].shape)
            return {"y": batch.inputs["x"]}
        self.shapes = [member.inputs["x"].shape for member in batch.members]
        answers: list[Outputs | QInferError] = [
            OutputsWithParameters({"y": member.inputs["x"]}, parameters=self.parameters)
            for member in batch.members
        ]
        return [*answers[:-1], InvalidRequest("the last one")]

    def close(self) -> None:
        self.closed = True


CONFIG = config_of(
    "echo",
    inputs=[tensor("x", "FP32", -1, 4, -1, reshape=(-1, 2, 2, -1))],
    outputs=[tensor("y", "FP32", -1, 4, -1, reshape=(-1, 2, 2, -1))],
    max_batch_size=8,
)
X = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)


def test_whole_batches() -> None:
    echo = Echo()
    instance = reshaping(CONFIG, echo)
    outputs = instance.execute(batch_of({"x": X}))
    assert echo.shapes == [(2, 3, 2, 2, 5)]
    assert isinstance(outputs, dict)
    np.testing.assert_array_equal(outputs["y"], X)
    instance.close()
    assert echo.closed


def test_members_apart() -> None:
    echo = Echo(apart=True, label="cat")
    first, second = reshaping(CONFIG, echo).execute(batch_of({"x": X}, {"x": X[:1]}))
    assert echo.shapes == [(2, 3, 2, 2, 5), (1, 3, 2, 2, 5)]
    assert isinstance(first, OutputsWithParameters)
    assert first.parameters == {"label": "cat"}
    np.testing.assert_array_equal(first["y"], X)
    assert isinstance(second, InvalidRequest)


def test_a_model_that_does_not_keep_to_its_shape() -> None:
    config = config_of("echo", outputs=[tensor("y", "FP32", 6, reshape=(2, 3))], max_batch_size=8)
    instance = reshaping(config, Echo())
    with pytest.raises(ModelFailed, match=r"output 'y': found shape \[2, 3, 4, 5\]; expected \[2, 3\] after"):
        instance.execute(batch_of({"x": X}))


def test_nothing_to_reshape_costs_nothing() -> None:
    echo = Echo()
    assert reshaping(config_of("echo", inputs=[tensor("x", "FP32", 4)]), echo) is echo
