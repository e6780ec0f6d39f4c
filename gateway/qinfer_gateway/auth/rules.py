"""What each route and RPC needs. What is not named here needs permission for inference."""

from __future__ import annotations

from qinfer.keys import Permission

_OPEN_ROUTES = frozenset({"/v2/health/live", "/v2/health/ready"})
_MANAGEMENT_ROUTES = "/v2/repository"

_OPEN_RPCS = frozenset({"ServerLive", "ServerReady"})
_MANAGEMENT_RPCS = ("Repository", "SystemSharedMemory", "CudaSharedMemory", "TraceSetting", "LogSettings")


def permission_for_route(path: str) -> Permission | None:
    """What a route, by its path, needs; None for health, which is everybody's."""
    if path in _OPEN_ROUTES:
        return None
    return Permission.MANAGEMENT if path.startswith(_MANAGEMENT_ROUTES) else Permission.INFERENCE


def permission_for_rpc(name: str) -> Permission | None:
    """What an RPC of the inference service, by its name, needs; None for health."""
    if name in _OPEN_RPCS:
        return None
    return Permission.MANAGEMENT if name.startswith(_MANAGEMENT_RPCS) else Permission.INFERENCE
