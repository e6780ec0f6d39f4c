"""Inputs from torch and pandas, and answers for them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from qinfer.client.base import ModelInfo, Result
from qinfer.client.transport import read_inputs
from qinfer.errors import BackendUnavailable, InvalidRequest
from qinfer.message import Tensor
from qinfer.registry import TensorRecord
from tests.client.test_values import converted

torch = pytest.importorskip("torch")
pd = pytest.importorskip("pandas")


@pytest.mark.parametrize(
    ("value", "datatype", "found"),
    [
        # torch
        (torch.tensor([[1.5]]), "FP32", [[1.5]]),
        (torch.tensor([[1.5]], requires_grad=True), "FP64", [[1.5]]),
        (torch.tensor([1.5], dtype=torch.bfloat16), "BF16", [0x3FC0]),
        (torch.tensor([1.5], dtype=torch.bfloat16), "FP32", [1.5]),
        (torch.arange(4).reshape(2, 2).T, "INT32", [[0, 2], [1, 3]]),
        (torch.tensor([True]), "BOOL", [True]),
        # pandas
        (pd.Series([1, 2]), "INT32", [[1], [2]]),
        (pd.Series([1.0, np.nan]).astype("float32"), "FP32", [[1.0], [np.nan]]),
        (pd.Series([1, 2], dtype="Int64"), "FP32", [[1.0], [2.0]]),
        (pd.Series(["a", "b"]), "BYTES", [[b"a"], [b"b"]]),
        (pd.Series(["a", "b", "a"], dtype="category"), "BYTES", [[b"a"], [b"b"], [b"a"]]),
        (pd.DataFrame({"a": [1, 2], "b": [3, 4]}), "FP32", [[1.0, 3.0], [2.0, 4.0]]),
    ],
)
def test_values_that_convert(value: Any, datatype: str, found: Any) -> None:
    np.testing.assert_equal(converted(value, datatype), found)


@pytest.mark.parametrize(
    ("value", "datatype", "why"),
    [
        (torch.tensor([1.0], dtype=torch.float64), "FP32", "float64 values would be lost"),
        (torch.eye(2).to_sparse(), "FP32", "to_dense"),
        (pd.Series([1, None], dtype="Int64"), "INT64", "values are missing"),
        (pd.Series(["a", None]), "BYTES", "values are missing"),
        (pd.DataFrame({"a": [1], "b": ["c"]}), "FP32", "dtype object"),
        (pd.DataFrame(), "FP32", "no columns"),
    ],
)
def test_values_that_do_not(value: Any, datatype: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=f"input 'x': found .*expected {datatype}: .*{why}"):
        converted(value, datatype)


INFO = ModelInfo(
    name="m", versions=("1",), platform="", ready=True, max_batch_size=8, outputs=(),
    inputs=(TensorRecord("age", "INT64", (1,)), TensorRecord("name", "BYTES", (1,))),
)  # fmt: skip


def test_columns_of_a_frame_are_inputs() -> None:
    frame = pd.DataFrame({"age": [1, 2], "name": ["a", "b"]})
    age, name = read_inputs(frame, INFO)
    assert (age.name, age.shape, age.numpy().tolist()) == ("age", [2, 1], [[1], [2]])
    assert (name.name, name.shape, name.numpy().tolist()) == ("name", [2, 1], [[b"a"], [b"b"]])
    with pytest.raises(InvalidRequest, match="'height' is not one of age, name"):
        read_inputs(frame.assign(height=1.0), INFO)


def result(**arrays: Any) -> Result:
    return Result(
        model="m", version="1", tensors=[Tensor.from_numpy(name, array) for name, array in arrays.items()]
    )


def test_answers_as_torch() -> None:
    patterns = Tensor.from_numpy("b", np.array([0x3FC0], np.uint16), "BF16")
    tensors = [*result(y=np.ones((1, 2), np.float32)).tensors, patterns]
    found = Result(model="m", version="1", tensors=tensors).to_torch()
    assert (found["y"].dtype, found["y"].tolist()) == (torch.float32, [[1.0, 1.0]])
    assert (found["b"].dtype, found["b"].tolist()) == (torch.bfloat16, [1.5])
    found["y"] += 1  # memory of their own
    with pytest.raises(InvalidRequest, match="output 't' is BYTES"):
        result(t=np.array(["a"])).to_torch()


def test_answers_as_a_frame() -> None:
    frame = result(
        a=np.array([[1], [2]]), b=np.ones((2, 2), np.float32), t=np.array([["x"], [b"\xff"]], object),
        c=np.zeros((2, 1, 1)),
    ).to_pandas()  # fmt: skip
    assert list(frame.columns) == ["a", "b_0", "b_1", "t", "c"]
    assert frame["a"].tolist() == [1, 2]
    assert frame["t"].tolist() == ["x", b"\xff"]
    assert frame["c"][0].shape == (1, 1)
    with pytest.raises(InvalidRequest, match=r"'a' of shape \[2\], 'b' of shape \[3\]"):
        result(a=np.zeros(2), b=np.zeros(3)).to_pandas()
    with pytest.raises(InvalidRequest, match=r"of shape \[\]"):
        result(a=np.zeros(())).to_pandas()


@pytest.mark.parametrize(("name", "method"), [("torch", "to_torch"), ("pandas", "to_pandas")])
def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch, name: str, method: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailable, match=f"{name} is not installed: pip install"):
        getattr(result(y=np.ones(1)), method)()
