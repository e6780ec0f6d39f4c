"""Idempotency keys of requests that come to a gateway."""

from __future__ import annotations

from qinfer.headers import KEY as KEY_HEADER
from qinfer.idempotency import check_key, name_of
from qinfer.message import Request
from qinfer_gateway.catalog import Target

__all__ = ["KEY_HEADER", "set_key"]


def set_key(request: Request, target: Target, key: str | None, *, ids: bool) -> None:
    """Name the answer of a request that came with a key, or whose identifier is one.

    Args:
        request: its tenant is known already.
        target: where it goes.
        key: what the caller gave as its key; None for nothing.
        ids: request identifiers are keys where no other is given.

    Raises:
        InvalidRequest: it can be no key.
    """
    if key is not None:
        check_key(key)
    elif ids:
        key = request.request_id
    if key:
        request.idempotency = name_of(request.tenant, target.model, target.wanted_version, key)
