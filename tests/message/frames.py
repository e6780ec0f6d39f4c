"""Hypothesis strategies for everything a frame may hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qinfer.datatypes import DATATYPES, Array
from qinfer.message import (
    BatchInfo,
    Request,
    RequestFrame,
    Response,
    ResponseFrame,
    Tensor,
    WireError,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
unsigned = st.integers(0, 2**64 - 1)
parameter = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), text, st.binary(max_size=8)
)
parameters = st.dictionaries(text, parameter, max_size=3)
shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def array_of(draw: st.DrawFn, datatype: str) -> Array:
    """An array of a datatype, as a model or a client has it."""
    shape = draw(shapes)
    if datatype == "BYTES":
        flat = np.empty(math.prod(shape), dtype=object)
        flat[:] = draw(st.lists(st.binary(max_size=9), min_size=len(flat), max_size=len(flat)))
        return flat.reshape(shape)
    return draw(arrays.arrays(DATATYPES[datatype].dtype, shape))


@st.composite
def named_array(draw: st.DrawFn) -> tuple[str, Array]:
    """A datatype and an array of it."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    return datatype, draw(array_of(datatype))


@st.composite
def tensor(draw: st.DrawFn) -> Tensor:
    datatype, array = draw(named_array())
    return Tensor.from_numpy(draw(text), array, datatype)


request = st.builds(
    Request,
    id=unsigned,
    request_id=text,
    inputs=st.lists(tensor(), max_size=3),
    outputs=st.lists(text, max_size=3),
    deadline_us=unsigned,
    parameters=parameters,
    priority=st.integers(0, 10),
    tenant=text,
    attempt=st.integers(0, 100),
    traceparent=text,
    tracestate=text,
)

request_frame = st.builds(
    RequestFrame,
    version=st.just(1),
    reply_to=text,
    model=text,
    model_version=text,
    sent_us=unsigned,
    in_flight=st.integers(0, 2**31),
    requests=st.lists(request, max_size=3),
)

error = st.builds(WireError, text, text, st.none() | st.floats(0, 100))

response = st.builds(
    Response,
    id=unsigned,
    attempt=st.integers(1, 100),
    error=st.none() | error,
    outputs=st.lists(tensor(), max_size=3),
    parameters=parameters,
    flags=st.integers(0, 255),
    queue_us=unsigned,
)

response_frame = st.builds(
    ResponseFrame,
    version=st.just(1),
    worker=text,
    model_version=text,
    batch=st.builds(BatchInfo, unsigned, unsigned, unsigned, unsigned, unsigned),
    responses=st.lists(response, max_size=3),
    error=st.none() | error,
)


def raw(value: Any) -> Any:
    """Nested lists of a frame with the tensors' data as bytes, to compare frames by."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list):
        return [raw(element) for element in value]
    if hasattr(value, "__struct_fields__"):
        return [raw(getattr(value, name)) for name in value.__struct_fields__]
    return value
