"""Writes the test vectors of the message: `python -m tests.vectors.generate`.

Each vector is a pair of files. `NAME.bin` is a frame as it travels, made by the `msgpack` package and not by
qinfer. `NAME.json` says what it means:

    description  what it shows
    kind         "request", "response" or "cancel"
    wire         the frame's array as any MessagePack library decodes it; {"$hex": "..."} is a bin value
    decoded      the same with defaults filled in and unknown fields dropped, where that differs from `wire`
    error        reason of the error that decoding has to end with; there is no `decoded` then
    reply_to     the reply subject that has to be found even where decoding fails
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import msgpack

DIRECTORY = Path(__file__).parent
INBOX = "_INBOX.Vc9jUWEdfhsbSJXu1nTbQH.r"
SENT = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z in microseconds."""

Frame = list[Any]


def strings(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


DATATYPES: dict[str, tuple[list[int], bytes]] = {
    "BOOL": ([1, 3], bytes([0, 1, 1])),
    "UINT8": ([1, 2], bytes([0, 255])),
    "UINT16": ([1, 2], struct.pack("<2H", 1, 65535)),
    "UINT32": ([1, 2], struct.pack("<2I", 1, 2**32 - 1)),
    "UINT64": ([1, 2], struct.pack("<2Q", 1, 2**64 - 1)),
    "INT8": ([1, 2], struct.pack("<2b", -128, 127)),
    "INT16": ([1, 2], struct.pack("<2h", -(2**15), 2**15 - 1)),
    "INT32": ([1, 2], struct.pack("<2i", -(2**31), 2**31 - 1)),
    "INT64": ([1, 2], struct.pack("<2q", -(2**63), 2**63 - 1)),
    "FP16": ([1, 2], struct.pack("<2e", 1.5, -65504.0)),
    "BF16": ([1, 2], bytes.fromhex("803f0040")),
    "FP32": ([2, 2], struct.pack("<4f", 1.0, -2.5, 3.0e38, float("inf"))),
    "FP64": ([1, 2], struct.pack("<2d", 0.1, -1.0e308)),
    "BYTES": ([2, 2], strings(b"", b"one", "zwölf".encode(), bytes([0, 255]))),
}
"""Shape and raw data of a tensor of each datatype."""


def tensor(name: str, datatype: str) -> Frame:
    shape, data = DATATYPES[datatype]
    return [name, datatype, shape, data]


def request(number: int, *inputs: Frame, deadline_us: int = 0, request_id: str = "") -> Frame:
    return [number, request_id, list(inputs), [], deadline_us, {}, 0, "", 0, "", "", "", "", 0, "", 0]


def request_frame(*requests: Frame, version: str = "", in_flight: int = 1) -> Frame:
    return [1, INBOX, "example", version, SENT, in_flight, list(requests)]


def response(number: int, *outputs: Frame, error: Frame | None = None) -> Frame:
    return [number, 1, error, list(outputs), {}, 1, 120, "", 0, "", 0]


def response_frame(*responses: Frame, batch: Frame | None = None, error: Frame | None = None) -> Frame:
    return [1, "host-1-a1b2c3", "3", batch or [0, 0, 0, 0, 0], list(responses), error, 0]


class Vector:
    """One vector; `data` is given where the bytes are no encoding of an array."""

    def __init__(
        self,
        kind: str,
        description: str,
        wire: Frame | None,
        *,
        decoded: Frame | None = None,
        error: str = "",
        data: bytes = b"",
    ) -> None:
        self.bin: bytes = data or msgpack.packb(wire)
        self.meaning: dict[str, Any] = {"description": description, "kind": kind}
        if wire is not None:
            self.meaning["wire"] = wire
        if decoded is not None:
            self.meaning["decoded"] = decoded
        if error:
            self.meaning["error"] = error
            self.meaning["reply_to"] = INBOX if kind == "request" and wire is not None else ""

    @property
    def json(self) -> bytes:
        text = json.dumps(_printable(self.meaning), indent=1, ensure_ascii=False)
        return text.encode() + b"\n"


def _printable(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$hex": value.hex()}
    if isinstance(value, list):
        return [_printable(element) for element in value]
    if isinstance(value, dict):
        return {key: _printable(element) for key, element in value.items()}
    return value


def request_vectors() -> dict[str, Vector]:
    vectors = {
        f"request-{name.lower()}": Vector(
            "request", f"one {name} tensor", request_frame(request(1, tensor("x", name)))
        )
        for name in DATATYPES
    }
    vectors["request-several"] = Vector(
        "request",
        "three requests of two inputs for version 2; the sender has five in flight",
        request_frame(
            *(
                request(number, tensor("x", "FP32"), tensor("label", "BYTES"), deadline_us=SENT + 500_000)
                for number in (7, 8, 9)
            ),
            version="2",
            in_flight=5,
        ),
    )
    vectors["request-all-fields"] = Vector("request", "every field set", request_frame(_full_request()))
    bare = request(1, tensor("x", "FP32"))
    vectors["request-minimal"] = Vector(
        "request",
        "all fields that may be left out are left out",
        request_frame(bare[:3]),
        decoded=request_frame(bare),
    )
    vectors["request-newer-fields"] = Vector(
        "request",
        "fields that a later version 1 sender may append to the frame, a request and a tensor",
        [*request_frame([*bare[:2], [[*bare[2][0], "gzip"]], *bare[3:], {"later": True}]), "later", [1]],
        decoded=request_frame(bare),
    )
    return vectors


def _full_request() -> Frame:
    parameters = {"text": "ü", "int": -5, "large": 2**63, "float": 0.25, "flag": True}
    return [
        2**40,
        "caller's own id",
        [tensor("x", "FP32")],
        ["y", "z"],
        SENT + 250_000,
        parameters,
        2,
        "tenant-a",
        3,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "vendor=value",
        "in-0b6d3c5e",
        "9f86d081884c7d65",
        4194304,
        "60303ae22b998861",
        64,
    ]


def response_vectors() -> dict[str, Vector]:
    full = ["queue_full", "the model's queue is full", 1.5]
    plain = ["model_failed", "model 'example': ValueError: no", None]
    answer = response(1, tensor("y", "FP32"), tensor("label", "BYTES"))
    other = [2, 2, None, [tensor("y", "INT64")], {"tokens": 12, "stop": "eos"}, 1, 4500, "", 0, "", 0]
    empty = ["y", "FP32", [2, 2], b""]
    claimed = [3, 1, None, [empty], {}, 3, 120, "keep-5f1c2a77", 26, "60303ae22b998861", 0]
    bare = response_frame(response(1))
    return {
        "response-outputs": Vector(
            "response", "the responses of a batch of three rows, the second a redelivery, with batch info",
            response_frame(answer, other, batch=[3, 2, 51_000, 1_200_000, 48_000]),
        ),
        "response-errors": Vector(
            "response", "one request refused with a time to retry after, one that made the model fail",
            response_frame(response(1, error=full), response(2, error=plain)),
        ),
        "response-frame-error": Vector(
            "response", "the worker could not read the request frame",
            response_frame(error=["unsupported_version", "protocol version 9 is not supported", None]),
        ),
        "response-not-final": Vector(
            "response", "more responses to the same request follow: bit 0 of the flags is not set",
            response_frame([*response(1, tensor("y", "FP32"))[:5], 0, 120, "", 0, "", 6]),
        ),
        "response-end": Vector(
            "response", "the seventh was the last response: bits 0 and 2 of the flags, and nothing in it",
            response_frame([1, 1, None, [], {}, 5, 0, "", 0, "", 7]),
        ),
        "response-claim": Vector(
            "response", "the outputs' data lie in a blob that is kept; 40 requests are known to wait",
            [*response_frame(claimed)[:6], 40],
        ),
        "response-minimal": Vector(
            "response", "all fields that may be left out are left out",
            [*bare[:3], [], [[1, 1, None], [2, 1, ["model_failed", "no"]]]],
            decoded=response_frame(
                [1, 1, None, [], {}, 1, 0, "", 0, "", 0],
                [2, 1, ["model_failed", "no", None], [], {}, 1, 0, "", 0, "", 0],
            ),
        ),
        "response-newer-fields": Vector(
            "response", "fields that a later version 1 worker may append",
            [*bare[:3], [*bare[3], 9], [[*bare[4][0], "later"]], *bare[5:], "later"],
            decoded=bare,
        ),
    }  # fmt: skip


def cancel_vectors() -> dict[str, Vector]:
    return {
        "cancel": Vector("cancel", "two requests nobody waits for any more", [1, INBOX, [7, 9], []]),
        "cancel-taken": Vector(
            "cancel", "of two streams 32 and 4096 responses were taken; nothing is cancelled",
            [1, INBOX, [], [[7, 32], [9, 4096]]],
        ),
        "cancel-newer-fields": Vector(
            "cancel", "fields that a later version 1 sender may append",
            [1, INBOX, [7], [], "later"], decoded=[1, INBOX, [7], []],
        ),
    }  # fmt: skip


def unreadable_vectors() -> dict[str, Vector]:
    whole = msgpack.packb(request_frame(request(1, tensor("x", "FP32"))))
    return {
        "request-unknown-version": Vector(
            "request", "a frame of another version, of which only the first two elements are known",
            [9, INBOX, {"anything": [1, 2]}], error="unsupported_version",
        ),
        "request-missing-field": Vector(
            "request", "a frame without its requests", request_frame()[:6], error="malformed_message"
        ),
        "request-wrong-type": Vector(
            "request", "a correlation number that is a string",
            request_frame(["1", "", []]), error="malformed_message",
        ),
        "request-truncated": Vector(
            "request", "half a frame", None, data=whole[: len(whole) // 2], error="malformed_message"
        ),
        "request-garbage": Vector(
            "request", "no MessagePack at all", None, data=b"GET / HTTP/1.1\r\n", error="malformed_message"
        ),
        "cancel-wrong-type": Vector(
            "cancel", "one number instead of a list", [1, INBOX, 7], error="malformed_message"
        ),
        "response-unknown-version": Vector(
            "response", "a frame of another version", [9, "worker"], error="unsupported_version"
        ),
    }  # fmt: skip


def files() -> dict[str, bytes]:
    """All files of the vectors by name."""
    vectors = {**request_vectors(), **response_vectors(), **cancel_vectors(), **unreadable_vectors()}
    rendered: dict[str, bytes] = {}
    for name, vector in vectors.items():
        rendered[f"{name}.bin"] = vector.bin
        rendered[f"{name}.json"] = vector.json
    return rendered


def main() -> None:
    for pattern in ("*.bin", "*.json"):
        for old in DIRECTORY.glob(pattern):
            old.unlink()
    for name, content in files().items():
        (DIRECTORY / name).write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
