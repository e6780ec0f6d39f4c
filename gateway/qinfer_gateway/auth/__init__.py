"""Who asks, and what they may do: API keys, JSON Web Tokens and client certificates, on HTTP and on gRPC."""

from qinfer.keys import Permission
from qinfer_gateway.auth.access import Access
from qinfer_gateway.auth.principal import ANONYMOUS, Principal, caller

__all__ = ["ANONYMOUS", "Access", "Permission", "Principal", "caller"]
