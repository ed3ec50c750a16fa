"""A bundle with a LiteRT file that takes a normalized picture with its channels last.

It is proven from the pictures on, and read by everything that reads a bundle. That it gives the
answers of the file that takes the model's own tensor is in test_pictures.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.artifact import Store
from edgekit.bundle_diff import diff
from edgekit.cli.main import main
from edgekit.data import ArraySamples
from edgekit.export import ExportRequest, export_bundle
from edgekit.model import Model
from edgekit.names import NHWC_IO
from edgekit.runtime.bundle import Bundle, canonical_json
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.schemas import validate
from edgekit.targets import _tflite_metadata_file, find

pytestmark = pytest.mark.runtime

UNEVEN = ImagePreprocess(16, 16, color="BGR", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ID = "tflite-w8a8-float32-nhwc"


class Heard:
    """A listener that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextlib.contextmanager
    def progress(
        self, description: str, total: int | None = None
    ) -> Iterator[Callable[[int], None]]:
        yield lambda _: None


def photographs(count: int) -> np.ndarray[Any, Any]:
    """Pictures with large areas, as real ones have, uint8 [count, 20, 18, 3]."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (count, 5, 5, 3)).repeat(4, 1).repeat(4, 2)[:, :, :18]
    return (coarse + chance.normal(0, 10, coarse.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("last")
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4))
    model = Model.from_module(
        nn.Sequential(*layers).eval(),
        {"input": torch.zeros(UNEVEN.shape)},
        name="last",
        preprocess=UNEVEN,
        labels=("a", "b", "c", "d"),
    )
    known = {"signature": model.signature, "preprocess": UNEVEN}
    pictures, heard = photographs(40), Heard()
    request = ExportRequest(
        targets=("tflite",),
        schemes=("w8a8",),
        ios=(NHWC_IO,),
        calib=ArraySamples({"input": pictures[:20]}, **known),
        evaluation=ArraySamples({"input": pictures[20:]}, np.arange(20) % 4, **known),
        without=("rounding", "equalization"),
        bench=False,
        waive=("smaller",),
        max_float_ops=0,
        listener=heard,
        out=folder / "bundle",
    )
    result = export_bundle(model, request, store=Store(folder / "store"))
    assert result.failed == ()
    validate(dict(result.document))
    (row,) = result.document["artifacts"]
    assert (row["id"], row["io"], row["verification"]) == (ID, NHWC_IO, "runtime")
    assert row["parity"]["identical"], "the plan's own integers"
    assert any("MediaPipe Tasks can't normalize so" in note for note in heard.notes)
    return folder / "bundle"


def test_a_bundle_proves_it_from_the_picture_on(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    validate(manifest)
    assert manifest["golden"][NHWC_IO]["path"] == "golden-float32-nhwc.npz"
    (entry,) = manifest["artifacts"]
    assert (entry["border"]["factor"], entry["border"]["differs"]) == ([1.0] * 3, 0)
    kinds = entry["evidence"]["placement"]["ops"]
    # The one transpose is before the model's own flattening.
    assert (kinds["QUANTIZE"], kinds["CONV_2D"], kinds["TRANSPOSE"]) == (1, 1, 1)
    with Bundle.open(made) as bundle:
        artifact = bundle.artifact(io=NHWC_IO)
        assert artifact == bundle.artifact(target="tflite")
        session = bundle.session(artifact)
        found = bundle.check_golden(session)
        assert (found.passed, found.pictures, found.misread) == (True, 4, ())
        own, last = (bundle.golden(io)[0]["input"] for io in (None, NHWC_IO))
        # Blue first with channels first, and red first with channels last.
        np.testing.assert_array_equal(own.transpose(0, 2, 3, 1)[..., ::-1], last)
        # With red and blue exchanged, the answers are others.
        feeds = [{"input": np.ascontiguousarray(last[:1, ..., ::step])} for step in (1, -1)]
        right, wrong = (session.run(feed)["output"] for feed in feeds)
        assert (right != wrong).any()
        session.close()


def test_the_file_tells_an_app_how_to_normalize(made: Path) -> None:
    with Bundle.open(made) as bundle:
        path = bundle.place(bundle.artifact(ID))
        told = _tflite_metadata_file.read(path)
        assert told is not None
        image = told.inputs[0]
        assert (image.image, image.color, told.files) == (True, "RGB", ("labels.txt",))
        # The model's numbers are those of blue first.
        assert image.mean == pytest.approx([255 * m for m in UNEVEN.mean[::-1]])
        assert image.std == pytest.approx([255 * s for s in UNEVEN.std[::-1]])
        pixels = np.array([[0.0] * 3, [255.0] * 3])
        ends = (pixels - np.array(image.mean)) / np.array(image.std)
        np.testing.assert_allclose([image.low, image.high], ends, rtol=1e-5)
        stated = bundle.artifact(ID).evidence["metadata"]
        assert stated["inputs"][0]["mean"] == pytest.approx(image.mean)


def test_verify_inspect_and_diff_know_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = tmp_path / "planted"
    shutil.copytree(made, planted)
    assert main(["verify", str(made), "--artifact", ID, "--json"]) == 0
    checks = {c["name"]: c["passed"] for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks[f"{ID}/pictures:input"] and checks[f"{ID}/metadata"]
    assert main(["inspect", str(made)]) == 0
    shown = capsys.readouterr().out
    assert f"{ID} take the model's tensor as a picture in RGB or grey" in shown
    manifest = json.loads((planted / "manifest.json").read_text())
    manifest["artifacts"][0]["border"]["layout"] = "NHWC"
    (planted / "manifest.json").write_bytes(canonical_json(manifest))
    with Bundle.open(made) as old, Bundle.open(planted) as new:
        assert "border layout" in json.dumps(diff(old, new))


def test_a_file_that_normalizes_by_other_numbers_is_found(made: Path, tmp_path: Path) -> None:
    target: Any = find("tflite")
    copy = tmp_path / "model.tflite"
    with Bundle.open(made) as bundle:
        artifact = bundle.artifact(ID)
        shutil.copyfile(bundle.place(artifact), copy)
        told = _tflite_metadata_file.read(copy)
        about = {"name": "last", "licence": None, "preprocess": UNEVEN.for_io(NHWC_IO).to_json()}
        assert target.metadata_faults(copy, artifact.signature, about) == []
        assert told is not None
        for changes, said in (
            ({"mean": (), "std": ()}, "mean is ()"),
            ({"mean": told.inputs[0].mean[::-1]}, "mean is (123.6"),
        ):
            wrong = dataclasses.replace(told.inputs[0], **changes)
            _tflite_metadata_file.write(copy, dataclasses.replace(told, inputs=(wrong,)))
            faults = target.metadata_faults(copy, artifact.signature, about)
            assert any(said in fault for fault in faults), faults


def test_its_python_client_replays_the_golden_vectors(made: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(made, bundle)
    client = bundle / "client" / "python" / "tflite_w8a8_float32_nhwc.py"
    command = [sys.executable, str(client), "--golden"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "at least 15 wanted" in done.stdout
