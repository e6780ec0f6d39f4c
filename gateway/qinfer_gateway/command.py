"""`qinfer gateway`: one gateway process."""

from __future__ import annotations

import os
from typing import Any

import click

from qinfer.cli.job_options import job_options
from qinfer.cli.options import (
    CONTEXT,
    claims_option,
    drain_option,
    gateway_options,
    logging_options,
    metrics_options,
    namespace_option,
    nats_option,
)
from qinfer_gateway.options import GatewayOptions


@click.command(
    context_settings=CONTEXT,
    epilog="""\b
Examples:
  QINFER_NATS=nats://broker:4222 qinfer gateway
  QINFER_NATS=nats://a:4222,nats://b:4222 qinfer gateway --metrics-port 8002
  qinfer gateway --host 0.0.0.0 --keys-file keys.yaml --tls-cert cert.pem --tls-key key.pem
  qinfer gateway --nats nats://broker:4222 --reuse-port      several processes on one port

The models come from the workers of the same --namespace: start some with `qinfer worker`. SIGTERM stops the
process when what is in flight has been answered; a second one stops it at once.""",
)
@nats_option(required=True)
@namespace_option
@gateway_options
@job_options
@claims_option
@click.option(
    "--reuse-port/--no-reuse-port",
    default=False,
    show_default=True,
    help="Share the ports with other gateways of this host.",
)
@metrics_options
@drain_option
@logging_options
def gateway(log_level: str, log_format: Any, **given: Any) -> None:
    """Run a gateway: HTTP and gRPC in front of a fleet's workers."""
    import uvloop

    from qinfer.cli import security
    from qinfer.telemetry.logs import configure_logging
    from qinfer_gateway.server import serve

    options = GatewayOptions(**given)
    security.check(options)
    configure_logging(role="gateway", instance=str(os.getpid()), level=log_level, log_format=log_format)
    uvloop.run(serve(options))
