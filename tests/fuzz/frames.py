"""A fuzz target for everything that is read from the bus.

    python -m tests.fuzz.frames [-max_total_time=SECONDS and other options of libFuzzer] [DIR|FILE]

Whatever the bytes are, reading them ends in a message or in an error of qinfer's, and takes no more memory
than a multiple of the bytes. The test vectors are the seeds. DIR keeps inputs that reached something new, for
the next time; a FILE is tried once, and it alone.
"""

from __future__ import annotations

import contextlib
import logging
import random
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris
import msgpack

with atheris.instrument_imports(include=["qinfer"]):
    from qinfer import control, datatypes, message, naming, signature
    from qinfer.deadletter import decode_letter, summary
    from qinfer.errors import QInferError
    from qinfer.registry import TensorRecord
    from qinfer.telemetry.statistics import decode_report, merge

VECTORS = Path(__file__).parents[1] / "vectors"
CORPUS = Path(__file__).parents[2] / ".cache" / "fuzz" / "frames"
MAX_BYTES = 1 << 16
"""Longest input that is tried."""

HEADROOM = 256 << 20
"""Bytes of memory the process may take beyond what it has before the first input."""

_MAX_BATCH = 16


def read(data: bytes) -> None:
    """Read a message in every way that gateways, workers and clients do.

    Raises:
        Exception: any but a `QInferError` is a finding.
    """
    for reader in (_request, _response, _cancel, _letter, _report, _repository, _address):
        with contextlib.suppress(QInferError):
            reader(data)


def _request(data: bytes) -> None:
    frame = message.decode_request_frame(data)
    _written_alike(frame, message.decode_request_frame)
    for request in frame.requests:
        for known in SIGNATURES:
            with contextlib.suppress(QInferError):
                known.check(request)
        _tensors(request.inputs)
        with contextlib.suppress(QInferError):
            message.redeem_claim(request.inputs, data)


def _response(data: bytes) -> None:
    frame = message.decode_response_frame(data)
    _written_alike(frame, message.decode_response_frame)
    for response in frame.responses:
        if response.error is not None:
            message.WireError.of(response.error.exception())
        _tensors(response.outputs)


def _cancel(data: bytes) -> None:
    _written_alike(message.decode_cancel_frame(data), message.decode_cancel_frame)


def _letter(data: bytes) -> None:
    letter = decode_letter(data)
    summary(letter)
    _tensors(letter.request.inputs)


def _report(data: bytes) -> None:
    merge([decode_report(data)])


def _repository(data: bytes) -> None:
    index = control._read(control._indexes.decode, data)
    if index is not None:
        control.merge([index])
    control._read(control._changes.decode, data)
    control.decode_question(data)


def _address(data: bytes) -> None:
    naming.check_reply(message.reply_address(data))


def _tensors(tensors: list[message.Tensor]) -> None:
    for tensor in tensors:
        with contextlib.suppress(QInferError):
            array = tensor.numpy()
            assert array.shape == tuple(tensor.shape)
            assert bytes(datatypes.to_raw(tensor.datatype, array)) == bytes(tensor.data)


def _written_alike(frame: Any, decode: Callable[[bytes], Any]) -> None:
    """A frame that could be read can be written, and says the same when it is read again."""
    written = message.encode(frame)
    assert message.encode(decode(written)) == written


# What is tried


def _signatures() -> list[signature.Signature]:
    """Models that the vectors' requests fit, so that good requests get as far as they can."""
    found: dict[tuple[TensorRecord, ...], signature.Signature] = {}
    for seed in seeds():
        with contextlib.suppress(QInferError):
            for request in message.decode_request_frame(seed).requests:
                records = tuple(
                    TensorRecord(tensor.name, tensor.datatype, (-1,) * max(0, len(tensor.shape) - 1))
                    for tensor in request.inputs
                )
                found[records] = signature.Signature(records, records, _MAX_BATCH)
    return [*found.values(), signature.Signature((), (), 0)]


def seeds() -> Iterator[bytes]:
    """The test vectors, and what they have none of."""
    for path in sorted(VECTORS.glob("*.bin")):
        yield path.read_bytes()
    for shape in ([1 << 27], [-1, -1], [1 << 62, 4], [0, 1 << 62], [1] * 70):
        for datatype in ("BYTES", "FP32"):
            tensor = ["x", datatype, shape, b""]
            yield msgpack.packb([1, "_INBOX.a.b", "m", "", 0, 1, [[1, "r", [tensor]]]])
    yield msgpack.packb([1, "worker", [["m", "1", "READY", ""], ["m", "", "UNAVAILABLE", "why"]]])
    yield msgpack.packb([1, "load", "m", "", ["1"]])
    parameters = msgpack.packb([1, "_INBOX.a.b", "m", "", 0, 1, [[1, "r", [], [], 0, {"deep": "HERE"}]]])
    yield parameters.replace(msgpack.packb("HERE"), b"\x91" * (MAX_BYTES // 2) + b"\x00")


_VALUES = (
    *(None, True, -1, 0, 1, 2, 127, 128, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)),
    *(0.0, float("nan"), float("inf"), "", "x", "BYTES", "BF16", "\x00", "_INBOX.>", b"", b"\xff" * 8),
    *([], [1], {}, {"a": 1}, msgpack.ExtType(1, b"x"), msgpack.Timestamp(1 << 40, 1)),
)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change one value of a message, or else some of its bytes."""
    chance = random.Random(seed)
    if chance.random() < 0.5:
        with contextlib.suppress(Exception):  # most changed bytes are no MessagePack any more
            changed = msgpack.packb(_changed(msgpack.unpackb(data, strict_map_key=False), chance))
            if len(changed) <= max_size:
                return changed
    return bytes(atheris.Mutate(data, max_size))


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value[:place], value[place], *value[place:]]
            case _:
                return [*value[:place], _changed(value[place], chance), *value[place + 1 :]]
    if isinstance(value, bytes) and chance.random() < 0.5:
        return value[: chance.randrange(len(value) + 1)] + bytes(chance.randrange(9))
    return chance.choice(_VALUES)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


SIGNATURES = _signatures()


def main(arguments: list[str]) -> None:
    """Fuzz until told to stop or something is found; ends the process, with status 0 for nothing found."""
    options = [word for word in arguments if word.startswith("-")]
    (place,) = [Path(word) for word in arguments if not word.startswith("-")] or [CORPUS]
    if not place.is_file():
        place.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (place / f"seed-{number:03}").write_bytes(seed)
    logging.disable()  # what is refused is also logged, a hundred thousand times
    told = [f"-max_len={MAX_BYTES}", f"-artifact_prefix={place.parent}/", *options, str(place)]
    atheris.Setup([sys.argv[0], *told], read, custom_mutator=mutate)
    _limit_memory()
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
