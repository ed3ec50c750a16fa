"""What a target can't do it refuses, by name, before or instead of writing something else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit.compress.graph import canonical, program_digest
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.errors import EdgekitError, UnsupportedError, UsageError
from edgekit.names import SCHEMES, TARGETS, TEST_TARGET, install_command
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import available, find, installed, worker

pytestmark = pytest.mark.runtime

Task = dict[str, Any]


class Bessel(nn.Module):
    """A convolution under a function that no runtime for small devices has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.special.bessel_j0(self.layer(x))
        return result


class Case:
    """A module saved for the worker, with its plans beside it."""

    def __init__(self, module: nn.Module, x: torch.Tensor, folder: Path) -> None:
        with torch.no_grad():
            y = module.eval()(x)
        self.folder = folder
        self.program = canonical(torch.export.export(module, (x,), strict=False))
        torch.export.save(self.program, folder / "program.pt2")
        self.signature = Signature(
            (TensorSpec("x", tuple(x.shape)),), (TensorSpec("y", tuple(y.shape)),)
        )
        self.float_plan = QuantPlan("fp32", program_digest(self.program))
        self.int8_plan = quantize(self.program, [(x,)])

    def task(self, plan: QuantPlan, target: str, name: str) -> Task:
        """A conversion under ``plan``."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(plan.to_json()))
        return {
            "op": "convert",
            "program": str(self.folder / "program.pt2"),
            "plan": str(path),
            "signature": self.signature.to_json(),
            "out": str(self.folder / f"{name}{find(target).suffix}"),
        }


@pytest.fixture(scope="module")
def bessel(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    return Case(Bessel(), torch.randn(1, 3, 6, 6), tmp_path_factory.mktemp("bessel"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    return Case(nn.Linear(6, 4), torch.randn(1, 6), tmp_path_factory.mktemp("linear"))


@pytest.fixture(scope="module", params=available())
def target(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    missing = [package for package, version in installed(find(name)).items() if version is None]
    if missing:
        pytest.skip(f"{name}: {', '.join(missing)} not installed")
    return name


@pytest.fixture(scope="module")
def refusals(target: str, bessel: Case, linear: Case) -> dict[str, EdgekitError | None]:
    """What was asked of the target in one worker process, and how it answered; None: it did it."""
    declared = find(target).schemes
    undeclared = next(s for s in SCHEMES if s not in declared)
    strange = dataclasses.replace(linear.int8_plan, scheme=undeclared)
    foreign = dataclasses.replace(linear.float_plan, program_digest="0" * 64)
    tasks = {
        "operator": bessel.task(bessel.float_plan, target, "operator"),
        "scheme": linear.task(strange, target, "scheme"),
        "foreign": linear.task(foreign, target, "foreign"),
        "possible": linear.task(linear.float_plan, target, "possible"),
    }
    if "w8a8" in declared:
        tasks["quantized operator"] = bessel.task(bessel.int8_plan, target, "quantized")
    answers = worker.run(target, list(tasks.values()))
    return {name: a.get("error") for name, a in zip(tasks, answers, strict=True)}


def test_a_missing_operator_is_named(target: str, refusals: dict[str, EdgekitError | None]) -> None:
    for name in ("operator", "quantized operator"):
        if name in refusals:
            said = refusals[name]
            assert type(said) is UnsupportedError, f"{target}: {said!r}"
            culprits = ("bessel_j0", "conv2d") if target == TEST_TARGET else ("bessel_j0",)
            assert any(c in said.message for c in culprits), said.message
            assert_is_clear(target, said)


def test_a_scheme_that_is_not_declared_is_refused(
    target: str, refusals: dict[str, EdgekitError | None]
) -> None:
    said = refusals["scheme"]
    assert type(said) is UnsupportedError, f"{target}: {said!r}"
    undeclared = next(s for s in SCHEMES if s not in find(target).schemes)
    assert undeclared in said.message
    assert all(scheme in said.message for scheme in find(target).schemes), said.message
    assert_is_clear(target, said)


def test_a_plan_of_another_program_is_refused(
    target: str, refusals: dict[str, EdgekitError | None]
) -> None:
    said = refusals["foreign"]
    assert type(said) is UsageError, f"{target}: {said!r}"
    assert "another program" in said.message


def test_a_refusal_leaves_the_process_able_to_convert(
    target: str, refusals: dict[str, EdgekitError | None]
) -> None:
    assert list(refusals).index("possible") > list(refusals).index("foreign")
    assert refusals["possible"] is None, f"{target}: {refusals['possible']!r}"


def assert_is_clear(target: str, said: EdgekitError) -> None:
    """One line that names the target, with a remedy, without a converter's colours and sources."""
    assert said.message.startswith(target)
    assert "\n" not in said.message and "\x1b" not in said.message, said.message
    assert "Traceback" not in said.message and ".cpp" not in said.message, said.message
    assert said.hint
    assert said.exit_code == 5


@pytest.mark.parametrize("model", ["mobilenet_v2", "distilbert"])
@pytest.mark.slow
def test_the_null_target_refuses_real_models(
    model: str, prepared: Callable[[str], Any], tmp_path: Path
) -> None:
    subject = prepared(model)
    subject.plan("fp32")
    [answer] = worker.run(
        TEST_TARGET,
        [
            {
                "op": "convert",
                "program": str(subject.program_path),
                "plan": str(subject.folder / "plan-fp32.json"),
                "signature": subject.signature.to_json(),
                "out": str(tmp_path / "model.npz"),
            }
        ],
    )
    said = answer.get("error")
    assert type(said) is UnsupportedError, f"{said!r}"
    assert "aten." in said.message
    assert_is_clear(TEST_TARGET, said)
    assert not (tmp_path / "model.npz").exists()


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Linear(6, 6), nn.Linear(6, 4)),
        (nn.Linear(6, 4), nn.ReLU()),
        (nn.ReLU(), nn.Linear(6, 4)),
    ],
    ids=["no-relu-between", "relu-last", "relu-first"],
)
def test_the_null_target_refuses_chains_it_would_compute_otherwise(
    layers: tuple[nn.Module, ...], tmp_path: Path
) -> None:
    case = Case(nn.Sequential(*layers), torch.randn(1, 6), tmp_path)
    with pytest.raises(UnsupportedError, match="a ReLU between"):
        find(TEST_TARGET).convert(
            case.program, case.float_plan, case.signature, tmp_path / "model.npz"
        )


def test_every_declared_scheme_exists() -> None:
    for name in available():
        target = find(name)
        assert target.schemes and set(target.schemes) <= set(SCHEMES), name
        assert target.id == name
        assert target.suffix.startswith(".") and target.delegates and target.packages
        if name in TARGETS:
            assert install_command(target.extra)


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'tflite'"):
        find("tflight")
