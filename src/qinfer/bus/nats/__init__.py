"""The bus on NATS: JetStream work queues, core inboxes, key-value buckets."""

from qinfer.bus.nats.bus import NatsBus

__all__ = ["NatsBus"]
