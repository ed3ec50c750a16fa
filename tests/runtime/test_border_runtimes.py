"""Artifacts that take pixels, in their real runtimes: the integers of those that take tensors.

Each is converted twice, with the picture border and without, and must give the very same answers to
the same pictures. A bundle of both is proven from the pictures on, and one whose border is another
model's is found out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.artifact import Store
from edgekit.bundle_diff import diff
from edgekit.cli.main import main
from edgekit.compress.graph import canonical, program_digest, save_program
from edgekit.compress.picture import fitted, with_border
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.data import ArraySamples
from edgekit.export import ExportRequest, export_bundle
from edgekit.model import Model
from edgekit.runtime.border import PictureBorder
from edgekit.runtime.bundle import Bundle, canonical_json
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.schemas import validate
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import find, worker

pytestmark = pytest.mark.runtime

UNEVEN: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
EVEN: dict[str, Any] = {"mean": (0.45,) * 3, "std": (0.225,) * 3}
KINDS = {
    "rgb": ImagePreprocess(16, 16, **UNEVEN),
    "bgr": ImagePreprocess(16, 16, color="BGR", **UNEVEN),
    "bgr-last": ImagePreprocess(16, 16, color="BGR", layout="NHWC", **UNEVEN),
    "bgr-sum": ImagePreprocess(16, 16, color="BGR", **UNEVEN),
    "even": ImagePreprocess(16, 16, **EVEN),
    "grey": ImagePreprocess(16, 16, channels=1, color="GRAY", mean=(0.5,), std=(0.3,)),
}
TARGETS = ("openvino", "onnxruntime", "executorch", "torch-mobile")
OUTSIDE = {"executorch": {"dim_order_ops::_to_dim_order_copy.out": 1}}
"""What runs outside of a delegate: XNNPACK takes no uint8 from ExecuTorch."""


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, channels = kind, KINDS[kind].channels
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8 * 64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind.endswith("last"):
            x = x.permute(0, 3, 1, 2)
        y = torch.relu(self.first(x))
        y = y + x if self.kind == "bgr-sum" else y
        return self.linear(torch.relu(self.conv(y)).flatten(1))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Net(kind).eval()


def photographs(count: int) -> np.ndarray[Any, Any]:
    """Pictures with large areas, as real ones have, uint8 [count, 20, 18, 3]."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (count, 5, 5, 3)).repeat(4, 1).repeat(4, 2)[:, :, :18]
    noisy = coarse + chance.normal(0, 10, coarse.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def both(folder: Path, target: str, kind: str, scheme: str) -> tuple[list[Any], dict[str, Any]]:
    """Answers with and without the border to the same pictures, and the first one's placement."""
    preprocess, pictures = KINDS[kind], photographs(8)
    feeds = {"own": np.stack([preprocess.apply(p) for p in pictures])}
    feeds["pixels"] = np.stack([preprocess.pixels(p) for p in pictures])
    inputs = [(torch.from_numpy(x),) for x in feeds["own"]]
    program = canonical(torch.export.export(network(kind), inputs[0], strict=False))
    plan = QuantPlan("fp32", program_digest(program))
    if scheme != "fp32":
        plan = quantize(program, inputs, scheme=scheme)
    signature = Signature((TensorSpec("x", preprocess.shape),), (TensorSpec("y", (1, 4)),))
    border = PictureBorder.of(signature, preprocess)
    border = fitted(border, preprocess.table, program, plan, 0)
    assert border.differs == 0
    sides = {"own": (program, plan, signature)}
    sides["pixels"] = (*with_border(program, plan, border, 0), border.signature(signature))
    tasks: list[dict[str, Any]] = []
    for name, (graph, held, taken) in sides.items():
        home = folder / name
        home.mkdir()
        out = str(home / f"model{find(target).suffix}")
        save_program(graph, home / "program.pt2")
        (home / "plan.json").write_text(json.dumps(held.to_json()))
        np.savez(home / "feeds.npz", x=feeds[name])
        about = {"signature": taken.to_json()}
        files = {"program": str(home / "program.pt2"), "plan": str(home / "plan.json")}
        tasks.append({"op": "convert", **files, **about, "out": out})
        run = {"feeds": str(home / "feeds.npz"), "outputs": str(home / "out.npz")}
        tasks.append({"op": "infer", "artifact": out, **about, **run})
    results = worker.run(target, [*tasks, {"op": "inspect", "artifact": out}])
    for result in results:
        assert "error" not in result, result["error"]
    given = [dict(np.load(folder / name / "out.npz"))["y"] for name in ("pixels", "own")]
    placement: dict[str, Any] = results[-1]["placement"]
    return given, placement


def check(folder: Path, target: str, kind: str, scheme: str) -> None:
    (mine, own), placement = both(folder, target, kind, scheme)
    assert len({row.tobytes() for row in own}) == len(own)
    if scheme == "fp32":
        np.testing.assert_allclose(mine, own, rtol=1e-4, atol=1e-5)
    else:
        # The very same integers; OpenVINO alone gives its result in float, sums and all.
        limit = 1e-6 if target == "openvino" else 0.0
        assert np.abs(mine - own).max() <= limit
        # Behind a picture that it turns around itself, OpenVINO moves and rounds in kernels of
        # their own, which count as float.
        # A grey one keeps its layout as a reshape, between the arithmetic and the rounding.
        most = {("openvino", "bgr-sum"): 2, ("openvino", "grey"): 1}.get((target, kind), 0)
        assert placement["float_ops"] <= most
        outside = dict(OUTSIDE.get(target, {}))
        if (target, kind) == ("executorch", "bgr-sum"):  # the first layer can't take BGR instead
            outside["aten::flip.out"] = 1
        assert placement["undelegated"] == outside
        assert placement["boundary_ops"] > 0


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "onnxruntime"])
def test_pixels_give_the_answers_of_the_tensor(tmp_path: Path, target: str) -> None:
    """Uneven mean and deviation, and blue first; ONNX Runtime is the bundle's, below."""
    check(tmp_path, target, "bgr", "w8a8")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["w8a8", "fp32"])
