"""The log as models write to it."""

from __future__ import annotations

import logging
from typing import ClassVar

from qinfer_workers.backends.python.scope import current_model

_CALLER = 3
"""Stack frames between the model's line and the logging call."""


class Logger:
    """Writes to the logger `qinfer.model.<name>`, at the line of the model that logs."""

    VERBOSE: ClassVar[int] = logging.DEBUG
    INFO: ClassVar[int] = logging.INFO
    WARNING: ClassVar[int] = logging.WARNING
    ERROR: ClassVar[int] = logging.ERROR

    @staticmethod
    def log(message: object, level: int = logging.INFO) -> None:
        _write(level, message)

    @staticmethod
    def log_info(message: object) -> None:
        _write(logging.INFO, message)

    @staticmethod
    def log_warn(message: object) -> None:
        _write(logging.WARNING, message)

    @staticmethod
    def log_error(message: object) -> None:
        _write(logging.ERROR, message)

    @staticmethod
    def log_verbose(message: object) -> None:
        _write(logging.DEBUG, message)


def _write(level: int, message: object) -> None:
    model = current_model()
    name = f"qinfer.model.{model}" if model else "qinfer.model"
    logging.getLogger(name).log(level, "%s", message, stacklevel=_CALLER)
