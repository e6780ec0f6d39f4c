"""Names of HTTP headers, which are those of gRPC metadata, too. In lower case, as HTTP/2 has them."""

from __future__ import annotations

REASON = "x-qinfer-reason"
"""An error's machine-readable reason."""
RETRY_AFTER = "retry-after"
"""Whole seconds after which a retry is worth trying, at least one."""
POSITION = "x-qinfer-queue-position"
"""Which place in the model's queue the request would have had, from 1."""
WAIT = "x-qinfer-estimated-wait"
"""Seconds until it would have been answered, with decimals."""

KEY = "idempotency-key"
"""The key of a request that is run once, however often it is sent."""
TIMEOUT = "x-qinfer-timeout-ms"
"""Milliseconds a request may take, for clients and proxies that do not write its body."""
JSON_LENGTH = "inference-header-content-length"
"""Bytes of JSON at the beginning of a body that has raw tensors behind them."""
