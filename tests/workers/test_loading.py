"""Loading with a stub backend; the real ones have tests of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from qinfer.errors import BackendUnavailable, ConfigError
from qinfer.repository import InstanceGroup, ModelConfig, ModelEntry
from qinfer_workers import loading
from qinfer_workers.backends.base import Instance, InstanceSpec
from qinfer_workers.loading import close, load_version, placements, record_of
from qinfer_workers.served import ServedVersion
from tests.helpers.waiting import eventually
from tests.workers.support import StubInstance, config_of, double


class StubBackend:
    """Loads stub instances; `fail` is called with the number of each."""

    name: ClassVar[str] = "stub"
    filename: ClassVar[str] = "model.stub"

    def __init__(self) -> None:
        self.specs: list[InstanceSpec] = []
        self.instances: list[StubInstance] = []
        self.fail: Callable[[int], None] = lambda number: None
        self.completed: Callable[[ModelConfig], ModelConfig] = lambda config: config

    def check(self) -> None:
        """Nothing is missing."""

    def complete(self, config: ModelConfig, directory: Path, version: int) -> ModelConfig:
        return self.completed(config)

    def load(self, spec: InstanceSpec) -> Instance:
        self.specs.append(spec)
        self.fail(len(self.specs))
        self.instances.append(StubInstance(double))
        return self.instances[-1]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> StubBackend:
    stub = StubBackend()
    monkeypatch.setattr(loading, "find", lambda name: stub)
    monkeypatch.setattr(loading, "gpu_count", lambda: 2)
    return stub


async def load(tmp_path: Path, config: ModelConfig) -> ServedVersion:
    directory = tmp_path / "stub"
    entry = ModelEntry(name="stub", directory=directory, config=config, versions=(3,), available=(1, 3))
    return await load_version(
        entry, 3, on_done=lambda version, completion: None, tracing=None, subject="subject"
    )


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("instance-")]


@pytest.mark.parametrize(
    ("group", "gpus", "expected"),
    [
        (InstanceGroup(kind="CPU", count=2), 4, [("CPU", 0)] * 2),
        (InstanceGroup(kind="AUTO"), 0, [("CPU", 0)]),
        (InstanceGroup(kind="AUTO"), 2, [("GPU", 0), ("GPU", 1)]),
        (
            InstanceGroup(kind="GPU", count=2, gpus=(1, 3)),
            4,
            [("GPU", 1), ("GPU", 1), ("GPU", 3), ("GPU", 3)],
        ),
        (InstanceGroup(kind="GPU"), 0, [("GPU", 0)]),  # it will say itself that there is none
        (InstanceGroup(kind="MODEL", count=3), 2, [("CPU", 0)] * 3),
    ],
)
def test_placements(group: InstanceGroup, gpus: int, expected: list[tuple[str, int]]) -> None:
    assert placements(group, gpus) == expected


async def test_every_instance_of_every_group_is_loaded(tmp_path: Path, backend: StubBackend) -> None:
    groups = (InstanceGroup(kind="CPU", count=2), InstanceGroup(kind="GPU", gpus=(1,)))
    served = await load(tmp_path, replace(config_of(), instance_groups=groups))
    places = [(spec.name, spec.kind, spec.device) for spec in backend.specs]
    assert places == [("stub_0", "CPU", 0), ("stub_1", "CPU", 0), ("stub_2", "GPU", 1)]
    assert backend.specs[0].version_directory == tmp_path / "stub" / "3"
    assert (served.version, served.signature.max_batch_size) == ("3", 8)
    assert all(instance.idle for instance in served.instances)
    record = record_of(served)
    assert (record.name, record.version, record.max_batch_size) == ("stub", "3", 8)
    assert [(spec.name, spec.datatype, spec.dims) for spec in record.inputs] == [("x", "FP32", (2,))]
    await close(served.instances, 20)
    assert all(instance.closed for instance in backend.instances)
    await eventually(lambda: not threads())


async def test_an_instance_that_fails_closes_the_others(tmp_path: Path, backend: StubBackend) -> None:
    def third(number: int) -> None:
        if number == 3:
            raise RuntimeError("out of memory")

    backend.fail = third
    config = replace(config_of(), instance_groups=(InstanceGroup(kind="CPU", count=4),))
    with pytest.raises(ConfigError, match=r"stub/3: RuntimeError: out of memory"):
        await load(tmp_path, config)
    assert [instance.closed for instance in backend.instances] == [True, True]
    await eventually(lambda: not threads())


async def test_an_error_of_ours_is_passed_on(tmp_path: Path, backend: StubBackend) -> None:
    def unavailable(config: ModelConfig) -> ModelConfig:
        raise BackendUnavailable("pip install it")

    backend.completed = unavailable
    with pytest.raises(BackendUnavailable, match="pip install it"):
        await load(tmp_path, config_of())


@pytest.mark.parametrize("count", [0, 257])
async def test_instances_are_counted(tmp_path: Path, backend: StubBackend, count: int) -> None:
    config = replace(config_of(), instance_groups=(InstanceGroup(kind="CPU", count=count),))
    with pytest.raises(ConfigError, match=rf"instance_group: {count} instances; expected 1 to 256"):
        await load(tmp_path, config)


async def test_a_model_without_outputs_is_refused(tmp_path: Path, backend: StubBackend) -> None:
    with pytest.raises(ConfigError, match="output: none configured"):
        await load(tmp_path, replace(config_of(), outputs=()))


async def test_what_the_model_file_tells_is_served(tmp_path: Path, backend: StubBackend) -> None:
    backend.completed = lambda config: replace(config, max_batch_size=32)
    served = await load(tmp_path, config_of())
    assert (served.signature.max_batch_size, record_of(served).max_batch_size) == (32, 32)
    await close(served.instances, 20)
