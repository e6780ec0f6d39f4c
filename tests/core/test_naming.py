from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qinfer.errors import InvalidRequest, SetupError
from qinfer.naming import MAX_NAME, Names, check_reply, escape, unescape

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_NAME)


def escaped(name: str) -> str:
    try:
        return escape(name)
    except InvalidRequest:
        assume(False)
        raise


@given(names)
def test_an_escaped_name_is_safe_everywhere_and_can_be_read_back(name: str) -> None:
    token = escaped(name)
    assert re.fullmatch(r"[A-Za-z0-9_\-=]{1,180}", token)
    assert unescape(token) == name


@given(names, names)
def test_different_names_stay_different(one: str, other: str) -> None:
    assume(one != other)
    assert escaped(one) != escaped(other)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("mlp", "mlp"),
        ("a.b", "a=2Eb"),
        ("=", "=3D"),
        ("é", "=C3=A9"),
        ("../x", "=2E=2E=2Fx"),
        ("*>", "=2A=3E"),
    ],
)
def test_escapes(name: str, token: str) -> None:
    assert escape(name) == token


@pytest.mark.parametrize("name", ["", "x" * (MAX_NAME + 1), "\ud800", "é" * 60])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidRequest):
        escape(name)


@given(names, st.sampled_from(["", "1", "12"]))
def test_subjects_have_as_many_tokens_as_we_gave_them(name: str, version: str) -> None:
    escaped(name)
    ours = Names("ns")
    subject = ours.requests(name, version)
    assert subject.split(".") == ["qinfer", "ns", "infer", escape(name), version or "latest"]
    assert ours.stream_subjects(name) == subject.rpartition(".")[0] + ".*"
    assert len(ours.stream(name).encode()) < 255
    assert not set(ours.stream(name)) & set(" .*>/\\")


@pytest.mark.parametrize("version", [".", "*", ">", "1.2", "-1", " 1", "1\n", "latest", "²", "1" * 20])
def test_versions_that_cannot_be(version: str) -> None:
    for make in (lambda: Names().requests("m", version), lambda: Names().consumer(version)):
        with pytest.raises(InvalidRequest, match="expected a decimal number"):
            make()


def test_namespaces_share_no_name() -> None:
    one, other = Names("a"), Names("a_b")
    for make in (
        lambda n: n.stream("m"),
        lambda n: n.requests("m"),
        lambda n: n.models_bucket,
        lambda n: n.workers_bucket,
        lambda n: n.control("x"),
    ):
        assert make(one) != make(other)
    assert one.stream("b_m") != other.stream("m")  # the border between namespace and model stays visible


@pytest.mark.parametrize("namespace", ["", "a.b", "a b", "ü", "x" * 41, "*"])
def test_namespaces_that_cannot_be(namespace: str) -> None:
    with pytest.raises(SetupError, match="namespace"):
        Names(namespace)


def test_only_the_bucket_of_workers_forgets() -> None:
    ours = Names()
    assert ours.lifetime(ours.workers_bucket)
    assert ours.lifetime(ours.models_bucket) is None


@pytest.mark.parametrize("subject", ["_INBOX.abc", "_INBOX.abc.r", "_INBOX.abc.p.17"])
def test_inboxes_may_be_replied_to(subject: str) -> None:
    assert check_reply(subject) == subject


NO_INBOXES = [
    "", "x", "_INBOX", "_INBOX.", "_INBOX.*", "_INBOX.a>", "_INBOX.a b", "_INBOX.a\r\n", "_INBOX.a\n",
    "x_INBOX.a", "$JS.API.x", "qinfer.default.infer.m.latest",
]  # fmt: skip


@pytest.mark.parametrize("subject", NO_INBOXES)
def test_nothing_else_may_be_replied_to(subject: str) -> None:
    with pytest.raises(InvalidRequest, match="inbox"):
        check_reply(subject)
