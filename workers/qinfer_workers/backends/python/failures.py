"""How messages tell of a model's exceptions."""

from __future__ import annotations

import traceback
from pathlib import Path


def describe(error: BaseException, path: Path) -> str:
    """An exception's type and message, and the line of the model it came from.

    Args:
        error: the exception, with its traceback.
        path: the model's file; files beside it are the model's too.
    """
    line = next(
        (
            f" ({Path(frame.filename).name}:{frame.lineno})"
            for frame in reversed(traceback.extract_tb(error.__traceback__))
            if Path(frame.filename).is_relative_to(path.parent)
        ),
        "",
    )
    return f"{type(error).__name__}: {error}{line}"
