"""Who sends an RPC."""

from __future__ import annotations

from qinfer.keys import Permission
from qinfer_gateway.auth.access import CREDENTIAL_HEADERS, Access
from qinfer_gateway.auth.principal import ANONYMOUS, Principal, set_caller
from qinfer_gateway.grpc.status import Context

_NAMES = frozenset(name.decode() for name in CREDENTIAL_HEADERS)
_CERTIFICATE = ("x509_common_name", "x509_subject_alternative_name")


def identify(
    access: Access | None, context: Context, permission: Permission | None, *, count: bool = True
) -> Principal:
    """Find out who sends an RPC; `caller` knows them from now on.

    Args:
        access: the credentials that are accepted; None for none asked for.
        context: the RPC's.
        permission: what it needs; None for nothing.
        count: whether it counts as a request.

    Raises:
        Unauthenticated: no credentials, or none that are good.
        Forbidden: good ones that do not allow this.
        RateLimited: too soon.
    """
    if access is None or permission is None:
        return ANONYMOUS
    headers = {
        name.encode(): value if isinstance(value, bytes) else value.encode("latin-1", "replace")
        for name, value in context.invocation_metadata() or ()
        if name in _NAMES
    }
    principal = access.identify(headers, _certificate(context), permission)
    if count:
        principal.take()
    set_caller(principal)
    return principal


def model_of(message: object) -> str:
    """The model a message is about; empty for none."""
    # The messages of the inference service call it by either name; those of others do not have it.
    return str(getattr(message, "model_name", "") or getattr(message, "name", ""))


def _certificate(context: Context) -> tuple[str, ...]:
    """Names of the client's certificate, which TLS has verified."""
    found = context.auth_context()
    return tuple(name.decode(errors="replace") for key in _CERTIFICATE for name in found.get(key, ()))
