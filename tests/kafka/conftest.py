"""Fixtures of the stream scorer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kafka.support import build_repository


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose model doubles (`tests.kafka.support`)."""
    return build_repository(tmp_path_factory.mktemp("doubling"))
