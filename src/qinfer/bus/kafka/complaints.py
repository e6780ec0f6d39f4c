"""What goes wrong again and again is said once."""

from __future__ import annotations

import asyncio
import logging

_COMPLAINT_SECONDS = 10.0  # between two log lines about the same


class Complaints:
    """Logs problems of one thing, each at most every some seconds.

    Args:
        logger: where to.
        about: what has them.
    """

    def __init__(self, logger: logging.Logger, about: str) -> None:
        self._logger = logger
        self._about = about
        self._last = ""
        self._told = float("-inf")

    def tell(self, problem: BaseException) -> None:
        """There is a problem (still)."""
        now = asyncio.get_running_loop().time()
        if repr(problem) != self._last or now - self._told > _COMPLAINT_SECONDS:
            self._last, self._told = repr(problem), now
            self._logger.warning("%s: %s", self._about, str(problem) or repr(problem))
