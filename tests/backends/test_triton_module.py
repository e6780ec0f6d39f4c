"""`triton_python_backend_utils` by itself: tensors, datatypes, metrics, configuration."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from prometheus_client import generate_latest

from qinfer.errors import Unsupported
from qinfer_workers.backends.python import triton as pb_utils
from qinfer_workers.backends.python.triton import metrics


def test_datatypes_convert_as_in_triton() -> None:
    assert pb_utils.triton_string_to_numpy("TYPE_FP32") is np.float32
    assert pb_utils.triton_string_to_numpy("TYPE_STRING") is np.object_
    assert pb_utils.triton_string_to_numpy("TYPE_BOOL") is bool
    numbers = [np.bool_, np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64,
               np.float16, np.float32, np.float64, np.object_]  # fmt: skip
    for number, kind in enumerate(numbers, start=1):
        assert pb_utils.triton_to_numpy_type(number) is kind
        assert pb_utils.numpy_to_triton_type(kind) == number
    assert pb_utils.numpy_to_triton_type(np.bytes_) == 13
    assert pb_utils.triton_to_numpy_type(14) is None
    assert pb_utils.np_to_triton_dtype(np.float16) == "FP16"
    assert pb_utils.np_to_triton_dtype(np.object_) == "BYTES"
    assert pb_utils.np_to_triton_dtype(np.complex64) is None


def test_string_tensors_have_triton_s_raw_form() -> None:
    array = np.array([["ab", b"\xff\x00"], ["", "é"]], dtype=object)
    raw = pb_utils.serialize_byte_tensor(array)
    assert raw[:6] == b"\x02\0\0\0ab"
    assert pb_utils.deserialize_bytes_tensor(raw).tolist() == [b"ab", b"\xff\x00", b"", "é".encode()]
    assert pb_utils.serialize_byte_tensor(np.array([], dtype=object)) == ()
    assert pb_utils.serialize_byte_tensor(np.ones(2)) is None
    with pytest.raises(pb_utils.TritonModelException, match="element 0 ends at byte 6; expected at most 5"):
        pb_utils.deserialize_bytes_tensor(raw[:5])


def test_tensors_go_through_dlpack() -> None:
    array = np.arange(4, dtype=np.int32)
    tensor = pb_utils.Tensor("a", array)
    again = pb_utils.Tensor.from_dlpack("b", tensor)
    assert again.name() == "b"
    assert np.shares_memory(again.as_numpy(), array)
    capsule = pb_utils.Tensor.from_dlpack("c", tensor.to_dlpack())
    np.testing.assert_array_equal(capsule.as_numpy(), array)
    with pytest.raises(pb_utils.TritonModelException, match="DLPack has no strings"):
        pb_utils.Tensor("s", np.array([b"x"], dtype=object)).to_dlpack()


def test_bfloat16_goes_through_torch() -> None:
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    bits = np.array([0x3F80, 0x4000], dtype=np.uint16)
    bits.flags.writeable = False
    tensor = pb_utils.Tensor("a", bits, "BF16")
    with pytest.raises(pb_utils.TritonModelException, match="numpy has no BF16; expected to_dlpack"):
        tensor.as_numpy()
    values = torch.from_dlpack(tensor.to_dlpack())
    assert values.tolist() == [1.0, 2.0]
    back = pb_utils.Tensor.from_dlpack("b", values + 1)
    assert back.datatype() == "BF16"
    assert back.raw().tolist() == [0x4000, 0x4040]
    assert pb_utils.Tensor.from_dlpack("c", torch.ones(2)).as_numpy().tolist() == [1, 1]
    assert pb_utils.Tensor.from_dlpack("d", torch.utils.dlpack.to_dlpack(values)).datatype() == "BF16"


def test_requests_are_not_made_by_models() -> None:
    with pytest.raises(Unsupported, match="cannot call other models yet"):
        pb_utils.InferenceRequest(model_name="other", requested_output_names=["y"], inputs=[])


def exported() -> str:
    return generate_latest(metrics.REGISTRY).decode()


def test_metrics_of_one_name_share_their_values() -> None:
    kind = pb_utils.MetricFamily.COUNTER
    families = [
        pb_utils.MetricFamily(name="seen_frames", description="Frames seen", kind=kind) for _ in range(2)
    ]
    for family in families:
        family.Metric(labels={"camera": "front"}).increment(2)
    assert families[0].Metric(labels={"camera": "front"}).value() == 4
    assert 'seen_frames_total{camera="front"} 4.0' in exported()
    gauge = pb_utils.MetricFamily("model_gauge", "A gauge", pb_utils.MetricFamily.GAUGE).Metric()
    gauge.set(3)
    gauge.increment(-1)
    histogram = pb_utils.MetricFamily("model_times", "Times", pb_utils.MetricFamily.HISTOGRAM)
    series = histogram.Metric(labels={}, buckets=[1.0, 2.0])
    for value in (0.5, 1.0, 1.5, 9):
        series.observe(value)
    text = exported()
    assert "model_gauge 2.0" in text
    assert 'model_times_bucket{le="1.0"} 2.0' in text
    assert 'model_times_bucket{le="+Inf"} 4.0' in text
    assert "model_times_sum 12.0" in text
    del families, family, gauge, histogram, series
    gc.collect()
    assert exported() == ""


def test_metrics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 2)
    monkeypatch.setattr(metrics, "MAX_FAMILIES", 1)
    family = pb_utils.MetricFamily("by_user", "", pb_utils.MetricFamily.COUNTER)
    for user in ("a", "b", "a"):
        family.Metric({"user": user}).increment(1)
    with pytest.raises(pb_utils.TritonModelException, match="found more than 2 combinations"):
        family.Metric({"user": "c"})
    with pytest.raises(pb_utils.TritonModelException, match="found 1 families"):
        pb_utils.MetricFamily("another", "", pb_utils.MetricFamily.COUNTER)


def test_misused_metrics_are_refused() -> None:
    family = pb_utils.MetricFamily("misused", "", pb_utils.MetricFamily.COUNTER)
    counter = family.Metric({"a": "1"})
    refused = pytest.raises(pb_utils.TritonModelException)
    for misuse in (
        lambda: counter.set(1),
        lambda: counter.observe(1),
        lambda: counter.increment(-1),
        lambda: family.Metric({"b": "1"}),
        lambda: family.Metric({"a": "1"}, buckets=[1]),
        lambda: pb_utils.MetricFamily("misused", "", pb_utils.MetricFamily.GAUGE),
        lambda: pb_utils.MetricFamily("not a name", "", pb_utils.MetricFamily.GAUGE),
        lambda: pb_utils.MetricFamily("kind", "", "summary"),
        lambda: pb_utils.MetricFamily("buckets", "", pb_utils.MetricFamily.HISTOGRAM).Metric({}, [2, 1]),
    ):
        with refused:
            misuse()
    assert counter.value() == 0


def test_configurations_are_looked_up_by_tensor_name() -> None:
    config = {"input": [{"name": "x", "data_type": "TYPE_FP32"}], "output": []}
    assert pb_utils.get_input_config_by_name(config, "x") == config["input"][0]
    assert pb_utils.get_input_config_by_name(config, "z") is None
    assert pb_utils.get_output_config_by_name(config, "x") is None
    assert not pb_utils.using_decoupled_model_transaction_policy(config)
    assert pb_utils.using_decoupled_model_transaction_policy(
        {"model_transaction_policy": {"decoupled": True}}
    )
