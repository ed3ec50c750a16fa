"""Picture borders: the graph in front of a model, its integers, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.bench.measure import BenchRequest, _default_pairs
from edgekit.cli._pictures import border_check
from edgekit.compress.borders import input_ranges
from edgekit.compress.evaluate import evaluate
from edgekit.compress.graph import canonical, graph_module, program_digest
from edgekit.compress.picture import find_prelude, fitted, with_border
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.taps import tap
from edgekit.data import ArraySamples, Samples
from edgekit.errors import BadData, TrustError, UnsupportedError
from edgekit.export.sides import bordered_model, bordered_samples, check_io, uneven
from edgekit.model import Model
from edgekit.names import NHWC_IO, PICTURE_IO
from edgekit.runtime.border import PictureBorder
from edgekit.runtime.golden import from_pictures
from edgekit.runtime.manifest import canonical_json as canonical_bytes
from edgekit.runtime.manifest import parse_manifest
from edgekit.runtime.preprocess import ImagePreprocess, TextPreprocess
from edgekit.signature import Signature, TensorSpec
from edgekit.targets._border import with_border_roles
from edgekit.targets._reasons import Op

UNEVEN: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
KINDS = {
    "rgb": ImagePreprocess(12, 12, resize="none", **UNEVEN),
    "bgr": ImagePreprocess(12, 12, resize="none", color="BGR", **UNEVEN),
    "rgb-last": ImagePreprocess(12, 12, resize="none", layout="NHWC", **UNEVEN),
    "bgr-last": ImagePreprocess(12, 12, resize="none", color="BGR", layout="NHWC", **UNEVEN),
    "bgr-sum": ImagePreprocess(12, 12, resize="none", color="BGR", **UNEVEN),
    "grey": ImagePreprocess(12, 12, 1, "GRAY", resize="none", mean=(0.45,), std=(0.22,)),
}


class Net(nn.Module):
    """A convolution, a product with constants that shares the operators of a border, a layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, channels = kind, KINDS[kind].channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.linear = nn.Linear(channels * 144, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind.endswith("last"):
            x = x.permute(0, 3, 1, 2)
        y = torch.relu(self.conv(x)) * 0.5
        if self.kind == "bgr-sum":
            y = y + x  # so that the channels can't be reversed in the convolution alone
        return self.linear(y.flatten(1))


@dataclasses.dataclass(frozen=True)
class Made:
    """A model and its plan, with the border in front and without."""

    preprocess: ImagePreprocess
    program: torch.export.ExportedProgram
    plan: QuantPlan
    bordered: torch.export.ExportedProgram
    moved: QuantPlan
    border: PictureBorder
    pictures: np.ndarray[Any, Any]

    def tensors(self) -> np.ndarray[Any, Any]:
        return np.stack([self.preprocess.apply(p) for p in self.pictures])

    def pixels(self) -> np.ndarray[Any, Any]:
        return np.stack([self.preprocess.pixels(p) for p in self.pictures])

    def channels_last(self) -> np.ndarray[Any, Any]:
        return np.stack([self.preprocess.for_io(NHWC_IO).apply(p) for p in self.pictures])


def answers(program: Any, plan: QuantPlan, feeds: Any, **options: Any) -> Any:
    return evaluate(render(program, plan, "fake", **options), {"x": feeds}, ["x"], ["y"])["y"]


def make(kind: str, scheme: str = "w8a8", io: str = PICTURE_IO) -> Made:
    torch.manual_seed(0)
    preprocess = KINDS[kind]
    pictures = np.random.default_rng(0).integers(0, 256, (12, 12, 12, 3), dtype=np.uint8)
    inputs = [(torch.from_numpy(preprocess.apply(p)),) for p in pictures]
    program = canonical(torch.export.export(Net(kind).eval(), inputs[0], strict=False))
    plan = QuantPlan("fp32", program_digest(program))
    if scheme != "fp32":
        plan = quantize(program, inputs, scheme=scheme)
    signature = Signature((TensorSpec("x", preprocess.shape),))
    border = PictureBorder.of(signature, preprocess, io)
    border = fitted(border, preprocess.table, program, plan, 0)
    return Made(preprocess, program, plan, *with_border(program, plan, border, 0), border, pictures)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_become_the_very_integers_that_the_plan_makes_of_the_picture(kind: str) -> None:
    made = make(kind)
    want = answers(made.program, made.plan, made.tensors())
    got = answers(made.bordered, made.moved, made.pixels())
    assert len({w.tobytes() for w in want}) == len(want)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        answers(made.bordered, made.moved, made.pixels(), pixel_rows=True), want
    )
    assert made.border.differs == 0
    assert made.moved.program_digest == program_digest(made.bordered)
    prelude = find_prelude(graph_module(made.bordered))
    assert prelude is not None
    # Only where something else than a convolution reads it is a picture turned around.
    assert (prelude.flip is not None) == (kind == "bgr-sum")
    swapped = answers(made.bordered, made.moved, made.pixels()[..., ::-1].copy())
    assert kind == "grey" or (swapped != want).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_normalized_picture_with_its_channels_last_is_the_model_s_tensor(kind: str) -> None:
    made = make(kind, io=NHWC_IO)
    taken = made.channels_last()
    assert taken.shape == (12, 1, 12, 12, KINDS[kind].channels)
    for tensor, picture in zip(made.tensors(), taken, strict=True):
        np.testing.assert_array_equal(made.border.apply(picture), tensor)
        np.testing.assert_array_equal(made.border.arrange(tensor), picture)
    assert (set(made.border.factor), set(made.border.offset)) == ({1.0}, {0.0})
    want = answers(made.program, made.plan, made.tensors())
    np.testing.assert_array_equal(answers(made.bordered, made.moved, taken), want)
    prelude = find_prelude(graph_module(made.bordered))
    assert prelude is not None and prelude.normalized
    assert (prelude.flip is not None) == (kind == "bgr-sum")
    swapped = answers(made.bordered, made.moved, taken[..., ::-1].copy())
    assert kind == "grey" or (swapped != want).any()
    # Its range is that of the model's own tensor.
    own = input_ranges(made.program, made.plan, ["x"])["x"]
    assert input_ranges(made.bordered, made.moved, ["x"])["x"] == pytest.approx(own)


