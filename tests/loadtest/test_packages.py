"""Packages of the peers."""

from __future__ import annotations

import base64
import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest
from loadtest import packages

from qinfer.errors import SetupError


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, the only source pip has."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    files = {
        "loadtest_sample.py": b"VALUE = 7\n",
        "loadtest_sample-1.0.dist-info/METADATA": (
            b"Metadata-Version: 2.1\nName: loadtest-sample\nVersion: 1.0\n"
        ),
        "loadtest_sample-1.0.dist-info/WHEEL": (
            b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = "loadtest_sample-1.0.dist-info/RECORD"
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    with zipfile.ZipFile(folder / "loadtest_sample-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pin(path: Path, digest: str) -> Path:
    path.write_text(f"# comment\nloadtest-sample==1.0 \\\n    --hash=sha256:{digest}\n")
    return path


def test_installs_once_and_again_when_the_file_changes(wheels: Path, tmp_path: Path) -> None:
    wheel = next(wheels.iterdir())
    requirements = pin(tmp_path / "requirements.txt", hashlib.sha256(wheel.read_bytes()).hexdigest())
    target = tmp_path / "target"
    packages.install(requirements, target)
    assert (target / "loadtest_sample.py").read_text() == "VALUE = 7\n"
    assert packages.pinned(requirements, "loadtest-sample") == "1.0"
    kept = wheel.rename(tmp_path / wheel.name)
    packages.install(requirements, target)  # nothing is left that pip could install from
    kept.rename(wheel)
    pin(requirements, "0" * 64)
    with pytest.raises(SetupError, match="DO NOT MATCH"):
        packages.install(requirements, target)
    assert not (target / "loadtest_sample.py").exists()


def test_a_package_that_is_not_pinned_is_named(tmp_path: Path) -> None:
    requirements = pin(tmp_path / "requirements.txt", "0" * 64)
    with pytest.raises(SetupError, match=r"requirements\.txt: other: not pinned"):
        packages.pinned(requirements, "other")


def test_a_missing_library_is_named_with_how_to_get_it(tmp_path: Path) -> None:
    packages.check_libraries(Path("/bin/ls"), [], {})
    broken = tmp_path / "broken"
    shutil.copy("/bin/ls", broken)
    broken.write_bytes(broken.read_bytes().replace(b"libc.so.6\0", b"libq.so.6\0"))
    with pytest.raises(SetupError, match=r"broken needs libq\.so\.6, not found here; apt install q$"):
        packages.check_libraries(broken, [], {"libq": "apt install q", "libother": "no"})


@pytest.mark.parametrize("name", ["peers/triton-requirements.txt", "perf-analyzer-requirements.txt"])
def test_every_requirement_is_pinned_with_a_hash(name: str) -> None:
    path = Path(packages.__file__).parent / name
    joined = path.read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    assert lines
    assert all("==" in line.split()[0] and "--hash=sha256:" in line for line in lines)
