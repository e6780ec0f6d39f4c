"""Idempotency keys, and what tells one request from another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinfer.errors import InvalidRequest, KeyReused
from qinfer.idempotency import MAX_KEY, check_fingerprint, check_key, fingerprint, name_of
from qinfer.message import Request, Response, Tensor
from qinfer_gateway.catalog import Target
from qinfer_gateway.idempotency import set_key
from tests.gateway.test_dispatcher import target

printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=MAX_KEY)


@given(printable)
def test_printable_characters_are_a_key(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "x" * (MAX_KEY + 1), "ü", "a\tb", "a\x7f", "\ud800", "a\nb"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 255 printable ASCII"):
        check_key(key)


@given(st.lists(st.tuples(st.text(), st.text(), st.text(), st.text()), unique=True, max_size=8))
def test_names_are_apart(parts: list[tuple[str, str, str, str]]) -> None:
    names = {name_of(*part) for part in parts}
    assert len(names) == len(parts)
    assert all(len(name) == 64 and set(name) <= set("0123456789abcdef") for name in names)


def test_a_key_belongs_to_tenant_model_and_version() -> None:
    def named(tenant: str, where: Target) -> str:
        request = Request(0, "", [], tenant=tenant)
        set_key(request, where, "k", ids=False)
        return request.idempotency

    names = {
        named(tenant, target(model, version))
        for tenant in ("", "a")
        for model in ("m", "n")
        for version in ("", "1")
    }
    assert len(names) == 8


@pytest.mark.parametrize(
    ("key", "request_id", "ids", "named"),
    [
        (None, "", False, False),
        (None, "7", False, False),
        (None, "7", True, True),
        (None, "", True, False),
        ("k", "", False, True),
    ],
)
def test_what_a_request_is_named_after(key: str | None, request_id: str, ids: bool, named: bool) -> None:
    request = Request(0, request_id, [])
    set_key(request, target(), key, ids=ids)
    assert bool(request.idempotency) == named


def test_a_key_goes_before_an_identifier() -> None:
    one, other = Request(0, "1", []), Request(0, "2", [])
    for request in (one, other):
        set_key(request, target(), "k", ids=True)
    assert one.idempotency == other.idempotency


def request_of(**changes: object) -> Request:
    tensor = Tensor.from_numpy("x", np.array([[1, 2, 3, 4]], np.float32))
    fields: dict[str, object] = {"inputs": [tensor], "outputs": ["y"], "parameters": {"a": 1, "b": 2.5}}
    return Request(**{"id": 0, "request_id": "", **fields, **changes})  # type: ignore[arg-type]


async def test_a_fingerprint_is_of_what_is_asked_and_of_nothing_else() -> None:
    data = np.array([[1, 2, 3, 4]], np.float32)
    plain = await fingerprint(request_of())
    same = [
        request_of(parameters={"b": 2.5, "a": 1}),
        request_of(request_id="other", deadline_us=5, priority=2, traceparent="00-", attempt=1, id=9),
        request_of(inputs=[Tensor("x", "FP32", [1, 4], memoryview(data.tobytes()))]),
    ]
    assert [await fingerprint(request) for request in same] == [plain] * len(same)
    different = [
        request_of(parameters={"a": 1}),
        request_of(outputs=[]),
        request_of(inputs=[]),
        request_of(inputs=[Tensor.from_numpy("z", data)]),
        request_of(inputs=[Tensor.from_numpy("x", data.view(np.int32))]),
        request_of(inputs=[Tensor.from_numpy("x", data.reshape(2, 2))]),
        request_of(inputs=[Tensor.from_numpy("x", data + 1)]),
        request_of(inputs=[Tensor.from_numpy("x", data[:, :2]), Tensor.from_numpy("x", data[:, 2:])]),
    ]
    prints = {plain, *[await fingerprint(request) for request in different]}
    assert len(prints) == len(different) + 1


async def test_a_large_request_has_the_fingerprint_of_its_bytes() -> None:
    data = np.zeros((1, 1 << 18), np.float32)
    prints = []
    for value in (0, 0, 1):
        data[0, -1] = value
        prints.append(await fingerprint(request_of(inputs=[Tensor.from_numpy("x", data.copy())])))
    assert prints[0] == prints[1] != prints[2]


def test_a_kept_answer_to_another_request_is_refused() -> None:
    request = request_of(fingerprint="a")
    check_fingerprint(request, Response(1, 1, None, fingerprint="a"))
    with pytest.raises(KeyReused):
        check_fingerprint(request, Response(1, 1, None, fingerprint="b"))
