"""Typed reading of a model's string parameters."""

from __future__ import annotations

from qinfer.errors import ConfigError
from qinfer.repository import ModelConfig

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")


def where(config: ModelConfig) -> str:
    """The configuration as messages name it: its file, where it came from one."""
    return config.source or f"{config.name}/config"


def complain(config: ModelConfig, field: str, found: str, expected: str) -> ConfigError:
    """The error for a wrong field of a model's configuration."""
    return ConfigError(f"{where(config)}: {field}: {found}; expected {expected}")


def integer(config: ModelConfig, key: str, default: int, *, minimum: int = 0) -> int:
    """An integer parameter, or `default` where the model does not set it.

    Raises:
        ConfigError: not an integer, or below `minimum`.
    """
    text = config.parameters.get(key)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise complain(config, f"parameters.{key}", f"found {text!r}", f"an integer of at least {minimum}")
    return value


def boolean(config: ModelConfig, key: str, *, default: bool) -> bool:
    """A boolean parameter ("true"/"false", "1"/"0", "yes"/"no", "on"/"off"), or `default`.

    Raises:
        ConfigError: none of these.
    """
    text = config.parameters.get(key)
    if text is None:
        return default
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise complain(config, f"parameters.{key}", f"found {text!r}", '"true" or "false"')
