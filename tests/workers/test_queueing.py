"""How a model's configuration changes the way its queue is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qinfer.errors import ConfigError
from qinfer.repository import DynamicBatching, ModelConfig
from qinfer.repository.config import QueuePolicy
from qinfer_workers.options import WorkerOptions
from qinfer_workers.queueing import KEYS, max_deliver, queue_spec
from tests.workers.support import config_of

OPTIONS = WorkerOptions(nats="", repositories=(), ack_wait=7.0, max_queue_messages=100, max_queue_bytes=1000)


def config(**parameters: str) -> ModelConfig:
    return replace(
        config_of(), parameters={f"queue.{key}": value for key, value in parameters.items()}, source="f.pbtxt"
    )


def test_without_parameters_it_is_as_the_process_was_told() -> None:
    spec = queue_spec(config(), replace(OPTIONS, storage="memory", replicas=3, max_deliver=5))
    assert (spec.ack_wait, spec.max_messages, spec.max_bytes) == (7.0, 100, 1000)
    assert (spec.storage, spec.replicas) == ("memory", 3)
    assert max_deliver(config(), replace(OPTIONS, max_deliver=5)) == 5


def test_the_model_has_the_last_word() -> None:
    given = config(ack_wait_ms="250", max_messages="5000", max_bytes="77", max_deliver="1")
    spec = queue_spec(given, OPTIONS)
    assert (spec.ack_wait, spec.max_messages, spec.max_bytes) == (0.25, 5000, 77)
    assert max_deliver(given, OPTIONS) == 1


@pytest.mark.parametrize(("size", "messages"), [(0, 100), (30, 30), (300, 100)])
def test_a_queue_policy_limits_messages(size: int, messages: int) -> None:
    policy = DynamicBatching(default_queue_policy=QueuePolicy(max_queue_size=size))
    assert queue_spec(replace(config(), dynamic_batching=policy), OPTIONS).max_messages == messages


@pytest.mark.parametrize(
    ("key", "value"),
    [("ack_wait_ms", "99"), ("ack_wait_ms", "soon"), ("max_messages", "0"), ("max_bytes", "-1"),
     ("max_rows", "0"), ("max_byte", "1")],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^f\.pbtxt: parameters\.queue\.{key}: .*expected"):
        queue_spec(config(**{key: value}), OPTIONS)


def test_deliveries_are_at_least_one() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        max_deliver(config(max_deliver="0"), OPTIONS)


def test_every_parameter_is_documented() -> None:
    page = Path(__file__).parents[2].joinpath("docs/batching.md").read_text(encoding="utf-8")
    assert [key for key in KEYS if f"`{key}`" not in page] == []