@pytest.mark.parametrize("kind", ["bgr", "grey"])
def test_in_float_the_border_is_the_preprocessing(kind: str) -> None:
    made = make(kind, "fp32")
    want = answers(made.program, made.plan, made.tensors())
    np.testing.assert_allclose(
        answers(made.bordered, made.moved, made.pixels()), want, rtol=1e-5, atol=1e-6
    )
    tensors = np.stack([made.border.apply(p) for p in made.pixels()])
    np.testing.assert_allclose(tensors, made.tensors(), rtol=1e-5, atol=1e-6)


def test_a_program_with_a_border_is_tapped_as_any_other() -> None:
    made = make("bgr")
    tapped = tap(made.bordered, made.moved)
    assert find_prelude(graph_module(tapped.program)) is not None
    names = {n.name for n in graph_module(tapped.program).graph.nodes}
    assert {e.node for e in tapped.plan.edges} <= names
    assert len(tapped.plan.activations()) == len(made.plan.activations())


def test_the_range_of_pixels_is_told_in_pixels() -> None:
    made = make("rgb")
    low, high = input_ranges(made.bordered, made.moved, ["x"])["x"]
    assert -40 < low <= 1 and 254 <= high < 300


def test_a_value_next_to_the_middle_of_two_steps_goes_where_the_plan_rounds_it() -> None:
    made = make("grey")
    edge = next(e for e in made.plan.edges if e.kind == "activation")
    signature = Signature((TensorSpec("x", made.preprocess.shape),))

    def fit(step: float, offset: float) -> PictureBorder:
        """The border where a pixel is ``step`` steps further than the one before it."""
        scale, zero = 1 / 255, -128
        plan = dataclasses.replace(
            made.plan,
            edges=tuple(
                dataclasses.replace(e, scale=(scale,), zero_point=(zero,)) if e is edge else e
                for e in made.plan.edges
            ),
        )
        preprocess = dataclasses.replace(
            made.preprocess, scale=step / 255, mean=(-offset / 255,), std=(1.0,)
        )
        border = PictureBorder.of(signature, preprocess)
        return fitted(border, preprocess.table, made.program, plan, 0)

    clear, tie = fit(1.0, 0.2), fit(0.9, 0.05)
    assert (clear.offset[0], clear.differs) == (np.float32(0.2 / 255), 0)
    # 0.9 * 5 + 0.05 and its like lie 0.05 from a middle; 0.9 * p + 0.05 meets 0.5 at p = 0.5 only.
    assert tie.differs == 0
    # Every pixel lies in the middle: half of them go up and half down, which no offset can follow.
    middle = fit(1.0, 0.5)
    assert middle.differs > 0
    assert abs(middle.offset[0] - 0.5 / 255) <= 0.5 / 255


