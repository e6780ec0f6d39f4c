"""Finding backends, and their share of the machine."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from qinfer.errors import BackendUnavailable, SetupError
from qinfer.repository import InstanceGroup, ModelConfig
from qinfer_workers.backends import find, installed, registry
from qinfer_workers.backends.threads import SHARED_BY_VARIABLE, available_cpus, threads_per_instance


@pytest.mark.parametrize("name", ["onnxruntime", "torch", "python"])
def test_the_backends_of_qinfer_are_found(name: str) -> None:
    backend = find(name)
    assert backend.name == name
    assert backend.filename.startswith("model.")


def test_an_unknown_backend_is_told_with_those_that_are_there() -> None:
    with pytest.raises(
        BackendUnavailable, match=r"no backend named 'tensorflow'; installed: .*onnxruntime, python"
    ):
        find("tensorflow")


def register(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    found = [EntryPoint(name, value, registry.GROUP) for name, value in points]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: found)


def test_a_backend_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ("a", "no_such_module:Backend"), ("b", "qinfer_workers.backends.base:NoSuchClass"))
    for name, value in (("a", "no_such_module"), ("b", "NoSuchClass")):
        with pytest.raises(BackendUnavailable, match=f"backend '{name}': .*{value}.* cannot be imported"):
            find(name)


def test_one_name_for_two_backends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ("a", "x:A"), ("a", "x:A"))
    assert list(installed()) == ["a"]
    register(monkeypatch, ("a", "x:A"), ("a", "y:B"))
    with pytest.raises(SetupError, match="two backends named 'a', x:A and y:B"):
        installed()


def test_a_container_quota_limits_the_cpus(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0))
    file = tmp_path / "cpu.max"
    assert available_cpus(file) == allowed
    for text, expected in (
        ("max 100000", allowed),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("garbage", allowed),
    ):
        file.write_text(text + "\n")
        assert available_cpus(file) == expected


def test_processes_that_share_the_cpus_take_their_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("max 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    for sharing, expected in (("2", 4), ("3", 2), ("16", 1), ("0", 8), ("many", 8)):
        monkeypatch.setenv(SHARED_BY_VARIABLE, sharing)
        assert available_cpus(quota) == expected


def test_instances_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qinfer_workers.backends.threads.available_cpus", lambda: 8)

    def threads(*groups: tuple[str, int]) -> int:
        made = tuple(InstanceGroup(kind=kind, count=count) for kind, count in groups)
        return threads_per_instance(ModelConfig(name="m", backend="b", instance_groups=made))

    assert threads(("CPU", 1)) == 8
    assert threads(("CPU", 2), ("AUTO", 1), ("GPU", 4)) == 2
    assert threads(("CPU", 32)) == 1
    assert threads(("GPU", 1)) == 8
