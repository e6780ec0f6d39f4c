"""A model directory is there whole or not at all, and is built only when it has to be."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from examples.zoo.recipe import Recipe
from examples.zoo.repository import NOTICE, Outcome, build
from examples.zoo.sources import MAGIKA

from qinfer.errors import SetupError


def _write(model: Path, archives: Mapping[str, Path]) -> None:
    (model / "1" / "model.bin").write_bytes(b"weights")


def _fail(model: Path, archives: Mapping[str, Path]) -> None:
    (model / "1" / "model.bin").write_bytes(b"half")
    raise SetupError("the weights are damaged")


RECIPE = Recipe(name="toy", backend="onnxruntime", summary="", write=_write, needs={})


def _build(recipe: Recipe, out: Path, *, force: bool = False) -> Outcome:
    (result,) = build([recipe], out, cache=out / "unused", force=force, report=lambda _: None)
    return result.outcome


def _visible(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def test_a_second_run_leaves_the_directory_and_edits_in_it_alone(tmp_path: Path) -> None:
    assert _build(RECIPE, tmp_path) is Outcome.BUILT
    edited = tmp_path / "toy" / "config.pbtxt"
    edited.write_text("max_batch_size: 8")
    assert _build(RECIPE, tmp_path) is Outcome.CURRENT
    assert edited.exists()
    assert (tmp_path / "toy" / "1" / "model.bin").read_bytes() == b"weights"


def test_force_builds_again(tmp_path: Path) -> None:
    _build(RECIPE, tmp_path)
    (tmp_path / "toy" / "1" / "model.bin").write_bytes(b"changed")
    assert _build(RECIPE, tmp_path, force=True) is Outcome.BUILT
    assert (tmp_path / "toy" / "1" / "model.bin").read_bytes() == b"weights"


def test_a_changed_recipe_builds_again(tmp_path: Path) -> None:
    _build(RECIPE, tmp_path)
    more = tmp_path / "more.py"
    more.write_text("# another way to build it")
    assert _build(replace(RECIPE, also=(more,)), tmp_path) is Outcome.BUILT


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="damaged"):
        _build(replace(RECIPE, write=_fail), tmp_path)
    assert _visible(tmp_path) == []
    assert not list(tmp_path.glob(".toy*"))


def test_a_failed_build_keeps_what_was_there(tmp_path: Path) -> None:
    _build(RECIPE, tmp_path)
    with pytest.raises(SetupError, match="damaged"):
        _build(replace(RECIPE, write=_fail), tmp_path, force=True)
    assert (tmp_path / "toy" / "1" / "model.bin").read_bytes() == b"weights"


def test_what_a_killed_build_left_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".toy-abc" / "new").mkdir(parents=True)
    _build(RECIPE, tmp_path)
    assert not (tmp_path / ".toy-abc").exists()


def test_a_directory_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    mine = tmp_path / "toy" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(SetupError, match="was not built by this script"):
        _build(RECIPE, tmp_path)
    assert mine.read_text() == "mine"
    assert _build(RECIPE, tmp_path, force=True) is Outcome.BUILT


def test_a_model_without_its_backend_is_skipped_with_what_to_install(tmp_path: Path) -> None:
    recipe = replace(RECIPE, needs={"no_such_backend": "pip install it"})
    (result,) = build([recipe], tmp_path, cache=tmp_path, report=lambda _: None)
    assert result.outcome is Outcome.SKIPPED
    assert result.detail == "needs no_such_backend (pip install it)"
    assert _visible(tmp_path) == []


def test_two_builds_at_once_are_refused(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SetupError, match="another build"):
            _build(RECIPE, tmp_path)


def test_every_model_from_elsewhere_says_so(models: Path) -> None:
    assert MAGIKA.homepage in (models / "magika" / NOTICE).read_text()
    assert not (models / "mlp" / NOTICE).exists()
