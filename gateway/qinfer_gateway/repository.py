"""What both fronts share of the repository extension: parameters of requests, and who may see what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qinfer.control import MAX_OVERRIDE, FleetRepository, ModelState
from qinfer.errors import InvalidRequest, PayloadTooLarge, Unsupported
from qinfer_gateway.auth import caller

CONFIG = "config"
UNLOAD_DEPENDENTS = "unload_dependents"
_FILE = "file:"


def override_of(parameters: Mapping[str, object]) -> str:
    """The configuration that comes with a load; empty for none.

    Raises:
        InvalidRequest: a parameter that is not known, or is no text.
        PayloadTooLarge: it is above `MAX_OVERRIDE` bytes.
        Unsupported: the parameters bring files.
    """
    for name in parameters:
        if name.startswith(_FILE):
            raise Unsupported(
                f"parameter {name[:80]!r}: models are not loaded from requests, which could bring code;"
                " put the files into the workers' repository"
            )
        if name != CONFIG:
            raise InvalidRequest(f"parameter {name[:80]!r}: not known; expected {CONFIG!r}")
    config = parameters.get(CONFIG, "")
    if not isinstance(config, str):
        raise InvalidRequest(f"parameter {CONFIG!r}: expected a model configuration as JSON, in a string")
    if len(config.encode(errors="replace")) > MAX_OVERRIDE:
        raise PayloadTooLarge(f"parameter {CONFIG!r}: larger than {MAX_OVERRIDE} bytes")
    return config


def check_unload(parameters: Mapping[str, object]) -> None:
    """Check the parameters of an unload. There are no dependents that could be unloaded too.

    Raises:
        InvalidRequest: a parameter that is not known, or has a wrong type.
    """
    for name, value in parameters.items():
        if name != UNLOAD_DEPENDENTS or not isinstance(value, bool):
            raise InvalidRequest(f"parameter {name[:80]!r}: expected {UNLOAD_DEPENDENTS!r}, true or false")


async def index(repository: FleetRepository, *, ready: bool) -> list[ModelState]:
    """The repository index, of the models that the caller may use.

    Raises:
        BusUnavailable: the workers cannot be asked.
    """
    allows = caller().allows
    states: Iterable[ModelState] = await repository.index(ready=ready)
    return [state for state in states if allows(state.name)]
