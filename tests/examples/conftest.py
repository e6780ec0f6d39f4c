"""The example models, built once into a folder that later runs find again."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples.zoo import RECIPES
from examples.zoo.repository import build

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "examples"


@pytest.fixture(scope="session")
def models() -> Path:
    """A repository with every example model whose backend is installed; downloads on the first run ever."""
    out = CACHE / "repository"
    for _ in build(RECIPES, out, cache=CACHE, report=lambda _: None):
        pass
    return out
