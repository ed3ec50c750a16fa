"""The plan maker as a whole: what each method does, and what a plan says of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.compress import ptq
from edgekit.compress.graph import canonical, graph_module, program_digest, save_program
from edgekit.compress.plan import QuantPlan
from edgekit.compress.ptq import PLAIN, Methods, Quantized, post_training
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.saturation import overrides
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.export.planning import Planned, methods_without
from edgekit.names import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

Program = torch.export.ExportedProgram
Feeds = list[tuple[torch.Tensor, ...]]


@pytest.fixture(scope="module")
def feeds() -> Feeds:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1, 3, 8, 8, generator=generator) ** 3,) for _ in range(40)]


@pytest.fixture(scope="module")
def program(feeds: Feeds) -> Program:
    """Named as `nn.Sequential` names it, its input is called ``input``."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 4)).eval()
    with torch.no_grad():
        module[0].weight[1] *= 0.1
    return canonical(torch.export.export(module, feeds[0], strict=False))


@pytest.fixture(scope="module")
def made(program: Program, feeds: Feeds) -> Quantized:
    return post_training(program, feeds)


def documents(result: Quantized) -> tuple[str, str]:
    return json.dumps(result.plan.to_json()), program_digest(result.program)


def test_plain_is_calibration_and_nothing_else(program: Program, feeds: Feeds) -> None:
    result = post_training(program, feeds, PLAIN, calibration={"source": "here"})
    plan = quantize(program, feeds, calibration={"source": "here"})
    assert result.program is program
    about = {**plan.calibration, "methods": PLAIN.to_json(), "layer_samples": 40}
    carried = overrides(program, plan)
    assert result.plan == dataclasses.replace(plan, calibration=about, overrides=carried)


def test_a_plan_says_how_it_was_made(made: Quantized) -> None:
    assert made.plan.calibration == {
        "n": 40,
        "observer": "mse",
        "layer_samples": 40,
        "methods": {
            "equalization": True,
            "splitting": True,
            "smoothing": True,
            "ranges": "mse",
            "bias_correction": True,
            "rounding": True,
        },
    }
    assert made.plan.program_digest == program_digest(made.program)
    assert QuantPlan.from_json(json.loads(json.dumps(made.plan.to_json()))) == made.plan


def test_the_same_samples_give_the_same_bytes(
    program: Program, feeds: Feeds, made: Quantized
) -> None:
    digest = program_digest(program)
    torch.manual_seed(123)  # no global random state has a part in it

    def once() -> Iterator[tuple[torch.Tensor, ...]]:
        yield from feeds

    assert documents(post_training(program, once())) == documents(made)
    assert program_digest(program) == digest, "the program given is not changed"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_does_something_and_can_be_left_out(
    name: str, program: Program, feeds: Feeds, made: Quantized
) -> None:
    methods = methods_without([name])
    result = post_training(program, feeds, methods)
    assert result.plan.calibration["methods"] == methods.to_json() != Methods().to_json()
    # At 8 bits these few values give no reason to cut a range, smoothing is for rows of tokens, and
    # no channel here loses more than others.
    if name not in ("mse-ranges", "smoothing", "splitting"):
        assert documents(result)[1] != documents(made)[1]
    with torch.no_grad():
        float_, fake = graph_module(program), render(result.program, result.plan, "fake")
        expected, got = (torch.stack([m(*f) for f in feeds]) for m in (float_, fake))
    assert (got - expected).square().mean() < 3e-3 * expected.square().mean()


def test_methods_by_name() -> None:
    assert methods_without([]) == Methods()
    assert methods_without(list(METHODS)) == PLAIN
    assert methods_without(["rounding", "rounding"]) == Methods(rounding=False)
    changed = {
        n: methods_without([n]).to_json().items() ^ Methods().to_json().items() for n in METHODS
    }
    assert {n: sorted({k for k, _ in c}) for n, c in changed.items()} == {
        "equalization": ["equalization"],
        "splitting": ["splitting"],
        "smoothing": ["smoothing"],
        "mse-ranges": ["ranges"],
        "bias-correction": ["bias_correction"],
        "rounding": ["rounding"],
    }
    with pytest.raises(UsageError, match=r"'roundin'\. Did you mean 'rounding'\?"):
        methods_without(["equalization", "roundin"])