def test_pixels_are_rgb_resized_and_cropped_and_in_eight_bits() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    cropped = ImagePreprocess(16, 16, color="BGR", resize_mode="shorter-side", resize_size=20)
    pixels = cropped.pixels(picture)
    assert (pixels.shape, pixels.dtype) == ((1, 16, 16, 3), np.uint8)
    border = PictureBorder.of(Signature((TensorSpec("x", cropped.shape),)), cropped)
    np.testing.assert_allclose(border.apply(pixels), cropped.apply(picture), atol=1e-6)
    smooth = dataclasses.replace(cropped, antialias=False, color="RGB")
    off = smooth.pixels(picture)[0].transpose(2, 0, 1) / 255 - smooth.apply(picture)[0]
    assert 0 < np.abs(off).max() <= 0.5 / 255 + 1e-6


class Two(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a + b).mean((2, 3))


def model(kind: str = "rgb", module: nn.Module | None = None, **given: Any) -> Model:
    preprocess = given.pop("preprocess", KINDS[kind])
    examples = given.pop("examples", {"x": torch.zeros(KINDS[kind].shape)})
    return Model.from_module(module or Net(kind).eval(), examples, preprocess=preprocess, **given)


def test_models_that_take_no_one_picture_are_refused() -> None:
    text = TextPreprocess(("[UNK]", "[CLS]", "[SEP]", "[PAD]"), ids_name="a", mask_name="b")
    for preprocess, words in ((None, "has none"), (text, "has one of texts")):
        with pytest.raises(UnsupportedError, match=words):
            PictureBorder.of(Signature((TensorSpec("x", (1, 3, 12, 12)),)), preprocess)
    zeros = torch.zeros(1, 3, 12, 12)
    two = model(module=Two().eval(), examples={"a": zeros, "b": zeros})
    with pytest.raises(UnsupportedError, match=r"of this model's 2 do \(a, b\)"):
        check_io(two, ["uint8"], ["openvino"], None)
    with pytest.raises(UnsupportedError, match="io 'float32-nhwc' needs one input"):
        check_io(two, [NHWC_IO], ["tflite"], None)
    pairs = Signature((TensorSpec("x", (2, 3, 12, 12)),))
    with pytest.raises(UnsupportedError, match="one picture at a time"):
        PictureBorder.of(pairs, KINDS["rgb"])


def test_targets_and_engines_without_borders_are_refused() -> None:
    net = model()
    check_io(net, ["float32"], ["null"], None)
    with pytest.raises(UnsupportedError, match="target 'null' makes no artifacts of io 'uint8'"):
        check_io(net, ["uint8"], ["openvino", "null"], None)
    with pytest.raises(UnsupportedError, match="engine 'nncf'"):
        check_io(net, ["uint8"], ["openvino"], "nncf")
    ios = ["float32", "uint8", NHWC_IO]
    check_io(net, ios, ["tflite"], None)
    for target in ("openvino", "onnxruntime", "executorch", "torch-mobile", "coreml"):
        with pytest.raises(UnsupportedError, match="channels last is what LiteRT's apps") as error:
            check_io(net, ios, ["tflite", target], None)
        assert f"target {target!r} makes no artifacts of io 'float32-nhwc'" in error.value.message
        assert "--io float32" in error.value.hint


