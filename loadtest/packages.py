"""Packages of the peers, each set in a folder of its own so that none meets qinfer's."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from qinfer.errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path

_INSTALL_SECONDS = 900


def install(requirements: Path, target: Path) -> None:
    """Install a pinned, hashed requirements file into `target`, unless the same file was installed there.

    Nothing is resolved: the file names every package needed. pip's own settings apply, `PIP_FIND_LINKS` and
    `PIP_INDEX_URL` among them.

    Args:
        requirements: file in pip's format, with versions and hashes.
        target: folder for the packages; what an older file left there is removed.

    Raises:
        SetupError: pip is missing or could not install a package.
    """
    mark = target / "installed.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == wanted:
        return
    if importlib.util.find_spec("pip") is None:
        raise SetupError(f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip`")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--target",
        str(target),
        "-r",
        str(requirements),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SetupError(f"pip did not install {requirements.name} within {_INSTALL_SECONDS} s") from None
    if done.returncode:
        raise SetupError(f"pip could not install {requirements.name}:\n{done.stderr.strip()}")
    mark.write_text(wanted)


def pinned(requirements: Path, package: str) -> str:
    """The version a requirements file pins for `package`.

    Raises:
        SetupError: the file does not pin it.
    """
    for line in requirements.read_text().splitlines():
        name, separator, rest = line.partition("==")
        if separator and name == package:
            return rest.split()[0]
    raise SetupError(f"{requirements}: {package}: not pinned; expected a line `{package}==VERSION`")


def check_libraries(binary: Path, folders: list[Path], hints: dict[str, str]) -> None:
    """Make sure the dynamic linker finds every shared library of `binary`.

    Args:
        binary: an ELF executable.
        folders: where to look beside the system's own folders.
        hints: how to get a library that may be missing, by the start of its file name.

    Raises:
        SetupError: libraries are missing; the message says how to get those that have a hint.
    """
    search = ":".join(str(folder) for folder in folders)
    done = subprocess.run(
        ["ldd", str(binary)],
        env={**os.environ, "LD_LIBRARY_PATH": search},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    lines = (done.stdout + done.stderr).splitlines()
    missing = [line.split()[0] for line in lines if "not found" in line]
    if not missing:
        return
    advice = [hint for start, hint in hints.items() if any(name.startswith(start) for name in missing)]
    raise SetupError("; ".join([f"{binary.name} needs {', '.join(missing)}, not found here", *advice]))
