"""Fuzzing what is read from the bus, for some seconds; `make fuzz` does it for longer."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 8
RUNS_AT_LEAST = 2_000
"""Inputs that must have been tried; on an idle machine it is a hundred times as many."""

pytestmark = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no wheel for this platform")

SCRIPT = "from tests.fuzz import frames\nfrom qinfer import datatypes, message\n{}\nframes.main({!r})"


def fuzz(place: Path, *, broken: str = "", seconds: int = SECONDS) -> subprocess.CompletedProcess[str]:
    """Run the fuzz target in a process of its own, on code that `broken` may have changed for the worse."""
    arguments = [f"-max_total_time={seconds}", "-seed=1", str(place)]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(broken, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=90,
        check=False,
    )


def test_no_bytes_do_harm(tmp_path: Path) -> None:
    done = fuzz(tmp_path / "corpus")
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs, done.stderr[-4000:]
    assert int(runs[1]) > RUNS_AT_LEAST


@pytest.mark.parametrize(
    ("broken", "finding"),
    [
        ("message._UNREADABLE = message._UNREADABLE[1:]", "DecodeError"),
        ("message._UNREADABLE = message._UNREADABLE[::2]", "UnicodeDecodeError"),
        ("message._UNREADABLE = message._UNREADABLE[:2]", "RecursionError"),
        (
            "datatypes.decode_bytes = lambda data, count: datatypes.np.empty(count, dtype=object)",
            "MemoryError",
        ),
        ("datatypes.prod = lambda dims: 0", "AssertionError"),
    ],
)
def test_what_does_harm_is_found(tmp_path: Path, broken: str, finding: str) -> None:
    done = fuzz(tmp_path / "corpus", broken=broken)
    assert done.returncode != 0
    assert finding in done.stdout + done.stderr
    (kept,) = tmp_path.glob("crash-*")
    assert fuzz(kept, broken=broken).returncode != 0
    assert fuzz(kept).returncode == 0
