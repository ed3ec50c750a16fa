"""Artifacts that take a picture, in LiteRT and as Core ML images: the plan's own integers.

Each is held against the plan's evaluation of the program with the picture border in front, and
against the artifact that takes the model's own tensor, fed by the model's own preprocessing.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.dynamic import as_computed
from edgekit.compress.graph import canonical, graph_module, program_digest
from edgekit.compress.picture import fitted, with_border
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.weights import quantize_weights
from edgekit.errors import BadData
from edgekit.names import CALIBRATED, NHWC_IO, PICTURE_IO, WEIGHTS
from edgekit.runtime.border import PictureBorder
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.runtime.session import read_signature
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import find, open_session
from edgekit.targets._coreml_classifier import LABEL, PROBABILITIES
from edgekit.targets._coreml_package import read
from edgekit.targets._coreml_program import program_of

pytestmark = pytest.mark.runtime

LABELS = ("ant", "bee", "cat", "bee")
UNEVEN: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PREPROCESSES = {
    "rgb": ImagePreprocess(16, 16, **UNEVEN),
    "bgr": ImagePreprocess(16, 16, color="BGR", **UNEVEN),
    "bgr-last": ImagePreprocess(16, 16, color="BGR", layout="NHWC", **UNEVEN),
    "grey": ImagePreprocess(16, 16, channels=1, color="GRAY", mean=(0.5,), std=(0.3,)),
    "flat": ImagePreprocess(16, 16, **UNEVEN),
    "skip": ImagePreprocess(16, 16, color="BGR", **UNEVEN),
}


class _Last(nn.Module):
    """A network that takes its channels last."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.permute(0, 3, 1, 2))


class _Skip(nn.Module):
    """One whose input goes to an addition too, so that no layer can take its channels in the other
    order, and is flattened with its channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3 * 16 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear((x + self.conv(x)).flatten(1))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "skip":
        return _Skip().eval()
    if kind == "flat":  # what is read first wants the channels first
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()
    layers = (
        nn.Conv2d(PREPROCESSES[kind].channels, 8, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    made = nn.Sequential(*layers)
    return (_Last(made) if kind == "bgr-last" else made).eval()


@dataclass(frozen=True)
class Case:
    """A program that takes a picture, its plan, and the files of both borders."""

    io: str
    border: PictureBorder
    program: torch.export.ExportedProgram
    plan: QuantPlan
    signature: Signature
    taking: Path
    own: Path | None
    pictures: list[np.ndarray[Any, Any]]
    preprocess: ImagePreprocess

    def feed(self, picture: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        if self.io == PICTURE_IO:
            return {"image": self.preprocess.pixels(picture)}
        return {"image": self.preprocess.for_io(self.io).apply(picture)}


def case(
    folder: Path, target_id: str, kind: str, scheme: str, *, own: bool, io: str = PICTURE_IO
) -> Case:
    target, preprocess = find(target_id), PREPROCESSES[kind]
    chance = np.random.default_rng(0)
    pictures = [chance.integers(0, 256, (20, 18, 3), dtype=np.uint8) for _ in range(8)]
    inputs = [(torch.from_numpy(preprocess.apply(p)),) for p in pictures]
    program = canonical(torch.export.export(network(kind), inputs[0], strict=False))
    if scheme in WEIGHTS:
        whole = quantize_weights(program, scheme)
        plan = as_computed(graph_module(program), whole, target)
    elif scheme in CALIBRATED:
        plan = quantize(program, inputs, scheme=scheme)
    else:
        plan = QuantPlan("fp32", program_digest(program))
    outputs = (TensorSpec("scores", (1, 4), labels=LABELS),)
    signature = Signature((TensorSpec("image", preprocess.shape),), outputs)
    border = PictureBorder.of(signature, preprocess, io)
    border = fitted(border, preprocess.table, program, plan, 0)
    bordered, moved = with_border(program, plan, border, 0)
    files = [folder / name / f"model{target.suffix}" for name in ("taking", "own")]
    for file in files:
        file.parent.mkdir(parents=True)
    target.convert(bordered, moved, border.signature(signature), files[0])
    if own:
        target.convert(program, plan, signature, files[1])
    taken = border.signature(signature)
    mine = files[1] if own else None
    return Case(io, border, bordered, moved, taken, files[0], mine, pictures, preprocess)


def limit_of(made: Case, exact: bool) -> float:
    """How far answers may be from the plan's: not at all where the runtime's kernels are exact."""
    if exact:
        return 0.0
    if made.plan.scheme == "w8a16":  # 2 steps, 8 of which are one (`edgekit.parity`)
        return 16 * list(made.plan.activations().values())[-1].scale[0]
    return 2e-3 if made.plan.scheme == "fp16" else 5e-5


def check(made: Case, target_id: str, *, exact: bool) -> None:
    """The file answers as the plan does, and as the file of the model's own tensor does."""
    target = find(target_id)
    session = open_session(target, made.taking, made.signature, 1)
    plan = render(made.program, made.plan, "fake")
    got = [session.run(made.feed(p))["scores"] for p in made.pictures]
    assert len({g.tobytes() for g in got}) > 4, "the pictures make a difference"
    with torch.no_grad():
        feeds = [torch.from_numpy(made.feed(p)["image"]) for p in made.pictures]
        want = [plan(feed)[0].numpy() for feed in feeds]
    limit = limit_of(made, exact)
    assert max(np.abs(g - w).max() for g, w in zip(got, want, strict=True)) <= limit
    swapped = [
        session.run({"image": made.feed(p)["image"][..., ::-1].copy()}) for p in made.pictures
    ]
    if made.preprocess.channels == 3:
        assert any((s["scores"] != g).any() for s, g in zip(swapped, got, strict=True))
    if made.own is not None:
        inputs = (TensorSpec("image", made.preprocess.shape),)
        beside = open_session(target, made.own, Signature(inputs, made.signature.outputs), 1)
        for picture, mine in zip(made.pictures, got, strict=True):
            other = beside.run({"image": made.preprocess.apply(picture)})["scores"]
            # The same integers of 8 bits go in. Steps of 16 bits are as small as float32's errors.
            assert np.abs(mine - other).max() <= limit
    assert made.border.differs == 0 or made.plan.scheme == "w8a16"


