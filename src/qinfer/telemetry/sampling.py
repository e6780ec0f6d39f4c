"""Which requests are traced: decided once, at the edge, before any span exists."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from random import random

from qinfer.telemetry.w3c import sampled_flag

logger = logging.getLogger(__name__)

SAMPLER_VARIABLE = "OTEL_TRACES_SAMPLER"
RATIO_VARIABLE = "OTEL_TRACES_SAMPLER_ARG"

_DEFAULT = "parentbased_traceidratio"
_ID_SPACE = 1 << 64

# Whether the caller's decision is honoured, and the ratio where the name itself fixes it.
_SAMPLERS: Mapping[str, tuple[bool, float | None]] = {
    "always_on": (False, 1.0),
    "always_off": (False, 0.0),
    "traceidratio": (False, None),
    "parentbased_always_on": (True, 1.0),
    "parentbased_always_off": (True, 0.0),
    "parentbased_traceidratio": (True, None),
}


class HeadSampler:
    """OpenTelemetry's standard samplers as one test.

    Args:
        ratio: share of the new traces that are sampled, 0 to 1.
        parent_based: whether the flag of a caller's trace context decides before the ratio does.

    Attributes:
        bound: a trace id is within the ratio when its low 64 bits are below this number. It is the rule of
            OpenTelemetry's TraceIdRatioBased, so services that share a ratio decide alike.
    """

    __slots__ = ("_parent_based", "bound", "ratio")

    def __init__(self, ratio: float, *, parent_based: bool = True) -> None:
        self.ratio = ratio
        self.bound = round(ratio * _ID_SPACE)
        self._parent_based = parent_based

    def sampled(self, traceparent: str | None) -> bool:
        """Decide for one request; an invalid `traceparent` counts as none."""
        if traceparent:
            flag = sampled_flag(traceparent)
            if flag is not None:
                return flag if self._parent_based else int(traceparent[19:35], 16) < self.bound
        return random() < self.ratio


def sampler_from_env(environ: Mapping[str, str]) -> HeadSampler:
    """The sampler `OTEL_TRACES_SAMPLER` and its argument ask for.

    As OpenTelemetry prescribes for values an implementation does not know, a warning is logged and the
    default taken: parent-based, with ratio 1.
    """
    name = environ.get(SAMPLER_VARIABLE, "").strip().lower() or _DEFAULT
    if name not in _SAMPLERS:
        logger.warning(
            "%s=%s is not supported; expected one of %s; using %s",
            SAMPLER_VARIABLE, name, ", ".join(_SAMPLERS), _DEFAULT,
        )  # fmt: skip
        name = _DEFAULT
    parent_based, ratio = _SAMPLERS[name]
    return HeadSampler(_ratio(environ) if ratio is None else ratio, parent_based=parent_based)


def _ratio(environ: Mapping[str, str]) -> float:
    text = environ.get(RATIO_VARIABLE, "").strip()
    if not text:
        return 1.0
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        logger.warning("%s=%s is not a ratio; expected a number from 0 to 1; using 1", RATIO_VARIABLE, text)
        return 1.0
    return ratio
