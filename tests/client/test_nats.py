"""The client over the broker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client.contract import ClientContract
from tests.helpers.system import Fleet

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestNatsClient(ClientContract):
    def arguments(self, running: Fleet) -> tuple[str, dict[str, Any]]:
        return running.nats, {"namespace": running.namespace}