def test_pixels_of_every_kind(tmp_path: Path, target: str, kind: str, scheme: str) -> None:
    check(tmp_path, target, kind, scheme)


# -- a bundle of both -----------------------------------------------------------------------------


def request(preprocess: ImagePreprocess, model: Model, **given: Any) -> ExportRequest:
    known = {"signature": model.signature, "preprocess": preprocess}
    pictures = photographs(40)
    return ExportRequest(
        targets=("onnxruntime",),
        schemes=("w8a8",),
        calib=ArraySamples({"x": pictures[:20]}, **known),
        evaluation=ArraySamples({"x": pictures[20:]}, np.arange(20) % 4, **known),
        without=("rounding", "equalization"),
        bench=False,
        waive=("smaller", "faster"),
        **given,
    )


def built(preprocess: ImagePreprocess) -> Model:
    example = {"x": torch.zeros(preprocess.shape)}
    return Model.from_module(network("rgb"), example, preprocess=preprocess, name="border")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with artifacts of both kinds, and beside it what others' borders give."""
    folder = tmp_path_factory.mktemp("border")
    model, store = built(KINDS["rgb"]), Store(folder / "store")
    wanted = request(
        KINDS["rgb"], model, ios=("float32", "uint8"), max_float_ops=0, out=folder / "bundle"
    )
    result = export_bundle(model, wanted, store=store)
    assert result.failed == ()
    validate(dict(result.document))
    rows = {a["id"]: a for a in result.document["artifacts"]}
    assert [rows[k]["io"] for k in ("onnxruntime-w8a8", "onnxruntime-w8a8-uint8")] == [
        "float32",
        "uint8",
    ]
    # Their results are float, so not the plan's own to the bit, but both files' are the same ones.
    assert min(a["parity"]["sqnr_db"] for a in rows.values()) > 100
    assert len({a["parity"]["sqnr_db"] for a in rows.values()}) == 1
    return folder


