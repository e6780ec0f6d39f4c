"""Content codings, with a bound on what a small body may blow up to."""

from __future__ import annotations

import gzip
import zlib

from qinfer.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding

CODINGS = ("gzip", "deflate")

MIN_SIZE = 1024
"""Bodies below this many bytes are not worth compressing."""

_LEVEL = 1


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """Decode a request body.

    Args:
        body: the encoded body.
        coding: value of Content-Encoding.
        limit: most bytes it may decode to.

    Raises:
        UnsupportedEncoding: neither gzip, deflate nor identity.
        PayloadTooLarge: it decodes to more than `limit` bytes.
        InvalidRequest: it is not validly encoded.
    """
    if coding in ("identity", ""):
        return body
    if coding == "gzip":
        window = 16 + zlib.MAX_WBITS
    elif coding == "deflate":
        # HTTP's deflate is the zlib format; raw deflate is sent by some clients all the same.
        window = zlib.MAX_WBITS if body[:1] and (body[0] & 0x0F) == 8 else -zlib.MAX_WBITS
    else:
        raise UnsupportedEncoding(
            f"Content-Encoding {coding!r}; expected one of {', '.join(CODINGS)}, identity"
        )
    decoder = zlib.decompressobj(window)
    try:
        decoded = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"request body is not valid {coding}: {error}") from None
    if len(decoded) > limit:
        raise PayloadTooLarge(f"request body decodes to more than {limit} bytes")
    if not decoder.eof or decoder.unused_data:
        raise InvalidRequest(
            f"request body is not valid {coding}: it is truncated or has bytes after its end"
        )
    return decoded


def accepted(header: bytes) -> str:
    """The coding to answer with, from an Accept-Encoding header; "" for none."""
    offered: dict[str, float] = {}
    for item in header.decode("latin-1").lower().split(","):
        coding, _, parameters = item.strip().partition(";")
        quality = parameters.strip().removeprefix("q=")
        try:
            offered[coding.strip()] = float(quality) if quality else 1.0
        except ValueError:
            continue
    best = max(CODINGS, key=lambda coding: offered.get(coding, 0.0))
    return best if offered.get(best, 0.0) > 0 else ""


def compress(body: bytes, coding: str) -> bytes:
    """Encode a response body."""
    return gzip.compress(body, _LEVEL, mtime=0) if coding == "gzip" else zlib.compress(body, _LEVEL)
