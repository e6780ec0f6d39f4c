"""What a worker process can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qinfer.control import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Options of one worker process; times in seconds.

    Attributes:
        nats: URL of the broker; may hold credentials, so it is never logged.
        repositories: model repositories to load from.
        models: names of the models to load; empty for all, or for none in mode "explicit"; "*" for all.
        model_control_mode: when models are loaded and unloaded after the start: "none" for never, "poll" for
            when the repository changes, "explicit" for when somebody asks.
        repository_poll_secs: how often a repository is looked at in mode "poll".
        namespace: several fleets can share one NATS account, each in its namespace.
        metrics_host, metrics_port: address of `/metrics`; port -1 for none.
        drain_timeout: how long batches in hand may take to finish at shutdown.
        ack_wait: after how long without a sign of life the broker gives a request to another worker.
        hang_timeout: how long an instance may go on with a batch that nobody waits for any more before the
            worker gives itself up; 0 for as long as it likes.
        max_deliver: deliveries after which a request that kills its workers is given up.
        storage: where the broker keeps queued requests.
        replicas: copies of the queue a NATS cluster keeps.
        max_claim_bytes: what this process holds at once of requests that are too large for a message.
        max_queue_messages, max_queue_bytes: what the broker queues for a model before it refuses more; it
            reserves the bytes.
    """

    nats: str
    repositories: tuple[Path, ...]
    models: tuple[str, ...] = ()
    model_control_mode: Mode = "none"
    repository_poll_secs: float = 15.0
    namespace: str = "default"
    metrics_host: str = "127.0.0.1"
    metrics_port: int = -1
    drain_timeout: float = 30.0
    ack_wait: float = 5.0
    hang_timeout: float = 120.0
    max_deliver: int = 3
    storage: Literal["memory", "file"] = "file"
    replicas: int = 1
    max_claim_bytes: int = 512 * 1024 * 1024
    max_queue_messages: int = 65536
    max_queue_bytes: int = 64 * 1024 * 1024
