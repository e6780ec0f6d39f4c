from __future__ import annotations

from collections.abc import Callable

import pytest

from qinfer.bus import Bus, connect
from tests.bus.contract import BusContract


class TestMemoryBus(BusContract):
    @pytest.fixture
    def make_bus(self, namespace: str) -> Callable[..., Bus]:
        return lambda suffix="": connect("memory://tests", namespace=namespace[:20] + suffix)
