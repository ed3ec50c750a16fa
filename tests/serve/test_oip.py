"""The protocol's codec against Triton's own, and against what is wrong."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.serve.oip import DATATYPES, InferRequest, Tensor, datatype_of, parse, render
from edgekit.serve.refusal import Refusal

triton = pytest.importorskip("tritonclient.http")

Array = np.ndarray[Any, Any]

VALUES: dict[str, Array] = {
    "BOOL": np.array([True, False]),
    "UINT8": np.array([0, 255], np.uint8),
    "UINT16": np.array([0, 65535], np.uint16),
    "UINT32": np.array([0, 2**32 - 1], np.uint32),
    "UINT64": np.array([0, 2**64 - 1], np.uint64),
    "INT8": np.array([-128, 127], np.int8),
    "INT16": np.array([-32768, 32767], np.int16),
    "INT32": np.array([-(2**31), 2**31 - 1], np.int32),
    "INT64": np.array([-(2**63), 2**53 + 1], np.int64),
    "FP16": np.array([0.5, -65504.0], np.float16),
    "FP32": np.array([1e-40, -3.4e38], np.float32),
    "FP64": np.array([5e-324, 1.7e308], np.float64),
    "BYTES": np.array([b"a\0b", b"", "größe".encode()], np.object_),
}
SHAPES = [(), (1,), (2, 3), (0,), (2, 0, 3)]


def _by_triton(tensors: dict[str, Array], binary: bool) -> tuple[bytes, int | None]:
    from tritonclient.http._utils import _get_inference_request

    inputs = []
    for name, value in tensors.items():
        tensor = triton.InferInput(name, list(value.shape), datatype_of(value.dtype.name))
        tensor.set_data_from_numpy(value, binary_data=binary)
        inputs.append(tensor)
    body, length = _get_inference_request(inputs, "an id", None, 0, False, False, 0, None, None)
    return bytes(body), length


def test_every_datatype_is_here() -> None:
    assert set(VALUES) == set(DATATYPES)
    assert {datatype_of(value.dtype.name) for value in VALUES.values()} == set(DATATYPES)


# tritonclient has no JSON form of FP16.
WRITTEN = [(k, binary) for k in VALUES for binary in (True, False) if binary or k != "FP16"]


@pytest.mark.parametrize(("kind", "binary"), WRITTEN)
def test_srv_01_what_triton_writes_is_read(kind: str, binary: bool) -> None:
    if kind == "BYTES" and not binary:
        value = np.array([b"a", b"", "größe".encode()], np.object_)
    else:
        value = VALUES[kind]
    for shaped in (value, value.reshape(1, -1), value[:1]):
        request = parse(*_by_triton({"a": shaped, "b": shaped[::-1].copy()}, binary))
        assert request.id == "an id" and request.binary
        for tensor, expected in zip(request.inputs, (shaped, shaped[::-1]), strict=True):
            assert tensor.datatype == kind and tensor.value.shape == expected.shape
            assert tensor.value.dtype == expected.dtype
            np.testing.assert_array_equal(tensor.value, expected)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("binary", [True, False])
def test_srv_01_triton_reads_what_is_written(kind: str, binary: bool) -> None:
    value = VALUES[kind]
    if kind == "BYTES" and not binary:
        value = np.array([b"a", b"b"], np.object_)
    body, length = render(
        [("y", value), ("z", value)],
        model="m",
        version="3",
        request=InferRequest((), id="i", outputs={"y": binary}),
    )
    assert (length is not None) == binary
    answer = triton.InferResult.from_response_body(body, header_length=length)
    said = answer.get_response()
    assert (said["model_name"], said["model_version"], said["id"]) == ("m", "3", "i")
    assert [output["name"] for output in said["outputs"]] == ["y"]
    got = answer.as_numpy("y")
    if kind == "BYTES" and not binary:
        got = np.array([str(item).encode() for item in got], np.object_)
    np.testing.assert_array_equal(got, value)
    assert binary or kind == "BYTES" or got.dtype == value.dtype


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nested", [True, False])
def test_srv_01_shapes_nested_and_flat(shape: tuple[int, ...], nested: bool) -> None:
    value = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    data = value.tolist() if nested and shape else value.reshape(-1).tolist()
    entry = {"name": "a", "shape": list(shape), "datatype": "INT32", "data": data}
    (tensor,) = parse(json.dumps({"inputs": [entry]}).encode()).inputs
    assert tensor.value.shape == shape
    np.testing.assert_array_equal(tensor.value, value)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        *(("INT8", 300), ("INT8", -129), ("UINT8", -1), ("UINT64", 2**64), ("INT64", 2**63)),
        *(("FP16", 65520.0), ("FP32", 1e39), ("FP64", 10**400), ("BOOL", 1), ("INT32", True)),
        *(("INT32", 1.0), ("FP32", "1"), ("BYTES", 1), ("FP32", None), ("INT32", {"a": 1})),
    ],
)
def test_srv_02_numbers_that_their_type_does_not_hold(kind: str, data: Any) -> None:
    entry = {"name": "a", "shape": [1], "datatype": kind, "data": [data]}
    with pytest.raises(Refusal) as caught:
        parse(json.dumps({"inputs": [entry]}).encode())
    assert caught.value.status == 400


def test_srv_02_bytes_in_binary() -> None:
    def read(tail: bytes, count: int = 1) -> Array:
        entry = {"name": "a", "shape": [count], "datatype": "BYTES"}
        head = json.dumps({"inputs": [{**entry, "parameters": {"binary_data_size": len(tail)}}]})
        return parse(head.encode() + tail, len(head)).inputs[0].value

    assert read(b"\1\0\0\0x").tolist() == [b"x"]
    for tail in (b"", b"\1\0\0", b"\2\0\0\0x", b"\xff\xff\xff\xffx", b"\1\0\0\0xy"):
        with pytest.raises(Refusal):
            read(tail)
    with pytest.raises(Refusal):
        read(b"\0\0\0\0", 2**39)


def test_an_output_that_json_has_no_form_for() -> None:
    value = np.array([np.nan], np.float32)
    with pytest.raises(Refusal) as caught:
        render([("y", value)], model="m", version="1", request=InferRequest(()))
    assert caught.value.status == 500
    body, length = render(
        [("y", value)], model="m", version="1", request=InferRequest((), binary=True)
    )
    assert length is not None and np.isnan(np.frombuffer(body[length:], np.float32)[0])


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=300), length=st.none() | st.integers(-5, 400))
def test_srv_02_any_bytes_are_read_or_refused_with_400(body: bytes, length: int | None) -> None:
    try:
        parse(body, length)
    except Refusal as refusal:
        assert refusal.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "id"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(entry=JSON, shape=JSON, kind=st.sampled_from([*DATATYPES, "BF16"]), data=JSON)
def test_srv_02_any_json_is_read_or_refused_with_400(
    entry: Any, shape: Any, kind: str, data: Any
) -> None:
    tensors = [entry, {"name": "a", "shape": shape, "datatype": kind, "data": data}]
    for inputs in ([tensors[1]], tensors):
        try:
            request = parse(json.dumps({"inputs": inputs}).encode())
        except Refusal as refusal:
            assert refusal.status == 400
        else:
            assert all(isinstance(tensor, Tensor) for tensor in request.inputs)
