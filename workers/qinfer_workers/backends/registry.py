"""Which backends are installed.

A backend is a class registered under the entry point group `qinfer.backends`; one that comes in a
distribution of its own is found like those that come with qinfer.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from qinfer.errors import BackendUnavailable, SetupError
from qinfer_workers.backends.base import Backend

GROUP = "qinfer.backends"


def installed() -> dict[str, EntryPoint]:
    """The registered backends by name, without importing any.

    Raises:
        SetupError: two distributions register different classes under one name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        # An editable installation can list the same entry point twice; only a different target is a conflict.
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise SetupError(
                f"entry point group {GROUP}: two backends named {point.name!r}, {other.value} and"
                f" {point.value};"
                " expected one: uninstall one of their distributions"
            )
    return found


def find(name: str) -> Backend:
    """Make the backend a model's configuration names.

    Whether the backend's own library is there is for `Backend.check` to say.

    Args:
        name: value of `backend` in the configuration.

    Raises:
        BackendUnavailable: no such backend is installed, or its module cannot be imported.
        SetupError: see `installed`.
    """
    points = installed()
    point = points.get(name)
    if point is None:
        names = ", ".join(sorted(points)) or "none"
        raise BackendUnavailable(f"no backend named {name!r}; installed: {names} (entry point group {GROUP})")
    try:
        factory = point.load()
    except (ImportError, AttributeError) as error:
        raise BackendUnavailable(f"backend {name!r}: {point.value} cannot be imported: {error}") from error
    backend: Backend = factory()
    return backend
