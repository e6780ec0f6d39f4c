"""Bodies of requests that the ASGI application answers."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from qinfer.errors import PayloadTooLarge, Unavailable
from qinfer_gateway.http.compression import decompress
from qinfer_gateway.http.front import HttpFront


async def read_body(request: Request, front: HttpFront) -> bytes:
    """The body of a request, decompressed. What arrives is bounded, all connections together.

    Raises:
        PayloadTooLarge: it is larger than bodies may be.
        Unavailable: too much arrives at the moment.
        UnsupportedEncoding, InvalidRequest: it does not decompress.
        ClientDisconnect: its sender has gone.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            front.arriving += len(chunk)
            if len(body) > front.max_body_bytes:
                raise PayloadTooLarge(
                    f"request body is above the limit of {front.max_body_bytes} bytes (--max-body)"
                )
            if front.arriving > front.max_arriving:
                raise Unavailable(
                    f"{front.arriving} bytes of request bodies are arriving, as many as may", retry_after=1.0
                )
    finally:
        front.arriving -= len(body)
    coding = request.headers.get("content-encoding", "").strip().lower()
    if not coding:
        return bytes(body)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(front.threads, decompress, bytes(body), coding, front.max_body_bytes)
