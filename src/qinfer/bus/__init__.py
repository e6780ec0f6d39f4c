"""The bus: durable queues of request frames, reply inboxes, questions to the fleet, the registry.

One package per implementation, all of the same inner shape: `memory` (in this process), `nats` and `kafka`.
"""

from qinfer.bus.base import Bus, Consumer, Delivery, Letter, QueueSpec, Watcher
from qinfer.bus.factory import connect
from qinfer.bus.table import Backlog, Table

__all__ = ["Backlog", "Bus", "Consumer", "Delivery", "Letter", "QueueSpec", "Table", "Watcher", "connect"]
