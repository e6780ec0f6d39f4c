from __future__ import annotations

from collections.abc import Callable

import pytest

from qinfer.bus import Bus, connect
from tests.bus.contract import BusContract


class TestKafkaBus(BusContract):
    @pytest.fixture
    def make_bus(self, namespace: str, kafka: str) -> Callable[..., Bus]:
        url = f"kafka://{kafka}?partitions=2&reply_partitions=2&replicas=1"
        return lambda suffix="": connect(url, namespace=namespace[:20] + suffix)
