"""The demonstration from end to end: a real server, unmodified clients, every answer compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from examples.zoo import RECIPES

ROOT = Path(__file__).resolve().parents[2]


def test_the_demonstration(models: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "examples/demo.py", "--models", str(models), "--cache", str(models.parent),
            "--requests", "48",
        ],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = done.stdout[done.stdout.index("What was served") :]
    served = re.findall(r"^ *(\w+) +(HTTP|gRPC) ", report, re.MULTILINE)
    assert sorted(served) == sorted(
        (recipe.name, via) for recipe in RECIPES if not recipe.missing() for via in ("HTTP", "gRPC")
    )
    assert " 0 wrong, server stopped cleanly" in report
