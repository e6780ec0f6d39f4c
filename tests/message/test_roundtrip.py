from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinfer.datatypes import Array, encode_bytes
from qinfer.errors import BY_REASON, InvalidRequest, MalformedMessage, ModelFailed
from qinfer.message import (
    MAX_ERROR,
    PROTOCOL_VERSION,
    Request,
    RequestFrame,
    ResponseFrame,
    Tensor,
    WireError,
    decode_request_frame,
    decode_response_frame,
    encode,
    encode_claim,
    redeem_claim,
    reply_address,
)
from tests.message import frames


@given(frames.request_frame)
def test_a_request_frame_comes_back_as_it_was(frame: RequestFrame) -> None:
    data = encode(frame)
    assert frames.raw(decode_request_frame(data)) == frames.raw(frame)
    assert reply_address(data) == frame.reply_to


@given(frames.response_frame)
def test_a_response_frame_comes_back_as_it_was(frame: ResponseFrame) -> None:
    assert frames.raw(decode_response_frame(encode(frame))) == frames.raw(frame)


@given(frames.request_frame)
def test_any_msgpack_library_reads_it(frame: RequestFrame) -> None:
    unpacked = msgpack.unpackb(encode(frame), strict_map_key=False)
    assert unpacked == frames.raw(frame)


@given(frames.named_array())
def test_tensors_keep_every_bit(named: tuple[str, Array]) -> None:
    datatype, array = named
    sent = Tensor.from_numpy("x", array, datatype)
    frame = RequestFrame(1, "_INBOX.a", "m", "", 0, 0, [Request(1, "", [sent])])
    (received,) = decode_request_frame(encode(frame)).requests[0].inputs
    assert received.datatype == datatype
    back = received.numpy()
    assert back.shape == array.shape
    if datatype == "BYTES":
        assert back.tolist() == array.tolist()
    else:
        assert back.dtype == array.dtype
        assert back.tobytes() == array.tobytes()  # NaNs too


@given(st.lists(frames.tensor(), max_size=4))
def test_a_claim_stands_for_the_data_of_its_tensors(tensors: list[Tensor]) -> None:
    blob = b"".join(encode_claim(tensors))
    assert msgpack.unpackb(blob) == [bytes(tensor.data) for tensor in tensors]
    emptied = [Tensor(tensor.name, tensor.datatype, tensor.shape, b"") for tensor in tensors]
    redeem_claim(emptied, bytearray(blob))
    assert [bytes(tensor.data) for tensor in emptied] == [bytes(tensor.data) for tensor in tensors]


def test_a_claim_is_redeemed_without_copying() -> None:
    tensor = Tensor.from_numpy("x", np.zeros(4, np.uint8))
    blob = bytearray(b"".join(encode_claim([tensor])))
    redeem_claim([tensor], blob)
    blob[-1] = 9
    assert tensor.numpy().tolist() == [0, 0, 0, 9]


@pytest.mark.parametrize(
    "blob", [b"", b"\xc1", b"\x91\xa1x", b"\x90", b"\x92\xc4\x00\xc4\x00", b"\x91\xc4\x05ab"]
)
def test_what_is_no_claim_is_refused(blob: bytes) -> None:
    with pytest.raises(MalformedMessage):
        redeem_claim([Tensor("x", "UINT8", [1], b"")], blob)


def _frame_with(data: bytes, name: str) -> bytes:
    return encode(
        RequestFrame(1, "_INBOX.a", "m", "", 0, 0, [Request(1, "", [Tensor(name, "FP64", [4], data)])])
    )


def test_decoding_copies_no_tensor_and_bears_any_alignment() -> None:
    values = np.arange(4, dtype="<f8")
    seen = set()
    for padding in range(8):
        message = _frame_with(values.tobytes(), "x" * (padding + 1))
        array = decode_request_frame(message).requests[0].inputs[0].numpy()
        assert np.shares_memory(array, np.frombuffer(message, np.uint8))
        assert not array.flags.writeable
        assert (array == values).all()
        assert float(array.sum()) == 6.0
        seen.add(array.flags.aligned)
    assert seen == {True, False}


def test_encoding_copies_no_contiguous_array() -> None:
    array = np.arange(6, dtype="<i4").reshape(2, 3)
    assert np.shares_memory(np.frombuffer(Tensor.from_numpy("x", array).data, np.int32), array)


def test_arrays_of_any_layout_are_sent_row_major_and_little_endian() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T[::-1]
    tensor = Tensor.from_numpy("x", array)
    assert (tensor.datatype, tensor.shape) == ("INT32", [3, 2])
    assert bytes(tensor.data) == np.ascontiguousarray(array).astype("<i4").tobytes()
    assert (tensor.numpy() == array).all()


@given(st.sampled_from(sorted(BY_REASON)), frames.text, st.none() | st.floats(0, 60))
def test_errors_keep_their_class(reason: str, message: str, retry_after: float | None) -> None:
    error = BY_REASON[reason](message, retry_after=retry_after)
    back = WireError.of(error).exception()
    assert (type(back), back.message, back.retry_after) == (type(error), message, retry_after)


def test_an_unknown_reason_is_an_internal_error() -> None:
    assert WireError("from_the_future", "oops").exception().reason == "internal"


def test_a_long_error_message_is_cut() -> None:
    error = WireError.of(ModelFailed("boom " + "x" * 10_000_000))
    assert error.message.startswith("boom xxx")
    assert error.message.endswith("x… (10000005 characters)")
    assert len(error.message) < MAX_ERROR + 30
    just = "y" * MAX_ERROR
    assert WireError.of(ModelFailed(just)).message == just


def test_an_error_message_that_has_no_utf8_can_be_sent() -> None:
    wire = WireError.of(ModelFailed("no such file: 'caf\udce9'"))
    encode(ResponseFrame(PROTOCOL_VERSION, "w", "", None, [], wire))  # type: ignore[arg-type]
    assert wire.message == "no such file: 'caf\\udce9'"


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [2], b"1234"),
        ("FP32", [-1], b"1234"),
        ("BOOL", [-1, -1], b"1"),
        ("BOOL", [0, 2**64], b""),
        ("BOOL", [1] * 100, b"1"),
        ("FP8", [1], b"1"),
        ("BYTES", [2**50], b""),  # must not take memory for what is not there
        ("BYTES", [1], b"\x05\0\0\0abc"),
        ("BYTES", [1], b"\x05\0"),
        ("BYTES", [1], encode_bytes(["a", "b"])),
        ("BYTES", [3], encode_bytes(["a", "b"])),
    ],
)
def test_tensors_that_do_not_add_up_are_refused(datatype: str, shape: list[int], data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        Tensor("x", datatype, shape, data).numpy()