def test_a_changed_program_is_kept_beside_the_canonical_one(
    program: Program, made: Quantized, tmp_path: Path
) -> None:
    planned = Planned("key", tmp_path)
    save_program(program, tmp_path / "program.pt2")
    assert planned.program("w8a8") == tmp_path / "program.pt2"
    save_program(made.program, tmp_path / "program-w8a8.pt2")
    assert planned.program("w8a8") == tmp_path / "program-w8a8.pt2"
    assert planned.program("fp32") == tmp_path / "program.pt2"
    assert planned.plan("w8a8") == tmp_path / "plan-w8a8.json"
    loaded = torch.export.load(planned.program("w8a8"))
    assert program_digest(loaded) == made.plan.program_digest
    render(loaded, made.plan, "fake")


def test_steps_are_told_from_nothing_to_all(program: Program, feeds: Feeds) -> None:
    told: list[tuple[str, int, int]] = []
    post_training(program, feeds[:3], progress=lambda *step: told.append(step))
    steps = list(dict.fromkeys(step for step, _, _ in told))
    assert steps == ["equalizing", "calibrating", "rounding"]
    for name in steps:
        done = [d for step, d, _ in told if step == name]
        [total] = {t for step, _, t in told if step == name}
        assert done == sorted(done) and done[-1] == total
    assert told[-1] == ("rounding", 3, 3)


def test_layers_kept_in_float_are_no_steps() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 2, 2, groups=2)).eval()
    feeds = [(torch.randn(1, 2, 4, 4),) for _ in range(2)]
    told: list[tuple[str, int, int]] = []
    program = canonical(torch.export.export(module, feeds[0], strict=False))
    post_training(program, feeds, progress=lambda *step: told.append(step))
    assert told[-1] == ("rounding", 1, 1)


def test_layers_see_samples_from_all_over(
    program: Program, feeds: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptq, "LAYER_SAMPLES", 4)
    seen: list[int] = []
    real = ptq.reconstruct

    def spy(p: Program, plan: QuantPlan, few: Feeds, **options: bool) -> tuple[Program, QuantPlan]:
        seen.extend(i for (x,) in few for i, (y,) in enumerate(feeds) if x is y)
        return real(p, plan, few, **options)

    monkeypatch.setattr(ptq, "reconstruct", spy)
    result = post_training(program, feeds)
    assert seen == [0, 10, 20, 30]
    assert (result.plan.calibration["n"], result.plan.calibration["layer_samples"]) == (40, 4)
    monkeypatch.setattr(ptq, "MEMORY", 1)
    assert post_training(program, feeds).plan.calibration["layer_samples"] == 2


def test_one_sample_is_enough_to_begin_with(program: Program, feeds: Feeds) -> None:
    result = post_training(program, feeds[:1])
    assert result.plan.calibration["n"] == result.plan.calibration["layer_samples"] == 1
    render(result.program, result.plan, "fake")


def test_what_calibration_refuses_is_refused(program: Program, feeds: Feeds) -> None:
    with pytest.raises(BadData, match="no samples"):
        post_training(program, iter(()))
    with pytest.raises(BadData, match="all 3 samples are the same"):
        post_training(program, feeds[:1] * 3)
    nan = torch.full((1, 3, 8, 8), float("nan"))
    with pytest.raises(BadData, match="NaN"):
        post_training(program, [*feeds[:2], (nan,)])
    nothing = canonical(torch.export.export(nn.GELU(), (torch.ones(1, 4),), strict=False))
    with pytest.raises(UnsupportedError, match="nothing in this model can be quantized"):
        post_training(nothing, [(torch.ones(1, 4),), (torch.zeros(1, 4),)])
