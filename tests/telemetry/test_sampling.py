"""Trace context and the decision to sample."""

from __future__ import annotations

import pytest

from qinfer.telemetry import w3c
from qinfer.telemetry.sampling import HeadSampler, sampler_from_env

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = SAMPLED[:-1] + "0"


def test_a_traceparent_round_trips() -> None:
    parent = w3c.parse(SAMPLED)
    assert parent is not None
    assert parent.sampled
    assert w3c.format_traceparent(*parent) == SAMPLED
    assert w3c.trace_id(SAMPLED) == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    "text",
    [
        "",
        None,
        "nonsense",
        SAMPLED.upper(),
        SAMPLED + "-extra",
        SAMPLED[:-1],
        SAMPLED + "\n",
        "ff" + SAMPLED[2:],
        "00-" + "0" * 32 + SAMPLED[35:],
        SAMPLED[:36] + "0" * 16 + SAMPLED[52:],
        SAMPLED.replace("0af7", "0_f7"),
    ],
)
def test_an_invalid_traceparent_is_none(text: str | None) -> None:
    assert w3c.parse(text) is None
    assert w3c.trace_id(text or "") == ""
    assert HeadSampler(1.0).sampled(text)
    assert not HeadSampler(0.0).sampled(text)


def test_a_later_version_may_append_fields() -> None:
    later = "01" + SAMPLED[2:] + "-what-the-future-brings"
    assert w3c.parse(later) == w3c.parse(SAMPLED)
    assert HeadSampler(0.0).sampled(later)


def test_a_long_tracestate_is_dropped() -> None:
    assert w3c.usable_tracestate("a=1") == "a=1"
    assert w3c.usable_tracestate("a=" + "x" * 600) == ""
    assert w3c.usable_tracestate(None) == ""


@pytest.mark.parametrize("traceparent", [SAMPLED, UNSAMPLED])
def test_the_sampled_flag_is_read_without_parsing(traceparent: str) -> None:
    assert w3c.is_sampled(traceparent) is (traceparent == SAMPLED)
    assert w3c.sampled_flag(traceparent) is (traceparent == SAMPLED)
    assert not w3c.is_sampled("")


@pytest.mark.parametrize(
    ("name", "ratio", "with_sampled", "with_unsampled", "alone"),
    [
        ("always_on", "", True, True, True),
        ("always_off", "", False, False, False),
        ("parentbased_always_on", "", True, False, True),
        ("parentbased_always_off", "", True, False, False),
        ("parentbased_traceidratio", "0", True, False, False),
        ("parentbased_traceidratio", "1", True, False, True),
        ("traceidratio", "0", False, False, False),
        ("traceidratio", "1", True, True, True),
        ("", "", True, False, True),
        ("no_such_sampler", "", True, False, True),
        ("traceidratio", "2.5", True, True, True),
    ],
)
def test_the_standard_samplers(
    name: str, ratio: str, with_sampled: bool, with_unsampled: bool, alone: bool
) -> None:
    sampler = sampler_from_env({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": ratio})
    assert sampler.sampled(SAMPLED) is with_sampled
    assert sampler.sampled(UNSAMPLED) is with_unsampled
    assert sampler.sampled(None) is alone


@pytest.mark.parametrize(
    "environ", [{"OTEL_TRACES_SAMPLER": "jaeger_remote"}, {"OTEL_TRACES_SAMPLER_ARG": "half"}]
)
def test_an_unknown_setting_is_logged_with_what_is_used(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    sampler_from_env(environ)
    (record,) = caplog.records
    (name, value), *_ = environ.items()
    assert f"{name}={value}" in record.getMessage()
    assert "using" in record.getMessage()


def test_the_ratio_decides_by_the_low_half_of_a_foreign_trace_id() -> None:
    sampler = HeadSampler(0.5, parent_based=False)
    below = w3c.format_traceparent((2**63 - 1) | (1 << 127), 1, 0)
    above = w3c.format_traceparent(2**63, 1, 1)
    assert sampler.sampled(below)
    assert not sampler.sampled(above)


def test_about_the_ratio_of_new_traces_is_sampled() -> None:
    sampler = HeadSampler(0.25)
    hits = sum(sampler.sampled(None) for _ in range(20_000))
    assert 4_400 < hits < 5_600  # ten standard deviations either way