def lean(made: Case, target_id: str, *, rounds: bool) -> None:
    """Nothing of the border counts as computed in float, and no transpose is left."""
    found = find(target_id).inspect(made.taking)
    assert "TRANSPOSE" not in found.ops and "transpose" not in found.ops
    assert found.boundary_ops >= (3 if rounds else 2)
    assert any(r.why.startswith("makes the model's input") for r in found.reasons) or not rounds
    if rounds:
        assert (found.float_ops, found.first_fallback) == (0, None)
    if target_id == "tflite":
        assert found.undelegated_ops == 0, found.first_undelegated


# -- LiteRT ---------------------------------------------------------------------------------------


def test_litert_makes_the_plans_integers_of_pixels_within_xnnpack(tmp_path: Path) -> None:
    """Uneven mean and deviation, and a model that takes blue first with its channels first."""
    made = case(tmp_path, "tflite", "bgr", "w8a8", own=False)
    check(made, "tflite", exact=True)
    lean(made, "tflite", rounds=True)
    assert read_signature("tflite", made.taking).inputs == (
        TensorSpec("image", (1, 16, 16, 3), "uint8"),
    )
    stored = find("tflite").stored(made.taking)
    assert [1.0] not in [list(s.scale) for s in stored], "the pixels' own scale is no plan's"


def pairs(everywhere: tuple[str, ...], once: tuple[str, ...]) -> list[tuple[str, str]]:
    """Kinds and schemes: all kinds in some schemes, and in the others the kind that asks most."""
    return [(k, s) for k in PREPROCESSES for s in everywhere] + [("skip", s) for s in once]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "scheme"), pairs(("w8a8", "fp32"), ("w8a8-dyn", "w8", "fp16", "w8a16"))
)
def test_litert_takes_pixels_of_every_kind(tmp_path: Path, kind: str, scheme: str) -> None:
    made = case(tmp_path, "tflite", kind, scheme, own=scheme in ("w8a8", "fp32", "w8a16"))
    # LiteRT's own kernels, which w8a16 needs, round their sums otherwise than the plan.
    check(made, "tflite", exact=scheme == "w8a8")
    if kind not in ("skip", "flat") and scheme in ("w8a8", "fp32"):
        lean(made, "tflite", rounds=scheme == "w8a8")


def test_litert_takes_a_normalized_picture_with_its_channels_last(tmp_path: Path) -> None:
    """The first layers can't take blue first in the other order here, so the file reorders it."""
    made = case(tmp_path, "tflite", "skip", "w8a8", own=False, io=NHWC_IO)
    check(made, "tflite", exact=True)
    taken = TensorSpec("image", (1, 16, 16, 3))
    assert read_signature("tflite", made.taking).inputs == (taken,)
    found = find("tflite").inspect(made.taking)
    assert (found.float_ops, found.undelegated_ops) == (0, 0)
    assert any(r.why.startswith("makes the model's input") for r in found.reasons)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "scheme"), pairs(("w8a8", "fp32"), ("w8a8-dyn", "w8", "fp16", "w8a16"))
)
def test_litert_takes_channels_last_of_every_kind(tmp_path: Path, kind: str, scheme: str) -> None:
    own = scheme in ("w8a8", "fp32", "w8a16")
    made = case(tmp_path, "tflite", kind, scheme, own=own, io=NHWC_IO)
    check(made, "tflite", exact=scheme == "w8a8")
    found = find("tflite").inspect(made.taking)
    if kind not in ("skip", "flat"):
        assert "TRANSPOSE" not in found.ops
        convolutions = [found.ops.get(k, 0) for k in ("CONV_2D", "DEPTHWISE_CONV_2D")]
        assert sum(convolutions) == 1, "the model's own"
    if scheme == "w8a8":
        assert (found.float_ops, found.first_fallback) == (0, None)
    if scheme != "w8a16":
        assert found.undelegated_ops == 0, found.first_undelegated


