"""The decoupled models of `docs/backends.md`, taken from there and run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import blocks, read, section
from tests.streams.models import TENSORS, write
from tests.streams.stage import Stage, nothing_held, request_of, values

SOURCES = blocks(section(read("docs/backends.md"), "Decoupled models"), "python")


@pytest.mark.parametrize("source", SOURCES, ids=["sends", "yields"])
async def test_a_documented_model(namespace: str, tmp_path: Path, source: str) -> None:
    write(tmp_path, "documented", TENSORS, source)
    stage = Stage(namespace, tmp_path)
    await stage.start()
    async with stage.stack:
        worker = await stage.serve("documented")
        stage.send(request_of(1, 5), model="documented")
        assert values(await stage.ended(1)) == list(range(5))
        await nothing_held(worker.services["documented"])


@pytest.mark.parametrize("source", SOURCES, ids=["sends", "yields"])
async def test_reshape_is_between_a_model_and_its_callers(
    namespace: str, tmp_path: Path, source: str
) -> None:
    plain = 'name: "i" data_type: TYPE_INT32 dims: [ 1 ]'
    assert plain in TENSORS
    reshaped = TENSORS.replace(
        plain, 'name: "i" data_type: TYPE_INT32 dims: [ 1, 1 ] reshape { shape: [ 1 ] }'
    )
    write(tmp_path, "reshaped", reshaped, source)
    stage = Stage(namespace, tmp_path)
    await stage.start()
    async with stage.stack:
        await stage.serve("reshaped")
        stage.send(request_of(1, 2), model="reshaped")
        first, second, _ = await stage.ended(1)
        assert [response.outputs[0].shape for response in (first, second)] == [[1, 1], [1, 1]]


def test_both_ways_are_shown() -> None:
    assert ["get_response_sender" in source for source in SOURCES] == [True, False]
