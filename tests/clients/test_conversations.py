"""The same conversations in each language, with workers that serve real models."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from qinfer.bus import QueueSpec
from tests.clients.driven import Client, Failed, Got, floats
from tests.helpers.served_models import (
    GATED,
    IDENTITY,
    PICKY,
    RAISES,
    SAYS_ALL,
    VERSIONS,
    copy,
)
from tests.helpers.system import Fleet, fleet
from tests.helpers.waiting import PATIENCE

SPACED = "sentence encoder.v2 (ü)"
VALUES: dict[str, list[str]] = {
    "BOOL": ["1", "0"],
    **{f"UINT{bits}": ["0", str(2**bits - 1)] for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": [str(-(2 ** (bits - 1))), str(2 ** (bits - 1) - 1)] for bits in (8, 16, 32, 64)},
    "FP16": [str(bits) for bits in struct.unpack("<2H", struct.pack("<2e", 1.5, -65504.0))],
    "BF16": [str(0x3F80), str(0xC000)],
    "FP32": ["0.1", "-3e+38"],
    "FP64": ["0.1", "-1e+308"],
    "BYTES": ["", "zwölf".encode().hex()],
}
"""Two elements of each datatype as text; FP16 and BF16 as their bits."""


@pytest_asyncio.fixture
async def running(
    nats_url: str, namespace: str, served_repository: Path, tmp_path: Path
) -> AsyncIterator[Fleet]:
    names = [*IDENTITY.values(), PICKY, VERSIONS, SAYS_ALL, GATED]
    repository = copy(served_repository, tmp_path / "repository", *names)
    copy(served_repository, tmp_path / "other", VERSIONS)
    (tmp_path / "other" / VERSIONS).rename(repository / SPACED)
    async with fleet(nats_url, namespace, repository) as made:
        yield made


async def infer(client: Client, model: str, *values: float, **options: Any) -> list[float]:
    got = await client.infer(model, floats(*values), **options)
    assert got is not None
    datatype, shape, found = got.outputs["y"]
    assert (datatype, shape) == ("FP32", [1, len(values)])
    return [float(value) for value in found]


async def test_every_datatype(client: Client, running: Fleet) -> None:
    await running.add_worker(*IDENTITY.values())
    assert set(VALUES) == set(IDENTITY)
    for datatype, values in VALUES.items():
        got = await client.infer(IDENTITY[datatype], ["x", datatype, [1, 2], values])
        assert got is not None
        kind, shape, found = got.outputs["y"]
        assert (kind, shape) == (datatype, [1, 2])
        if datatype in ("FP32", "FP64"):
            dtype = np.dtype(f"float{datatype[2:]}")
            np.testing.assert_array_equal(np.array(found, dtype), np.array(values, dtype))
        elif datatype == "BOOL":
            assert [value in ("1", "true") for value in found] == [True, False]
        else:
            assert found == values


async def test_versions_and_names(client: Client, running: Fleet) -> None:
    await running.add_worker(VERSIONS, SPACED)
    for version, factor in (("1", 1.0), ("2", 2.0), ("", 2.0)):
        assert await infer(client, VERSIONS, 3.0, version=version) == [3.0 * factor]
    assert await infer(client, SPACED, 1.5) == [3.0]


async def test_parameters_both_ways(client: Client, running: Fleet) -> None:
    await running.add_worker(SAYS_ALL)
    parameters = {"text": "ü", "number": 7, "share": 0.25, "flag": True}
    got = await client.infer(SAYS_ALL, ["x", "INT32", [1, 1], ["5"]], parameters=parameters)
    assert got is not None
    assert got.parameters == {"said": True, "count": 3}
    (text,) = got.outputs["y"][2]
    told = json.loads(bytes.fromhex(text))
    assert told["parameters"] == parameters
    assert isinstance(told["parameters"]["number"], int)


async def test_errors_of_workers(client: Client, running: Fleet) -> None:
    await running.add_worker(PICKY)
    for values, reason, told in (
        (floats(1.0, 2.0), "invalid_request", "'x'"),
        (["x", "INT8", [1, 1], ["1"]], "invalid_request", "INT8"),
        (["z", "FP32", [1, 1], ["1"]], "invalid_request", "'x' is missing"),
        (floats(RAISES), "model_failed", "thirteen"),
    ):
        with pytest.raises(Failed, match=told) as failed:
            await client.infer(PICKY, values)
        assert (failed.value.reason, failed.value.retry_after) == (reason, None)
    with pytest.raises(Failed, match="no inputs") as failed:
        await client.infer(PICKY)
    assert failed.value.reason == "invalid_request"
    assert await infer(client, PICKY, 2.0) == [4.0]


async def test_a_model_that_nobody_knows(client: Client, running: Fleet) -> None:
    await running.add_worker(PICKY)
    with pytest.raises(Failed) as failed:
        await client.infer("nobody knows", floats(1.0))
    assert failed.value.reason == "no_worker"


async def test_a_deadline_passes_in_the_worker(client: Client, running: Fleet, tmp_path: Path) -> None:
    await running.add_worker(GATED)
    gate = tmp_path / "gate"
    with pytest.raises(Failed) as failed:
        await client.infer(GATED, ["x", "BYTES", [1, 1], [str(gate).encode().hex()]], timeout=0.3)
    assert failed.value.reason == "deadline_exceeded"
    gate.touch()
    got = await client.infer(GATED, ["x", "BYTES", [1, 1], [""]])
    assert isinstance(got, Got)


async def test_a_deadline_passes_without_a_worker(client: Client, running: Fleet) -> None:
    """Nobody is there to say so: the client looks at its own clock."""
    await running.bus.declare("idle", QueueSpec(storage="memory", max_bytes=1 << 20))
    with pytest.raises(Failed) as failed:
        await client.infer("idle", floats(1.0), timeout=0.2)
    assert failed.value.reason == "deadline_exceeded"


async def test_a_full_queue(client: Client, running: Fleet) -> None:
    await running.bus.declare("full", QueueSpec(storage="memory", max_messages=1, max_bytes=1 << 20))
    waiting = client.begin("full", floats(1.0))
    async with asyncio.timeout(PATIENCE):
        while not await running.queued("full"):
            """Each question takes its time."""
    with pytest.raises(Failed) as failed:
        await client.infer("full", floats(2.0))
    assert failed.value.reason == "queue_full"
    await waiting.abort()
    with pytest.raises(Failed) as failed:
        await waiting.answer()
    assert failed.value.reason == "cancelled"


async def test_many_at_once(client: Client, running: Fleet) -> None:
    await running.add_worker(PICKY)
    asked = [client.begin(PICKY, floats(100.0 + number)) for number in range(200)]
    for number, each in enumerate(asked):
        got = await each.answer()
        assert got is not None
        assert got.outputs["y"][2] == [repr(200.0 + 2 * number).removesuffix(".0")]
