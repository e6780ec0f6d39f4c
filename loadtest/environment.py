"""Where a measurement was made: what a reader must know before comparing it with another one."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine; memory in gigabytes, load averages over 1 and 5 minutes before the first measurement."""

    cpu: str
    cores: int
    memory_gb: float
    system: str
    kernel: str
    python: str
    load_average: tuple[float, float]


def machine() -> Machine:
    """Describe this machine."""
    one, five, _ = os.getloadavg()
    return Machine(
        cpu=_line("/proc/cpuinfo", "model name") or platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        system=_line("/etc/os-release", "PRETTY_NAME").strip('"') or platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        load_average=(round(one, 2), round(five, 2)),
    )


def commit(checkout: Path = ROOT) -> str:
    """The commit of a checkout, with "+changes" where the working tree differs; "unknown" without git."""
    revision = _git(checkout, "rev-parse", "--short=12", "HEAD")
    if not revision:
        return "unknown"
    # The results folder is what this program itself writes.
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!loadtest/results")
    return f"{revision}+changes" if changed else revision


def _git(checkout: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _line(path: str, key: str) -> str:
    """The value of the first `key: value` or `key=value` line of a file; "" if there is none."""
    file = Path(path)
    if not file.exists():
        return ""
    for line in file.read_text().splitlines():
        for separator in (":", "="):
            name, found, value = line.partition(separator)
            if found and name.strip() == key:
                return value.strip()
    return ""
