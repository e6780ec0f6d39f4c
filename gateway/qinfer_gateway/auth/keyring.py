"""The API keys of a gateway, found by key or by certificate."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from qinfer.keys import KeyEntry
from qinfer_gateway.auth.limiter import RateLimit
from qinfer_gateway.auth.principal import Principal


class KeyRing:
    """The entries of one version of the file.

    Args:
        entries: what it says.
        before: the version before; keys whose rate is the same go on with what they have used of it.
    """

    def __init__(self, entries: Iterable[KeyEntry] = (), before: KeyRing | None = None) -> None:
        self._limits: dict[str, RateLimit] = {}
        self._keys: dict[bytes, tuple[bytes, Principal]] = {}
        self._certificates: dict[str, Principal] = {}
        for entry in entries:
            limit = self._limit(entry, before)
            ends = float("inf") if entry.expires is None else entry.expires.timestamp()
            principal = Principal(entry.name, entry, limit, ends)
            if entry.sha256:
                stored = bytes.fromhex(entry.sha256)
                self._keys[stored] = (stored, principal)
            if entry.certificate:
                self._certificates[entry.certificate] = principal

    def by_digest(self, digest: bytes) -> Principal | None:
        """Whose key has this SHA-256.

        What is looked up is a hash: how long that takes tells nothing of the key it was made of.
        """
        found = self._keys.get(digest)
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        return found[1]

    def by_certificate(self, names: Sequence[str]) -> Principal | None:
        """For whom a client certificate with these names stands."""
        for name in names:
            principal = self._certificates.get(name)
            if principal is not None:
                return principal
        return None

    def _limit(self, entry: KeyEntry, before: KeyRing | None) -> RateLimit | None:
        if entry.rate is None:
            return None
        limit = RateLimit(entry.rate, entry.burst)
        old = before._limits.get(entry.name) if before is not None else None  # noqa: SLF001 - its own class
        if old is not None and (old.rate, old.burst) == (limit.rate, limit.burst):
            limit = old
        self._limits[entry.name] = limit
        return limit