def test_channels_that_are_normalized_by_other_numbers_are_told() -> None:
    assert uneven(KINDS["rgb"]) and not uneven(KINDS["grey"]) and not uneven(None)
    assert not uneven(ImagePreprocess(12, 12, mean=(0.5,) * 3, std=(0.2,) * 3))
    assert uneven(ImagePreprocess(12, 12, std=(0.2, 0.2, 0.3)))


def test_samples_give_their_pictures_or_say_that_they_have_none() -> None:
    net = model("bgr")
    pictures = np.random.default_rng(2).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    known = {"signature": net.signature, "preprocess": net.preprocess}
    held = ArraySamples({"x": pictures}, [0, 1, 2], **known)
    samples = bordered_samples(net, held, PICTURE_IO)
    assert samples is not None
    np.testing.assert_array_equal(samples.feed(1)["x"], pictures[1:2])
    normalized = bordered_samples(net, held, NHWC_IO)
    assert normalized is not None and (len(normalized), normalized.label(2)) == (3, 2)
    last = KINDS["bgr"].for_io(NHWC_IO).apply(pictures[1])
    np.testing.assert_array_equal(normalized.feed(1)["x"], last)
    tensors = np.zeros((3, 3, 12, 12), np.float32)
    with pytest.raises(BadData, match="the model's tensors alone"):
        bordered_samples(net, ArraySamples({"x": tensors}, **known), PICTURE_IO)
    # Of tensors alone, pictures can't be made; but they can be put in another order.
    made = bordered_samples(net, ArraySamples({"x": tensors}, **known), NHWC_IO)
    assert made is not None and made.feed(0)["x"].shape == (1, 12, 12, 3)

    class Liar(ArraySamples):
        def picture(self, i: int) -> Any:
            return pictures[0]

    lying: Samples = Liar({"x": pictures}, **known)
    wrong = bordered_samples(net, lying, PICTURE_IO)
    assert wrong is not None
    with pytest.raises(BadData, match="picture of sample 1 does not give its tensor"):
        wrong.feed(1)


def test_the_bordered_model_answers_as_the_model_does() -> None:
    net = model("bgr")
    picture = np.random.default_rng(3).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    taking = bordered_model(net, PICTURE_IO)
    assert taking.signature.inputs == (TensorSpec("x", (1, 12, 12, 3), "uint8", "NHWC"),)
    (mine,) = taking.run(torch.from_numpy(KINDS["bgr"].pixels(picture)))
    (want,) = net.run(torch.from_numpy(KINDS["bgr"].apply(picture)))
    torch.testing.assert_close(mine, want)
    last = bordered_model(net, NHWC_IO)
    assert last.signature.inputs == (TensorSpec("x", (1, 12, 12, 3), "float32", "NHWC"),)
    (mine,) = last.run(torch.from_numpy(KINDS["bgr"].for_io(NHWC_IO).apply(picture)))
    assert torch.equal(mine, want)


@pytest.mark.parametrize("io", ["uint8", "float32", NHWC_IO])
def test_golden_pictures_tell_another_preprocessing(io: str) -> None:
    right, pixels = KINDS["bgr"].for_io(io), io == "uint8"
    pictures = np.random.default_rng(4).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    made = [right.pixels(p) if pixels else right.apply(p) for p in pictures]
    feeds = {"x": np.concatenate(made)}
    shape = (1, 12, 12, 3) if pixels else right.shape
    spec = TensorSpec("x", shape, "uint8" if pixels else "float32")
    kept = dict(enumerate(pictures[:2]))
    again, misread = from_pictures(feeds, kept, right, spec)
    assert misread == ()
    np.testing.assert_array_equal(again["x"], feeds["x"])
    wrong = dataclasses.replace(right, resize="bilinear", resize_mode="shorter-side")
    wrong = dataclasses.replace(wrong, resize_size=14)
    assert from_pictures(feeds, kept, wrong, spec)[1] == (0, 1)
    mean = dataclasses.replace(right, mean=(0.5, 0.456, 0.406))
    # The mean is in the artifact that takes pixels, so nothing of it shows in them.
    assert from_pictures(feeds, kept, mean, spec)[1] == (() if pixels else (0, 1))
    with pytest.raises(BadData, match="golden picture 7"):
        from_pictures(feeds, {7: pictures[0]}, right, spec)


