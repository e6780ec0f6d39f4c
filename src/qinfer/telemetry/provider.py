"""Builds the OpenTelemetry SDK from the standard `OTEL_*` variables. Imported only when tracing is on."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from random import getrandbits, randrange
from typing import Any

from opentelemetry.sdk.environment_variables import OTEL_SPAN_LINK_COUNT_LIMIT
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from qinfer import __version__
from qinfer.errors import SetupError
from qinfer.telemetry import conventions as names

_EXPORTER_GROUP = "opentelemetry_traces_exporter"
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_INSTALL = {
    "otlp_proto_http": "pip install 'qinfer[otlp]'",
    "otlp_proto_grpc": "pip install opentelemetry-exporter-otlp-proto-grpc",
}

_MAX_LINKS = 4096
"""Links a span may have: the SDK's 128 would silently unlink members of a larger batch."""


class _BoundedTraceIds(RandomIdGenerator):
    """New trace ids lie within the sampled share of the id space.

    The decision to sample precedes the id here, so the id is made to fit the decision: any other service that
    samples by trace id, at our ratio or a larger one, then keeps the same traces.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound

    def generate_trace_id(self) -> int:
        low = randrange(self._bound) if self._bound > 0 else 0
        return (getrandbits(64) << 64 | low) or 1

    def is_trace_id_random(self) -> bool:
        return False


def build_provider(
    exporters: tuple[str, ...], *, service: str, instance: str, bound: int, environ: Mapping[str, str]
) -> TracerProvider:
    """A provider that exports every span it is asked to make, in batches, through a bounded queue.

    Args:
        exporters: values of OTEL_TRACES_EXPORTER.
        service: service name where the environment does not say.
        instance: what tells this process from its siblings; may be empty.
        bound: see `HeadSampler.bound`.
        environ: the environment; exporter and batch settings are read from `os.environ` by OpenTelemetry.

    Raises:
        SetupError: an exporter is not installed or a setting is invalid.
    """
    limits = None if environ.get(OTEL_SPAN_LINK_COUNT_LIMIT) else SpanLimits(max_links=_MAX_LINKS)
    try:
        provider = TracerProvider(
            sampler=ALWAYS_ON,  # HeadSampler has already decided
            resource=_resource(service, instance),
            shutdown_on_exit=False,
            id_generator=_BoundedTraceIds(bound),
            span_limits=limits,
        )
        for name in exporters:
            provider.add_span_processor(BatchSpanProcessor(_exporter_class(name, environ)()))
    except ValueError as error:
        raise SetupError(f"an OTEL_* variable is invalid: {error}") from error
    return provider


def _resource(service: str, instance: str) -> Resource:
    ours = {names.SERVICE_NAME: service, names.SERVICE_VERSION: __version__}
    if instance:
        ours[names.SERVICE_INSTANCE_ID] = instance
    # What is passed to `create` wins over the environment, so the environment is passed along with it.
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _exporter_class(name: str, environ: Mapping[str, str]) -> Any:
    if name == "otlp":
        protocol = next((environ[key] for key in _PROTOCOL_VARIABLES if environ.get(key)), "http/protobuf")
        if protocol not in _OTLP:
            raise SetupError(
                f"{_PROTOCOL_VARIABLES[1]}: {protocol!r} is not supported; expected one of {', '.join(_OTLP)}"
            )
        name = _OTLP[protocol]
    found: list[EntryPoint] = list(entry_points(group=_EXPORTER_GROUP, name=name))
    try:
        if found:
            return found[0].load()
    except ImportError as error:
        raise SetupError(f"OTEL_TRACES_EXPORTER: {name} cannot be imported: {error}{_how(name)}") from error
    raise SetupError(f"OTEL_TRACES_EXPORTER: no exporter {name!r} is installed{_how(name)}")


def _how(name: str) -> str:
    return f"; install it with: {_INSTALL[name]}" if name in _INSTALL else "; expected otlp, console or none"
