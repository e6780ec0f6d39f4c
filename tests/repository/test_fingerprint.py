"""What makes a model one that has to be loaded again, and what does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qinfer.repository import Repository, fingerprints

CONFIG = 'backend: "python" max_batch_size: 4 version_policy { all {} }'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "m"
    for version in ("1", "2"):
        (folder / version / "data").mkdir(parents=True)
        (folder / version / "model.py").write_text("x = 1")
        (folder / version / "data" / "weights").write_text("0")
    (folder / "helper.py").write_text("y = 1")
    (folder / "config.pbtxt").write_text(CONFIG)
    return folder


def prints(model: Path) -> dict[str, str]:
    return fingerprints(Repository(model.parent).load(model.name))


def rewrite(path: Path, text: str) -> None:
    """Write another file in the place of one, with the same time and size if they are the same."""
    status = path.stat()
    path.with_name("new").write_text(text)
    os.utime(path.with_name("new"), ns=(status.st_atime_ns, status.st_mtime_ns))
    path.with_name("new").rename(path)


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: (m / "1" / "model.py").write_text("x = 22"),
        lambda m: rewrite(m / "1" / "model.py", "x = 2"),
        lambda m: (m / "1" / "data" / "weights").unlink(),
        lambda m: (m / "1" / "more").write_text(""),
        lambda m: (m / "1" / "data" / "weights").rename(m / "1" / "data" / "other"),
    ],
)
def test_a_file_of_a_version_is_about_that_version(model: Path, change: Change) -> None:
    before = prints(model)
    change(model)
    after = prints(model)
    assert after["1"] != before["1"]
    assert after["2"] == before["2"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: (m / "helper.py").write_text("y = 22"),
        lambda m: (m / "tokenizer").mkdir() or (m / "tokenizer" / "words").write_text("a"),
        lambda m: (m / "config.pbtxt").write_text(CONFIG.replace("4", "8")),
        lambda m: (m / "config.pbtxt").write_text(CONFIG + ' parameters { key: "a" }'),
    ],
)
def test_what_all_versions_share_is_about_them_all(model: Path, change: Change) -> None:
    before = prints(model)
    change(model)
    after = prints(model)
    assert all(after[version] != before[version] for version in ("1", "2"))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: (m / "config.pbtxt").write_text(f"# the same\n{CONFIG}"),
        lambda m: (m / "config.pbtxt").write_text(CONFIG.replace("all {}", "latest { num_versions: 2 }")),
        lambda m: (m / "1" / "__pycache__").mkdir() or (m / "1" / "__pycache__" / "x.pyc").write_text(""),
        lambda m: (m / "3").mkdir() or (m / "3" / "model.py").write_text("x = 3"),
        lambda m: (m / "1" / "dangling").symlink_to("nowhere"),
    ],
)
def test_what_changes_no_version(model: Path, change: Change) -> None:
    before = prints(model)
    change(model)
    after = prints(model)
    assert {version: after[version] for version in before} == before


def test_a_link_that_leads_elsewhere_is_seen(model: Path) -> None:
    for name in ("a", "b"):
        (model / name).mkdir()
    (model / "1" / "current").symlink_to(model / "a")
    before = prints(model)
    (model / "1" / "current").unlink()
    (model / "1" / "current").symlink_to(model / "b")
    assert prints(model)["1"] != before["1"]


def test_only_versions_to_be_served_have_one(model: Path) -> None:
    (model / "config.pbtxt").write_text('backend: "python"')
    assert set(prints(model)) == {"2"}