def test_a_manifest_states_borders_that_fit_or_is_refused(
    bundle_contents: tuple[dict[str, bytes], dict[str, Any]],
) -> None:
    _, manifest = copy.deepcopy(bundle_contents)
    image = TensorSpec("x", (1, 3, 12, 12), layout="NCHW")
    signature = Signature((image,), Signature.from_json(manifest["signature"]).outputs)
    manifest["signature"] = signature.to_json()
    border, last = (PictureBorder.of(signature, KINDS["rgb"], io) for io in (PICTURE_IO, NHWC_IO))
    entry = manifest["artifacts"][0]
    taken = border.signature(signature).to_json()
    entry |= {"io": "uint8", "border": border.to_json(), "signature": taken}
    read = parse_manifest(canonical_bytes(manifest)).artifacts
    assert read[0].border == border
    assert read[0].signature.inputs == (border.spec,)
    assert (read[1].border, read[1].signature) == (None, signature)
    for changes in (
        {"io": "float32"},
        {"io": NHWC_IO},
        {"io": NHWC_IO, "signature": last.signature(signature).to_json()},
        {"border": {**border.to_json(), "input": "y"}},
        {"border": None},
        {"signature": None},
        {"signature": signature.to_json()},
        {"border": {**border.to_json(), "width": 13}},
        {"border": {**border.to_json(), "factor": [1.0]}},
        {"border": {**border.to_json(), "more": 1}},
    ):
        wrong = {**manifest, "artifacts": [{**entry, **changes}, *manifest["artifacts"][1:]]}
        with pytest.raises(TrustError, match="null-fp32"):
            parse_manifest(canonical_bytes(wrong))
    entry |= {"io": NHWC_IO, "border": last.to_json()}
    entry["signature"] = last.signature(signature).to_json()
    read = parse_manifest(canonical_bytes(manifest)).artifacts
    assert (read[0].border, read[0].signature.inputs) == (last, (last.spec,))
    entry |= {"io": "uint8", "signature": taken}
    entry["border"] = {**border.to_json(), "factor": [1.0] * 3, "offset": [0.0] * 3}
    assert parse_manifest(canonical_bytes(manifest)).artifacts[0].border != last


def test_a_model_that_takes_such_a_picture_keeps_its_signature(
    bundle_contents: tuple[dict[str, bytes], dict[str, Any]],
) -> None:
    _, manifest = copy.deepcopy(bundle_contents)
    image = TensorSpec("x", (1, 12, 12, 3), layout="NHWC")
    signature = Signature((image,), Signature.from_json(manifest["signature"]).outputs)
    border = PictureBorder.of(signature, KINDS["rgb-last"], NHWC_IO)
    manifest["signature"] = signature.to_json()
    own = {"border": border.to_json(), "signature": signature.to_json()}
    manifest["artifacts"][0] |= {"io": NHWC_IO, **own}
    assert parse_manifest(canonical_bytes(manifest)).artifacts[0].border == border


