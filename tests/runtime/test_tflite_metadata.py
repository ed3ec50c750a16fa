"""TFLite Metadata: what is written is read again, tells the truth, and damage is called so."""

from __future__ import annotations

import dataclasses
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import BadData
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.runtime.session import open_session
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import _tflite_file, _tflite_metadata_file
from edgekit.targets._tflite_metadata import describe, differences

pytestmark = pytest.mark.runtime

LABELS = ("ant", "bée", "big\n cat", "dog")
PREPROCESS = ImagePreprocess(8, 8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
FLOAT = Signature(
    (TensorSpec("image", (1, 3, 8, 8), layout="NCHW"),),
    (TensorSpec("scores", (1, 4), labels=LABELS),),
)
PIXELS = dataclasses.replace(FLOAT, inputs=(TensorSpec("image", (1, 8, 8, 3), "uint8", "NHWC"),))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with one operator: the negative of four numbers."""
    api = _tflite_file.schema()
    made, graph = api.ModelT(), api.SubGraphT()
    made.version, made.buffers, made.operatorCodes = 3, [api.BufferT()], []
    graph.tensors = []
    for name in (b"image", b"scores"):
        tensor = api.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, [1, 4], 0
        tensor.type = api.TensorType.FLOAT32
        graph.tensors.append(tensor)
    graph.inputs, graph.outputs = [0], [1]
    made.subgraphs = [graph]
    graph.operators = [_tflite_file.operator(made, "NEG", [0], [1])]
    path = tmp_path / "model.tflite"
    _tflite_file.write(made, path)
    return path


def test_it_is_read_as_it_was_written_and_the_model_runs_as_before(model: Path) -> None:
    wanted = describe(FLOAT, PREPROCESS, name="insects", licence="MIT")
    _tflite_metadata_file.write(model, wanted)
    found = _tflite_metadata_file.read(model)
    assert found is not None and differences(found, wanted) == []
    assert found.files == ("labels.txt",)
    image, scores = found.inputs[0], found.outputs[0]
    assert (image.image, image.color) == (True, "RGB")
    assert image.mean == pytest.approx((123.675, 116.28, 103.53))
    assert image.std == pytest.approx((58.395, 57.12, 57.375))
    grey = np.full((8, 8, 3), 200, np.uint8)
    tensor = PREPROCESS.apply(grey)[0, :, 0, 0]
    assert tensor == pytest.approx((200 - np.array(image.mean)) / np.array(image.std), rel=1e-6)
    assert scores.labels == ("ant", "bée", "big cat", "dog"), "one a line"
    ports = Signature((TensorSpec("image", (1, 4)),), (TensorSpec("scores", (1, 4)),))
    with_tail = open_session("tflite", model, ports)
    answer = with_tail.run({"image": np.ones((1, 4), np.float32)})["scores"]
    assert answer.tolist() == [[-1, -1, -1, -1]]


def test_labels_lie_in_a_zip_behind_the_model_and_the_bytes_are_the_same_each_time(
    model: Path,
) -> None:
    plain = _tflite_metadata_file.read(model)
    assert plain is None
    wanted = describe(PIXELS, PREPROCESS, name="insects")
    _tflite_metadata_file.write(model, wanted)
    first = model.read_bytes()
    _tflite_metadata_file.write(model, wanted)
    assert model.read_bytes() == first, "written again, it takes its own place"
    with zipfile.ZipFile(model) as archive:
        assert archive.namelist() == ["labels.txt"]
        info = archive.getinfo("labels.txt")
        assert (info.compress_type, info.date_time[0]) == (zipfile.ZIP_STORED, 1980)
        assert archive.read(info) == "ant\nbée\nbig cat\ndog\n".encode()


def test_pixels_are_told_to_be_taken_as_they_are() -> None:
    image = describe(PIXELS, PREPROCESS, name="insects").inputs[0]
    assert (image.mean, image.std, image.low, image.high) == ((0.0,), (1.0,), (0.0,), (255.0,))
    grey = ImagePreprocess(8, 8, channels=1, color="GRAY", mean=(0.5,), std=(0.25,), scale=1.0)
    signature = dataclasses.replace(FLOAT, inputs=(TensorSpec("image", (1, 1, 8, 8)),))
    image = describe(signature, grey, name="insects").inputs[0]
    assert (image.color, image.mean, image.std) == ("GRAY", (0.5,), (0.25,))
    assert (image.low, image.high) == ((-2.0,), (1018.0,))


def test_no_app_takes_bgr_for_rgb() -> None:
    bgr = dataclasses.replace(PREPROCESS, color="BGR")
    assert describe(FLOAT, bgr, name="insects").inputs[0].color == ""
    assert describe(PIXELS, bgr, name="insects").inputs[0].color == "RGB", "the file reorders them"


def _other(wanted: Any, **changes: Any) -> Any:
    return dataclasses.replace(wanted, inputs=(dataclasses.replace(wanted.inputs[0], **changes),))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean": (123.0, 116.28, 103.53)}, "mean is (123.0,"),
        ({"color": "GRAY"}, "color is 'GRAY', not 'RGB'"),
        ({"image": False, "color": ""}, "image is False, not True"),
    ],
)
def test_what_is_not_so_is_told(model: Path, changes: dict[str, Any], said: str) -> None:
    wanted = describe(FLOAT, PREPROCESS, name="insects")
    _tflite_metadata_file.write(model, _other(wanted, **changes))
    assert any(said in fault for fault in differences(_tflite_metadata_file.read(model), wanted))


def test_wrong_labels_and_no_metadata_are_told(model: Path) -> None:
    wanted = describe(FLOAT, PREPROCESS, name="insects")
    assert differences(_tflite_metadata_file.read(model), wanted) == ["it has no TFLite metadata"]
    _tflite_metadata_file.write(model, wanted)
    data = model.read_bytes()
    # A zip whose label file has another label of the same length, its checksum included.
    with zipfile.ZipFile(model) as archive:
        start = archive.getinfo("labels.txt").header_offset
    model.write_bytes(data[:start])
    with zipfile.ZipFile(model, "a") as archive:
        archive.writestr("labels.txt", "ant\nwasp\nbig cat\ndog\n")
    (fault,) = differences(_tflite_metadata_file.read(model), wanted)
    assert "labels is ('ant', 'wasp'" in fault
    model.write_bytes(data[:start])
    with pytest.raises(BadData, match=r"labels\.txt"):
        _tflite_metadata_file.read(model)


def test_damage_is_called_damage(model: Path) -> None:
    """Whatever byte of the metadata is another: it is read, or refused as bad data."""
    _tflite_metadata_file.write(model, describe(FLOAT, PREPROCESS, name="insects"))
    data, chance = model.read_bytes(), random.Random(0)
    start = data.index(b"M001") - 4
    refused = 0
    for _ in range(300):
        spoilt = bytearray(data)
        spoilt[start + chance.randrange(600)] = chance.randrange(256)
        model.write_bytes(spoilt)
        try:
            _tflite_metadata_file.read(model)
        except BadData:
            refused += 1
    assert 0 < refused < 300
