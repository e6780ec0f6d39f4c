"""`qinfer serve`: broker, gateways and workers of one host under one supervisor."""

from qinfer.cli.serve.command import serve

__all__ = ["serve"]
