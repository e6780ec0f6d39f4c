"""What a gateway process can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """Options of one gateway process; times in seconds, sizes in bytes.

    Attributes:
        nats: URL of the broker; may hold credentials, so it is never logged.
        namespace: several fleets can share one NATS account, each in its namespace.
        host: address the HTTP and gRPC servers listen on.
        http_port: 0 for any free port, -1 for no HTTP.
        grpc_port: 0 for any free port, -1 for no gRPC.
        metrics_host, metrics_port: address of `/metrics`; port -1 for none.
        reuse_port: share the ports with other gateway processes of this host.
        max_body_bytes: largest request body, before and after decompression.
        max_claim_bytes: what this process holds at once of tensors that are too large for a message; more
            requests are answered 429, and larger ones 413.
        idempotent_request_ids: the identifier of a request is its idempotency key, unless it has one.
        request_timeout: deadline of a request that names none.
        max_in_flight: requests this process holds at once; more are answered 429.
        max_queue_rows: rows this process holds at once for one model; more are answered 429. 0 for no limit.
        broker_patience: how long requests in flight wait for a broker that is away, before they are answered
            503.
        lame_duck: how long, after SIGTERM, clients are answered on the connections they have, so that they
            find others; gRPC connections are renewed more often than that. 0 for not at all.
        drain_timeout: how long requests in flight may take to finish at shutdown.
        batch_roots: folders that batch jobs may name files of, `NAME=FOLDER` each.
        log_requests: one structured log line a request.
        jobs: take jobs in and run them.
        jobs_in_flight: jobs of one model that this process works on at once.
        max_jobs: jobs of the namespace that wait or run; more are answered 429.
        max_job_bytes: what requests and results of jobs may take at the broker; more are answered 429.
        job_timeout: what an attempt of a job may take that does not say.
        job_keep: how long a job is kept after its end that does not say.
        webhook_secret_file: secrets that webhooks are signed with; without one there are none.
        webhook_allow: hosts and networks that webhooks may go to beside the public internet.
        keys_file: API keys that are accepted; None for none.
        jwt_jwks, jwt_issuer, jwt_audience: public keys of the issuer of JSON Web Tokens, and what the claims
            `iss` and `aud` have to say; no tokens are accepted without.
        tls_cert, tls_key: the servers' certificate and its key; None to speak without TLS.
        tls_client_ca: authorities whose clients are let in; None to ask for no client certificate.
        max_connections: HTTP connections at once, and gRPC connections at once.
        idle_timeout: for how long an HTTP connection may do nothing between two requests.
        receive_timeout: how long a TLS handshake, or a request from its first byte on, may take to arrive; a
            request has more where it is large (`http.limits.MIN_RATE`).
        insecure: listen on an address that other hosts can reach even without TLS and credentials.
    """

    nats: str
    namespace: str = "default"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_host: str = "127.0.0.1"
    metrics_port: int = -1
    reuse_port: bool = False
    max_body_bytes: int = 64 * 1024 * 1024
    max_claim_bytes: int = 512 * 1024 * 1024
    idempotent_request_ids: bool = False
    request_timeout: float = 30.0
    max_in_flight: int = 4096
    max_queue_rows: int = 0
    broker_patience: float = 10.0
    lame_duck: float = 10.0
    drain_timeout: float = 30.0
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