# -- Core ML --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(tmp_path_factory.mktemp("image"), "coreml", "skip", "w8a8", own=False)


def test_core_ml_takes_an_image_and_scales_each_channel_by_its_own(image: Case) -> None:
    check(image, "coreml", exact=True)
    lean(image, "coreml", rounds=True)
    package = read(image.taking)
    (feature,) = package.spec.description.input
    kind = feature.type.imageType
    assert (kind.width, kind.height) == (16, 16)
    assert kind.colorSpace == kind.ColorSpace.Value("BGR"), "Core ML reorders the colours"
    constants = program_of(package).constants.values()
    for wanted in (image.border.factor, image.border.offset):
        held = [np.ravel(c.value) for c in constants if not isinstance(c.value, str)]
        assert any(h.shape == (3,) and (h == np.float32(wanted)).all() for h in held)
    assert read_signature("coreml", image.taking) == Signature(
        (TensorSpec("image", (1, 16, 16, 3), "uint8"),), (TensorSpec("scores", (1, 4)),)
    )


def test_it_is_a_classifier_with_the_models_labels(image: Case) -> None:
    package = read(image.taking)
    described = package.spec.description
    assert [o.name for o in described.output] == [LABEL, PROBABILITIES, "scores"]
    assert (described.predictedFeatureName, described.predictedProbabilitiesName) == (
        LABEL,
        PROBABILITIES,
    )
    program = program_of(package)
    assert program.classifier is not None
    # A dictionary has each key once, so labels that stand twice are told apart.
    assert program.classifier.labels == ("ant", "bee (1)", "cat", "bee (3)")
    about = {"preprocess": image.preprocess.to_json()}
    target: Any = find("coreml")
    assert target.metadata_faults(image.taking, image.signature, about) == []
    told = target.metadata(image.taking)
    assert told["inputs"] == [{"name": "image", "image": True, "color": "BGR"}]
    assert told["outputs"][-1] == {"name": LABEL, "image": False, "labels": 4}


def test_other_labels_and_colours_are_told(image: Case, tmp_path: Path) -> None:
    copy = tmp_path / "model.mlpackage"
    shutil.copytree(image.taking, copy)
    file = copy / "Data/com.apple.CoreML/model.mlmodel"
    data = file.read_bytes()
    label = b"\n\x03ant"  # as a protobuf has a text of three bytes
    assert data.count(label) == 1
    file.write_bytes(data.replace(label, b"\n\x03owl"))
    target: Any = find("coreml")
    about = {"preprocess": PREPROCESSES["rgb"].to_json()}
    wrong = target.metadata_faults(copy, image.signature, about)
    assert wrong[0] == "'image': its image is BGR, not RGB"
    assert wrong[1].startswith("its classifier's labels are 'owl'")
    plain = Signature((TensorSpec("image", (1, 3, 16, 16)),), (TensorSpec("scores", (1, 4)),))
    assert any("not no image" in w for w in target.metadata_faults(copy, plain, about))


def test_an_image_of_another_size_than_its_program_takes_is_damage(
    image: Case, tmp_path: Path
) -> None:
    package = read(image.taking)
    package.spec.description.input[0].type.imageType.width = 15
    with pytest.raises(BadData, match="not what its program takes"):
        program_of(package)
    package.spec.description.input[0].type.imageType.width = 16
    package.spec.description.predictedFeatureName = "other"
    with pytest.raises(BadData, match="classifier"):
        program_of(package)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scheme"), pairs(("w8a8", "fp16"), ("fp32", "w8", "w4")))
def test_core_ml_takes_images_of_every_kind(tmp_path: Path, kind: str, scheme: str) -> None:
    made = case(tmp_path, "coreml", kind, scheme, own=scheme != "fp32")
    check(made, "coreml", exact=scheme == "w8a8")
    if kind != "flat" and scheme in ("w8a8", "fp32"):
        lean(made, "coreml", rounds=scheme == "w8a8")


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML itself runs on a Mac alone")
def test_core_ml_itself_takes_the_image(image: Case) -> None:
    session = open_session(find("coreml"), image.taking, image.signature, 1)
    assert not getattr(session, "emulated", False)
    plan = render(image.program, image.plan, "fake")
    for picture in image.pictures:
        got = session.run(image.feed(picture))["scores"]
        want = plan(torch.from_numpy(image.feed(picture)["image"]))[0].detach().numpy()
        assert np.abs(got - want).max() <= 0.02
