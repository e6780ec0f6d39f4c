"""What all HTTP connections of a gateway share."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import TYPE_CHECKING

from qinfer_gateway.auth.access import Access
from qinfer_gateway.catalog import Catalog
from qinfer_gateway.dispatcher import Dispatcher
from qinfer_gateway.http.limits import ConnectionLimits

if TYPE_CHECKING:
    from qinfer_gateway.http.deferred import Deferred

_BODIES = 16  # bodies of the largest size that may be arriving, all connections together


class HttpFront:
    """What all connections of a gateway share.

    Args:
        catalog: the models.
        dispatcher: where calls go.
        max_body_bytes: largest body, before and after decompression.
        threads: for large bodies.
        access: the credentials that are accepted; None where none are asked for.
        limits: what a connection may take.
        ids_are_keys: the identifier of a request is its idempotency key, unless it has one.
        deferred: takes requests that may become jobs; None where there are no jobs.
    """

    def __init__(
        self,
        catalog: Catalog,
        dispatcher: Dispatcher,
        *,
        max_body_bytes: int,
        threads: Executor,
        access: Access | None = None,
        limits: ConnectionLimits | None = None,
        ids_are_keys: bool = False,
        deferred: Deferred | None = None,
    ) -> None:
        self.deferred = deferred
        self.ids_are_keys = ids_are_keys
        self.catalog = catalog
        self.dispatcher = dispatcher
        self.max_body_bytes = max_body_bytes
        self.threads = threads
        self.access = access
        self.limits = limits or ConnectionLimits()
        self.arriving = 0
        """Bytes of bodies that have not come whole, or whose turn has not."""
        self.max_arriving = _BODIES * max_body_bytes
        self.leaving = False
        """Clients are to make other connections: every answer is the last on its own."""
