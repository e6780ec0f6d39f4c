"""The client without `await`."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Iterator
from typing import Any, get_type_hints
from uuid import uuid4

import pytest

from qinfer.client import AsyncClient, Client, ConnectOptions, connect
from qinfer.errors import Cancelled, SetupError, Unavailable
from tests.helpers.waiting import eventually


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(f"memory://{uuid4().hex}") as client:
        yield client


def methods(kind: type) -> dict[str, list[str]]:
    """Public methods with their parameters."""
    return {
        name: list(inspect.signature(method).parameters)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_it_has_the_same_methods() -> None:
    assert methods(Client) == methods(AsyncClient)


def test_options_that_are_passed_on_are_those_of_connect() -> None:
    taken = [name for name in inspect.signature(connect).parameters if name != "url"]
    assert list(ConnectOptions.__annotations__) == taken
    hints = get_type_hints(connect)
    assert {name: hints[name] for name in taken} == get_type_hints(ConnectOptions)


def test_it_is_started_and_closed_once(client: Client) -> None:
    threads = [thread.name for thread in threading.enumerate()]
    assert threads.count("qinfer client") == 1
    with pytest.raises(SetupError, match="started before"):
        client.start()
    client.close()
    client.close()
    assert "qinfer client" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(Cancelled):
        client.models()
    with pytest.raises(SetupError, match="started before"):
        client.start()


def test_it_has_to_be_started() -> None:
    client = Client("http://127.0.0.1:1")
    with pytest.raises(SetupError, match="not connected"):
        client.models()
    client.close()


def test_a_start_that_fails_leaves_nothing_behind() -> None:
    with pytest.raises(Unavailable), Client("http://127.0.0.1:1"):
        raise AssertionError("it has started")
    assert "qinfer client" not in [thread.name for thread in threading.enumerate()]


async def test_it_may_be_used_where_a_loop_runs(client: Client) -> None:
    assert client.models() == []


def test_its_own_loop_would_wait_for_itself(client: Client) -> None:
    async def ask() -> Any:
        return client.models()

    with pytest.raises(SetupError, match="its own event loop"):
        client._wait(ask())


def test_a_forked_process_has_no_thread(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_process", os.getpid() + 1)
    with pytest.raises(SetupError, match="forked"):
        client.models()
    monkeypatch.undo()


async def test_whoever_is_interrupted_cancels_the_request(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the thread that waits."""
    began, ended = threading.Event(), threading.Event()

    async def models() -> list[Any]:
        import asyncio

        began.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return []

    class Interrupted(Exception):
        pass

    def result(self: Any, timeout: float | None = None) -> Any:
        began.wait()
        raise Interrupted

    monkeypatch.setattr(client._client, "models", models)
    monkeypatch.setattr("concurrent.futures.Future.result", result)
    with pytest.raises(Interrupted):
        client.models()
    monkeypatch.undo()
    await eventually(ended.is_set, "it is cancelled")
