"""Whoever sends a request."""

from __future__ import annotations

from contextvars import ContextVar
from time import monotonic

from qinfer.errors import Forbidden, RateLimited
from qinfer.keys import Grant, Permission, pattern_of
from qinfer.message import Request
from qinfer_gateway.auth.limiter import RateLimit

_MAX_KNOWN = 1024  # model names a principal has asked for; clients choose them
_SHOWN = 100  # characters of a model name that messages repeat


class Principal:
    """Whoever sends a request, and what they may do.

    Args:
        name: what logs and messages call them.
        grant: what they may do.
        limit: their rate; None for none. It is shared by all that is sent in their name.
        expires: Unix time at which their key or token ends.
    """

    __slots__ = (
        "_known",
        "_limit",
        "_pattern",
        "expires",
        "name",
        "permissions",
        "priority_ceiling",
        "tenant",
    )

    def __init__(
        self, name: str, grant: Grant, limit: RateLimit | None = None, expires: float = float("inf")
    ) -> None:
        self.name = name
        self.tenant = grant.tenant or name  # nobody shares what is kept by tenant without being told to
        self.permissions = frozenset(grant.permissions)
        self.priority_ceiling = grant.priority_ceiling
        self.expires = expires
        self._pattern = pattern_of(grant.models)
        self._limit = limit
        self._known: dict[str, bool] = {}

    def allows(self, model: str) -> bool:
        """Whether they may use a model."""
        known = self._known.get(model)
        if known is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[model] = self._pattern.match(model) is not None
        return known

    def require(self, permission: Permission) -> None:
        """Refuse what they have no permission for.

        Raises:
            Forbidden: they have not.
        """
        if permission not in self.permissions:
            raise Forbidden(f"{self.name} has no permission for {permission.value}")

    def require_model(self, model: str) -> None:
        """Refuse a model they may not use, whether there is such a model or not.

        Raises:
            Forbidden: they may not.
        """
        if not self.allows(model):
            raise Forbidden(f"{self.name} may not use model {model[:_SHOWN]!r}")

    def check_rate(self) -> None:
        """Refuse a request that would come too soon.

        Raises:
            RateLimited: it would.
        """
        if self._limit is not None and (wait := self._limit.wait(monotonic())):
            raise self._too_fast(wait)

    def take(self) -> None:
        """Count a request.

        Raises:
            RateLimited: it comes too soon.
        """
        if self._limit is not None and (wait := self._limit.take(monotonic())):
            raise self._too_fast(wait)

    def stamp(self, request: Request) -> None:
        """Write into a request whom it is accounted to, and hold its priority to what they may ask for.

        Priority 0, the model's default, stays: the operator chose it.
        """
        request.tenant = self.tenant
        if 0 < request.priority < self.priority_ceiling:
            request.priority = self.priority_ceiling

    def _too_fast(self, wait: float) -> RateLimited:
        limit = self._limit
        assert limit is not None
        return RateLimited(
            f"{self.name} may send {limit.rate:g} requests a second, {limit.burst} at once", retry_after=wait
        )


ANONYMOUS = Principal("anonymous", Grant(models=("*",), permissions=tuple(Permission)))
"""Everybody, where no keys, tokens or certificates are asked for."""

_caller: ContextVar[Principal] = ContextVar("caller", default=ANONYMOUS)


def caller() -> Principal:
    """Whoever sent the request that this task answers. Set for every route and RPC but inference itself."""
    return _caller.get()


def set_caller(principal: Principal) -> None:
    """Note who sent the request that this task answers."""
    _caller.set(principal)
