"""The embedded broker: a real nats-server as a supervised child process, and what supervision needs.

The parts that the command line uses for its other children too are `Child` (restarted when it dies),
`Backoff` and the `guard` (a child never outlives its parent).
"""

from qinfer.embedded.backoff import Backoff
from qinfer.embedded.binary import find_binary
from qinfer.embedded.child import Child, ChildExited
from qinfer.embedded.server import EmbeddedServer, running_url

__all__ = ["Backoff", "Child", "ChildExited", "EmbeddedServer", "find_binary", "running_url"]
