"""The client over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client.contract import ClientContract
from tests.helpers.system import Fleet

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestHttpClient(ClientContract):
    def arguments(self, running: Fleet) -> tuple[str, dict[str, Any]]:
        return f"http://127.0.0.1:{running.port}", {}