def test_a_bundle_holds_and_proves_both(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((made / "bundle/manifest.json").read_text())
    validate(manifest)
    assert manifest["golden"]["source"] == "pictures"
    assert manifest["golden"]["pictures"]["n"] == 4
    picture = photographs(40)[20]
    with Bundle.open(made / "bundle") as bundle:
        assert bundle.artifact(target="onnxruntime").id == "onnxruntime-w8a8"
        taking = bundle.artifact(target="onnxruntime", io="uint8")
        assert taking.border is not None and taking.border.taken == "RGB"
        answers = []
        for artifact, value in (
            (taking, KINDS["rgb"].pixels(picture)),
            (bundle.artifact("onnxruntime-w8a8"), KINDS["rgb"].apply(picture)),
        ):
            session = bundle.session(artifact)
            assert session.signature == artifact.signature
            found = bundle.check_golden(session)
            assert (found.passed, found.pictures, found.misread) == (True, 4, ())
            answers.append(session.run({"x": value}))
        np.testing.assert_array_equal(*(next(iter(a.values())) for a in answers))
    assert main(["verify", str(made / "bundle"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = [c["name"] for c in document["checks"] if "pictures:" in c["name"]]
    assert names == [f"onnxruntime-w8a8{io}/pictures:x" for io in ("", "-uint8")]
    assert main(["inspect", str(made / "bundle")]) == 0
    assert "onnxruntime-w8a8-uint8 take pixels" in capsys.readouterr().out


def plant(made: Path, out: Path, change: Callable[[bytes], bytes]) -> Path:
    """The bundle with another file in place of the one that takes pixels, its hashes put right."""
    shutil.copytree(made / "bundle", out)
    manifest = json.loads((out / "manifest.json").read_text())
    name = "artifacts/onnxruntime-w8a8-uint8/model.onnx"
    data = change((out / name).read_bytes())
    (out / name).write_bytes(data)
    sha = hashlib.sha256(data).hexdigest()
    for entry in [*manifest["files"], *manifest["artifacts"], *manifest["artifacts"][1]["files"]]:
        if entry["path"] == name:
            entry |= {"bytes": len(data), "sha256": sha}
    (out / "manifest.json").write_bytes(canonical_json(manifest))
    return out


def altered(data: bytes, name: str, change: Callable[[Any], Any]) -> bytes:
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(data)
    (value,) = [i for i in model.graph.initializer if i.name.startswith(name)]
    new = numpy_helper.from_array(change(numpy_helper.to_array(value)), value.name)
    value.CopyFrom(new)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("what", ["mean", "colours"])
def test_a_wrong_border_is_found(
    made: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(data: bytes) -> bytes:
        if what == "mean":  # a tenth of the range off
            return altered(data, "picture_offset", lambda v: v + np.float32(0.4))
        return altered(data, "first_weight", lambda v: np.ascontiguousarray(v[:, ::-1]))

    planted = plant(made, tmp_path / "planted", change)
    assert main(["verify", str(planted), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    verdicts = {a["id"]: a["passed"] for a in document["artifacts"]}
    assert verdicts == {"onnxruntime-w8a8": True, "onnxruntime-w8a8-uint8": False}
    with Bundle.open(planted) as bundle:
        assert not bundle.check_golden(bundle.session(bundle.artifacts[1])).passed


def test_another_preprocessing_than_the_bundles_is_found(made: Path, tmp_path: Path) -> None:
    planted = plant(made, tmp_path / "planted", lambda data: data)
    manifest = json.loads((planted / "manifest.json").read_text())
    manifest["preprocess"]["antialias"] = False
    (planted / "manifest.json").write_bytes(canonical_json(manifest))
    with Bundle.open(planted) as bundle:
        for artifact in bundle.artifacts:
            found = bundle.check_golden(bundle.session(artifact))
            assert not found.passed and found.misread == (0, 1, 2, 3)


def test_bundles_are_told_apart_by_their_borders(made: Path, tmp_path: Path) -> None:
    planted = plant(made, tmp_path / "planted", lambda data: data)
    manifest = json.loads((planted / "manifest.json").read_text())
    manifest["artifacts"][1]["border"]["offset"][0] += 0.5
    (planted / "manifest.json").write_bytes(canonical_json(manifest))
    with Bundle.open(made / "bundle") as old, Bundle.open(planted) as new:
        told = json.dumps(diff(old, new))
    assert "border offset" in told
