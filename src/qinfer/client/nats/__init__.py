"""The client that talks to the broker itself."""

from qinfer.client.nats.client import NatsClient

__all__ = ["NatsClient"]
