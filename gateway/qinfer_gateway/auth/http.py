"""Every HTTP route but `infer`, guarded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from qinfer.errors import Forbidden
from qinfer.keys import Permission
from qinfer_gateway.auth.access import Access
from qinfer_gateway.auth.principal import set_caller
from qinfer_gateway.auth.rules import permission_for_route

CERTIFICATE = "certificate"
"""Key of the ASGI scope's `state`: names of the client's certificate."""


def protect(routes: Iterable[BaseRoute], access: Access | None) -> None:
    """Guard routes with what `permission_for_route` says that they need, in place.

    A model that is named in the path has to be one the caller may use.
    """
    for route in routes:
        if isinstance(route, Route) and (needed := permission_for_route(route.path)) is not None:
            route.app = _Guard(route.app, access, needed)


class _Guard:
    """An ASGI application behind a check of who asks."""

    def __init__(self, app: ASGIApp, access: Access | None, permission: Permission) -> None:
        self._app = app
        self._access = access
        self._permission = permission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        if self._access is not None:
            certificate = scope.get("state", {}).get(CERTIFICATE, ())
            principal = self._access.identify(headers, certificate, self._permission)
            principal.take()
            if (model := scope["path_params"].get("model")) is not None:
                principal.require_model(model)
            set_caller(principal)
        elif self._permission is Permission.MANAGEMENT and b"origin" in headers:
            # Where no key is asked for, any page in a browser of this host could send it.
            raise Forbidden("requests from web pages are not allowed here without a key")
        await self._app(scope, receive, send)