def test_only_what_a_border_needs_is_counted_as_one() -> None:
    chain = [
        Op("Cast", ("x",), ("a",), "float"),
        Op("Mul", ("a",), ("b",), "float"),
        Op("Add", ("b",), ("c",), "float"),
        Op("Transpose", ("c",), ("d",), "move"),
        Op("QuantizeLinear", ("d",), ("e",), "quantize"),
        Op("QLinearConv", ("e",), ("f",), "integer"),
        Op("Softmax", ("f",), ("g",), "float"),
    ]
    made, ends = with_border_roles(chain, {"x"}, {"Conv"})
    assert [op.role for op in made] == [*["border"] * 4, "quantize", "integer", "float"]
    assert ends == {4}
    longer = [
        *chain[:3],
        Op("Sin", ("c",), ("c2",), "float"),
        Op("Transpose", ("c2",), ("d",), "move"),
    ]
    assert with_border_roles([*longer, *chain[4:]], {"x"}, {"Conv"})[0][0].role == "float"
    unquantized = [*chain[:4], Op("Conv", ("d",), ("e",), "float")]
    assert with_border_roles(unquantized, {"x"}, {"Conv"})[0] == unquantized
    assert with_border_roles(chain, set(), {"Conv"})[0] == chain


def test_artifacts_are_measured_beside_what_takes_the_same_and_with_their_border() -> None:
    tensor = Signature((TensorSpec("x", KINDS["rgb"].shape),))
    pixels, last = (
        PictureBorder.of(tensor, KINDS["rgb"], io).signature(tensor) for io in (PICTURE_IO, NHWC_IO)
    )
    asked = [
        BenchRequest(f"{scheme}{suffix}", "tflite", Path("x"), signature, scheme=scheme)
        for suffix, signature in (("", tensor), ("-uint8", pixels), ("-last", last))
        for scheme in ("fp32", "w8a8")
    ]
    assert set(_default_pairs(asked)) == {
        ("fp32", "w8a8"),
        ("fp32-uint8", "w8a8-uint8"),
        ("fp32-last", "w8a8-last"),
        ("fp32", "fp32-last"),
        ("w8a8", "w8a8-last"),
        # What takes pixels does all that the other does, and normalizes.
        ("fp32-last", "fp32-uint8"),
        ("w8a8-last", "w8a8-uint8"),
        ("fp32", "fp32-uint8"),
        ("w8a8", "w8a8-uint8"),
    }


def test_a_border_is_written_and_read() -> None:
    border = make("bgr").border
    assert PictureBorder.from_json(border.to_json()) == border
    last = make("bgr", io=NHWC_IO).border
    assert PictureBorder.from_json(last.to_json(), NHWC_IO) == last
    with pytest.raises(BadData, match="normalized already"):
        PictureBorder.from_json(border.to_json(), NHWC_IO)
    with pytest.raises(BadData, match="picture border"):
        PictureBorder.from_json({"input": "x"})


def test_a_bundle_can_not_state_another_border_than_its_preprocessing() -> None:
    step = ImagePreprocess(height=4, width=5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model = Signature((TensorSpec("x", step.shape),), (TensorSpec("y", (1, 2)),))
    right = PictureBorder.of(model, step, "uint8")
    bundle: Any = SimpleNamespace(signature=model, preprocess=lambda: step)

    def judged(border: PictureBorder) -> tuple[bool | None, str]:
        artifact: Any = SimpleNamespace(border=border, io="uint8")
        (check,) = border_check(bundle, artifact)
        return check.passed, check.detail

    assert judged(right)[0] is True
    moved = tuple(o + f for o, f in zip(right.offset, right.factor, strict=True))
    assert judged(dataclasses.replace(right, offset=moved, differs=3))[0] is True
    far = tuple(o + 3 * f for o, f in zip(right.offset, right.factor, strict=True))
    for wrong, word in (
        ({"offset": far}, "offset"),
        ({"factor": (9.0, 9.0, 9.0)}, "factor"),
        ({"color": "BGR"}, "color"),
        ({"layout": "NHWC"}, "layout"),
    ):
        fields: Any = wrong
        passed, said = judged(dataclasses.replace(right, **fields))
        assert passed is False and f"another {word}" in said
    tensors: Any = SimpleNamespace(border=None, io="float32")
    assert border_check(bundle, tensors) == ()
