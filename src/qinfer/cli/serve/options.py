"""What `qinfer serve` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qinfer.control import Mode
from qinfer.embedded.server import DEFAULT_MAX_PAYLOAD


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Options of a supervisor and, through it, of the processes it runs; times in seconds, sizes in bytes.

    Attributes:
        repositories: model repositories.
        models: names of the models to load; empty for all, or for none in mode "explicit"; "*" for all.
        model_control_mode, repository_poll_secs: as for the worker.
        nats: the broker; None to run one here.
        namespace: several fleets can share one broker, each in its namespace.
        host: address the gateways listen on.
        http_port, grpc_port: 0 for any free port; gRPC -1 for none.
        metrics_port: where the supervisor serves its children's metrics, added up, on loopback; -1 for none.
        gateways, workers: how many processes of each.
        store_dir: where the embedded broker keeps its data; None for a temporary folder.
        storage: where the broker keeps queued requests.
        replicas: copies of the queues a NATS cluster keeps.
        max_payload: largest message of the embedded broker.
        max_claim_bytes: as for the gateway and the worker.
        max_body_bytes, idempotent_request_ids, request_timeout, max_in_flight,
            max_queue_rows, broker_patience, batch_roots, log_requests: as for the gateway.
        jobs, jobs_in_flight, max_jobs, max_job_bytes, job_timeout, job_keep, webhook_secret_file,
            webhook_allow: as for the gateway.
        ack_wait, hang_timeout, max_deliver, max_queue_messages, max_queue_bytes: as for the worker.
        lame_duck: how long a gateway that is replaced serves the clients it has.
        drain_timeout: how long each role may take to finish its work at shutdown.
        startup_timeout: how long until the models must be ready.
        keys_file, jwt_jwks, jwt_issuer, jwt_audience, tls_cert, tls_key, tls_client_ca, max_connections,
            idle_timeout, receive_timeout, insecure: as for the gateway.
        log_level, log_format: as for every process.
    """

    repositories: tuple[Path, ...]
    models: tuple[str, ...] = ()
    model_control_mode: Mode = "none"
    repository_poll_secs: float = 15.0
    nats: str | None = None
    namespace: str = "default"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    gateways: int = 1
    workers: int = 1
    store_dir: Path | None = None
    storage: Literal["memory", "file"] = "file"
    replicas: int = 1
    max_payload: int = DEFAULT_MAX_PAYLOAD
    max_body_bytes: int = 64 * 1024 * 1024
    max_claim_bytes: int = 512 * 1024 * 1024
    idempotent_request_ids: bool = False
    request_timeout: float = 30.0
    max_in_flight: int = 4096
    max_queue_rows: int = 0
    broker_patience: float = 10.0
    ack_wait: float = 5.0
    hang_timeout: float = 120.0
    max_deliver: int = 3
    max_queue_messages: int = 65536
    max_queue_bytes: int = 64 * 1024 * 1024
    lame_duck: float = 10.0
    drain_timeout: float = 30.0
    startup_timeout: float = 300.0
    batch_roots: tuple[str, ...] = ()
    log_requests: bool = False
    jobs: bool = True
    jobs_in_flight: int = 32
    max_jobs: int = 100_000
    max_job_bytes: int = 1 << 30
    job_timeout: float = 600.0
    job_keep: float = 86_400.0
    webhook_secret_file: tuple[Path, ...] = ()
    webhook_allow: tuple[str, ...] = ()
    keys_file: Path | None = None
    jwt_jwks: Path | None = None
    jwt_issuer: str = ""
    jwt_audience: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    max_connections: int = 8192
    idle_timeout: float = 75.0
    receive_timeout: float = 30.0
    insecure: bool = False
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"

    @property
    def guarded(self) -> bool:
        """Whether the gateways ask for credentials, or for TLS."""
        return any((self.keys_file, self.jwt_jwks, self.tls_cert))
