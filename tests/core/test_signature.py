from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qinfer import signature as module
from qinfer.datatypes import encode_bytes
from qinfer.errors import InvalidRequest
from qinfer.message import Request, Tensor
from qinfer.registry import TensorRecord
from qinfer.signature import Signature


def spec(name: str, datatype: str = "FP32", *dims: int, optional: bool = False) -> TensorRecord:
    return TensorRecord(name, datatype, dims, optional)


def tensor(name: str, *shape: int, datatype: str = "FP32", size: int | None = None) -> Tensor:
    count = int(np.prod(shape, dtype=object)) if shape else 1
    data = encode_bytes([b""] * count) if datatype == "BYTES" else bytes(count * 4 if size is None else size)
    return Tensor(name, datatype, list(shape), data)


def request(*inputs: Tensor, outputs: tuple[str, ...] = ()) -> Request:
    return Request(1, "", list(inputs), outputs=list(outputs))


BATCHED = Signature([spec("x", "FP32", 2), spec("n", "BYTES", -1, optional=True)], [spec("y")], 8)


def test_requests_of_the_same_inputs_share_a_plan() -> None:
    one, rows = BATCHED.check(request(tensor("x", 3, 2)))
    other, more = BATCHED.check(request(tensor("x", 5, 2)))
    assert one is other
    assert (rows, more) == (3, 5)


def test_other_inputs_shapes_or_orders_have_other_plans() -> None:
    x, n = tensor("x", 1, 2), tensor("n", 1, 4, datatype="BYTES")
    wider = tensor("n", 1, 5, datatype="BYTES")
    plans = {BATCHED.check(request(*inputs))[0] for inputs in ([x], [x, n], [n, x], [x, wider])}
    assert len(plans) == 4


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "no inputs; expected x, n"),
        ([tensor("n", 1, 1, datatype="BYTES")], "input 'x' is missing"),
        ([tensor("x", 1, 2), tensor("x", 1, 2)], "given twice"),
        ([tensor("x", 1, 2), tensor("z", 1, 2)], "'z' is not one of x, n"),
        ([tensor("x", 1, 2, datatype="BYTES")], "datatype BYTES; expected FP32"),
        ([tensor("x", 1, 3)], r"shape \[1, 3\]; expected \[-1, 2\]"),
        ([tensor("x", 2)], r"shape \[2\]; expected \[-1, 2\]"),
        ([tensor("x")], "no batch dimension"),
        ([tensor("x", 0, 2)], "batch of 0 rows; expected 1 to 8"),
        ([tensor("x", 9, 2)], "batch of 9 rows; expected 1 to 8"),
        ([tensor("x", -1, 2, size=0)], "batch of -1 rows"),
        ([tensor("x", 2, 2, size=12)], r"FP32 of shape \[2, 2\] needs 16 bytes; got 12"),
        ([tensor("x", 2, 2), tensor("n", 3, 1, datatype="BYTES")], "disagree about the batch size"),
        ([tensor("x", 1, 2), Tensor("n", "BYTES", [1, -1], b"")], r"shape \[1, -1\]"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected(inputs: list[Tensor], says: str) -> None:
    for _ in range(2):  # remembered or not
        with pytest.raises(InvalidRequest, match=says):
            BATCHED.check(request(*inputs))


def test_wanted_outputs_have_to_exist() -> None:
    BATCHED.check(request(tensor("x", 1, 2), outputs=("y",)))
    with pytest.raises(InvalidRequest, match="output 'z' is not one of y"):
        BATCHED.check(request(tensor("x", 1, 2), outputs=("z",)))


def test_a_model_without_batch_dimension() -> None:
    signature = Signature([spec("x", "FP32", 2, -1)], [], 0)
    _, rows = signature.check(request(tensor("x", 2, 5)))
    assert rows == 1
    with pytest.raises(InvalidRequest, match=r"expected \[2, -1\]"):
        signature.check(request(tensor("x", 1, 2, 5)))


def test_a_scalar_is_not_a_row_though_both_have_the_same_row_shape() -> None:
    signature = Signature([spec("x"), spec("z", optional=True)], [], 4)
    assert signature.check(request(tensor("x", 3)))[1] == 3
    signature.check(request(tensor("x", 3), tensor("z", 3)))
    for inputs in ([tensor("x")], [tensor("x", 3), tensor("z")]):
        with pytest.raises(InvalidRequest, match="no batch dimension"):
            signature.check(request(*inputs))


def test_shapes_that_clients_make_up_take_no_memory_for_ever() -> None:
    signature = Signature([spec("x", "FP32", -1)], [], 4)
    for columns in range(3 * module._MAX_PLANS):
        signature.check(request(tensor("x", 1, columns)))
    assert len(signature._plans) <= module._MAX_PLANS
    plan, _ = signature.check(request(tensor("x", 2, 7)))
    assert signature.check(request(tensor("x", 3, 7)))[0] is plan


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_dimensions_beyond_reason(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        Signature([spec("x", "FP32", -1)], [], 4).check(request(Tensor("x", "FP32", [1, value], b"")))
    with pytest.raises(InvalidRequest):
        BATCHED.check(request(Tensor("x", "FP32", [value, 2], b"")))
