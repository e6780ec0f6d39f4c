"""The formats of records: each a module of the same shape, chosen by its name."""

from __future__ import annotations

import importlib
from typing import Any

from qinfer_workers.kafka.formats.base import Parsed, Reader, Setup, Writer

__all__ = ["Parsed", "Reader", "Setup", "Writer", "reader_of", "writer_of"]


def reader_of(setup: Setup) -> Reader:
    """What reads a format.

    Raises:
        ValueError: its options, or what is to be read, do not fit it.
        BackendUnavailable: its library is not installed.
        SetupError: its schema file cannot be read.
    """
    made: Reader = _module(setup).reader(setup)
    return made


def writer_of(setup: Setup) -> Writer:
    """What writes a format.

    Raises:
        ValueError: its options, or what is to be written, do not fit it.
        BackendUnavailable: its library is not installed.
        SetupError: its schema file cannot be read.
    """
    made: Writer = _module(setup).writer(setup)
    return made


def _module(setup: Setup) -> Any:
    # Each only when it is used: some import libraries that an extra brings.
    return importlib.import_module(f"{__name__}.{type(setup.format).__struct_config__.tag}")
