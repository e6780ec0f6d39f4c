"""How the supervisor starts a role: command lines and environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from qinfer.cli.options import NATS_VARIABLE
from qinfer.cli.serve.options import ServeOptions
from qinfer.lifecycle import NOTIFY_VARIABLE

# -P: what lies in the working directory must not shadow modules of the same name.
PROGRAM = (sys.executable, "-P", "-m", "qinfer")


def gateway(
    program: Sequence[str], options: ServeOptions, *, http_port: int, grpc_port: int, metrics_port: int
) -> list[str]:
    """Command line of a gateway."""
    return [
        *program,
        "gateway",
        f"--host={options.host}",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        f"--metrics-port={metrics_port}",
        f"--max-body={options.max_body_bytes}",
        f"--max-claim-bytes={options.max_claim_bytes}",
        *(["--idempotent-request-ids"] if options.idempotent_request_ids else []),
        f"--request-timeout={options.request_timeout}",
        f"--max-in-flight={options.max_in_flight}",
        f"--max-queue-rows={options.max_queue_rows}",
        f"--broker-patience={options.broker_patience}",
        f"--lame-duck={options.lame_duck}",
        *(f"--batch-root={root}" for root in options.batch_roots),
        "--reuse-port",
        "--log-requests" if options.log_requests else "--no-log-requests",
        *_jobs(options),
        *_security(options),
        *_common(options),
    ]


def worker(program: Sequence[str], options: ServeOptions, *, metrics_port: int) -> list[str]:
    """Command line of a worker."""
    return [
        *program,
        "worker",
        *(f"--model={name}" for name in options.models),
        f"--metrics-port={metrics_port}",
        f"--model-control-mode={options.model_control_mode}",
        f"--repository-poll-secs={options.repository_poll_secs}",
        f"--ack-wait={options.ack_wait}",
        f"--hang-timeout={options.hang_timeout}",
        f"--max-deliver={options.max_deliver}",
        f"--storage={options.storage}",
        f"--replicas={options.replicas}",
        f"--max-queue-messages={options.max_queue_messages}",
        f"--max-queue-bytes={options.max_queue_bytes}",
        f"--max-claim-bytes={options.max_claim_bytes}",
        *_common(options),
        "--",
        *(str(path) for path in options.repositories),
    ]


def environment(nats: str) -> dict[str, str]:
    """The children's environment. The broker's URL, which may hold a password, travels in it.

    Whoever wants to know how the supervisor is doing does not want to hear it from its children.
    """
    inherited = {name: value for name, value in os.environ.items() if name != NOTIFY_VARIABLE}
    return {**inherited, NATS_VARIABLE: nats}


def _jobs(options: ServeOptions) -> list[str]:
    return [
        "--jobs" if options.jobs else "--no-jobs",
        f"--jobs-in-flight={options.jobs_in_flight}",
        f"--max-jobs={options.max_jobs}",
        f"--max-job-bytes={options.max_job_bytes}",
        f"--job-timeout={options.job_timeout}",
        f"--job-keep={options.job_keep}",
        *(f"--webhook-secret-file={path}" for path in options.webhook_secret_file),
        *(f"--webhook-allow={allowed}" for allowed in options.webhook_allow),
    ]


def _security(options: ServeOptions) -> list[str]:
    named = {
        "--keys-file": options.keys_file,
        "--jwt-jwks": options.jwt_jwks,
        "--jwt-issuer": options.jwt_issuer,
        "--jwt-audience": options.jwt_audience,
        "--tls-cert": options.tls_cert,
        "--tls-key": options.tls_key,
        "--tls-client-ca": options.tls_client_ca,
    }
    return [
        *(f"{option}={value}" for option, value in named.items() if value),
        f"--max-connections={options.max_connections}",
        f"--idle-timeout={options.idle_timeout}",
        f"--receive-timeout={options.receive_timeout}",
        *(["--insecure"] if options.insecure else []),
    ]


def _common(options: ServeOptions) -> list[str]:
    return [
        f"--namespace={options.namespace}",
        f"--drain-timeout={options.drain_timeout}",
        f"--log-level={options.log_level}",
        f"--log-format={options.log_format}",
    ]
