"""How a model's queue is kept: what the process was told, unless the model's configuration says otherwise."""

from __future__ import annotations

from dataclasses import replace

from qinfer.bus import QueueSpec
from qinfer.registry import QUEUE_ROWS
from qinfer.repository import ModelConfig
from qinfer_workers.backends.parameters import complain, integer
from qinfer_workers.options import WorkerOptions

ACK_WAIT = "queue.ack_wait_ms"
MAX_DELIVER = "queue.max_deliver"
MAX_MESSAGES = "queue.max_messages"
MAX_BYTES = "queue.max_bytes"
KEYS = (ACK_WAIT, MAX_DELIVER, MAX_MESSAGES, MAX_BYTES, QUEUE_ROWS)
"""Parameters of a model's configuration."""

_SHORTEST_ACK_WAIT_MS = 100


def queue_spec(config: ModelConfig, options: WorkerOptions) -> QueueSpec:
    """The queue of a model.

    `max_queue_size` of its default queue policy counts requests; the broker counts messages, of one request
    at least, so it is a limit for both.

    Raises:
        ConfigError: a parameter of the model is no number, or too small.
    """
    unknown = sorted(key for key in config.parameters if key.startswith("queue.") and key not in KEYS)
    if unknown:
        raise complain(config, f"parameters.{unknown[0]}", "unknown", f"one of {', '.join(KEYS)}")
    spec = QueueSpec(
        ack_wait=options.ack_wait,
        max_messages=options.max_queue_messages,
        max_bytes=options.max_queue_bytes,
        storage=options.storage,
        replicas=options.replicas,
    )
    batching = config.dynamic_batching
    if batching is not None and batching.default_queue_policy.max_queue_size:
        size = batching.default_queue_policy.max_queue_size
        spec = replace(spec, max_messages=min(spec.max_messages, size))
    integer(config, QUEUE_ROWS, 1, minimum=1)  # it is the gateways' business
    ack_wait_ms = integer(config, ACK_WAIT, round(spec.ack_wait * 1000), minimum=_SHORTEST_ACK_WAIT_MS)
    return replace(
        spec,
        ack_wait=ack_wait_ms / 1000,
        max_messages=integer(config, MAX_MESSAGES, spec.max_messages, minimum=1),
        max_bytes=integer(config, MAX_BYTES, spec.max_bytes, minimum=1),
    )


def max_deliver(config: ModelConfig, options: WorkerOptions) -> int:
    """Deliveries after which a request that kills its workers is given up.

    Raises:
        ConfigError: the model's parameter is no number of at least 1.
    """
    return integer(config, MAX_DELIVER, options.max_deliver, minimum=1)
