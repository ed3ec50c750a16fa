"""Layers kept in float between int8 ones, in every target: the plan's answers, nothing dangling."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import layerwise
from edgekit.compress.graph import canonical, compute_nodes, graph_module, save_program
from edgekit.compress.plan import QuantPlan
from edgekit.compress.precision import find_units, keep_float
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.unrounded import Unrounded
from edgekit.parity import TOLERANCES, ParityAccumulator
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import available, find, installed, worker
from edgekit.targets._stored import compare_stored

pytestmark = pytest.mark.runtime

pooled = nn.functional.adaptive_avg_pool2d
SAMPLES = 16
SIDE = 12


class Net(nn.Module):
    """Depthwise layer, residual, squeeze-excite, concatenation (or one layer), linear layers."""

    def __init__(self, *, joined: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.expand = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 8, 1)
        self.left = nn.Conv2d(8, 4 if joined else 8, 3, padding=1)
        self.right = nn.Conv2d(8, 4, 1) if joined else None
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        y = nn.functional.relu6(self.expand(x))
        y = nn.functional.hardswish(self.depthwise(y))
        gate = self.excite(torch.relu(self.squeeze(pooled(y, 1))))
        x = x + self.project(y * nn.functional.hardsigmoid(gate))
        left = self.left(x)
        x = left if self.right is None else torch.cat([left, self.right(x)], 1)
        x = pooled(torch.relu(x), 1).flatten(1)
        result: torch.Tensor = self.head(torch.relu(self.hidden(x)))
        return result


KEPT: dict[str, tuple[str, ...]] = {
    "depthwise": ("depthwise",),
    "first": ("x",),
    "stem": ("stem",),
    "excite": ("excite",),
    "project": ("project",),
    "concatenation": ("left",),
    "head": ("head",),
    "several": ("stem", "depthwise", "project", "hidden"),
    "in-a-row": ("expand", "depthwise", "squeeze", "excite"),
    "all-but-the-stem": (
        *("expand", "depthwise", "squeeze", "excite", "project"),
        *("left", "hidden", "head"),
    ),
}
"""What is kept: layers by their module, the input by its name; ``left`` brings ``right``."""

EVERY_DAY = ("several",)


@dataclass(frozen=True)
class Case:
    """A program and the plan with something kept in float."""

    program: torch.export.ExportedProgram
    plan: QuantPlan
    folder: Path

    def tasks(self, target: str) -> list[dict[str, Any]]:
        """Conversion and everything that is asked of the artifact."""
        out = str(self.folder / f"model-{target}{find(target).suffix}")
        infer = {
            "op": "infer",
            "artifact": out,
            "signature": SIGNATURE.to_json(),
            "feeds": str(self.folder / "feeds.npz"),
            "outputs": str(self.folder / f"answers-{target}.npz"),
            "repeats": 2,
        }
        convert = {
            "op": "convert",
            "program": str(self.folder / "program.pt2"),
            "plan": str(self.folder / "plan.json"),
            "signature": SIGNATURE.to_json(),
            "out": out,
        }
        return [convert, infer, *({"op": o, "artifact": out} for o in QUESTIONS)]


QUESTIONS = ("stored", "unrounded", "inspect")
SIGNATURE = Signature((TensorSpec("x", (1, 3, SIDE, SIDE)),), (TensorSpec("y", (1, 5)),))


@pytest.fixture(scope="module")
def cases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Case]:
    """What the selected tests need."""
    params = [getattr(i, "callspec", None) for i in request.session.items]
    wanted = {p.params["kept"] for p in params if p is not None and "kept" in p.params}
    return {
        name: _case(Net(), names, tmp_path_factory.mktemp(name))
        for name, names in KEPT.items()
        if name in wanted
    }


def _case(net: Net, names: tuple[str, ...], folder: Path) -> Case:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1)
    feeds = [(torch.randn(1, 3, SIDE, SIDE),) for _ in range(SAMPLES)]
    program = canonical(torch.export.export(net.eval(), feeds[0], strict=False))
    module, whole = graph_module(program), quantize(program, feeds)
    chosen = [u for u in find_units(module, whole) if u.name.split(" ")[0] in names]
    assert len(chosen) == len(names)
    plan = keep_float(module, whole, chosen, reason="of this test")
    save_program(program, folder / "program.pt2")
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    np.savez(folder / "feeds.npz", x=np.stack([f[0].numpy() for f in feeds]))
    return Case(program, plan, folder)


@pytest.fixture(
    scope="module", params=[t for t in available() if "w8a8" in find(t).schemes], ids=str
)
def answers(
    request: pytest.FixtureRequest, cases: dict[str, Case]
) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """One target's answers to every task, by case; one worker process for all."""
    target: str = request.param
    missing = [name for name, version in installed(find(target)).items() if version is None]
    if missing:
        pytest.skip(f"{target}: {', '.join(missing)} not installed")
    found = worker.run(target, [task for case in cases.values() for task in case.tasks(target)])
    each = len(found) // len(cases)
    return target, {name: found[i * each : (i + 1) * each] for i, name in enumerate(cases)}


@pytest.mark.parametrize(
    "kept",
    [*EVERY_DAY, *(pytest.param(n, marks=pytest.mark.slow) for n in KEPT if n not in EVERY_DAY)],
)
def test_what_is_kept_in_float_is_rendered_as_the_plan_has_it(
    kept: str, answers: tuple[str, dict[str, list[dict[str, Any]]]], cases: dict[str, Case]
) -> None:
    target, results = answers
    case = cases[kept]
    for result in results[kept]:
        assert "error" not in result, f"{target}: {result['error']}"
    _, ran, stored, kernels, seen = results[kept]
    assert ran["distinct"] == 1
    left_out = Unrounded.from_json(kernels["unrounded"])
    module = render(case.program, left_out.without(case.program, case.plan), "fake")
    steps = [e for e in case.plan.edges if e.kind == "activation"]
    accumulator = ParityAccumulator(SIGNATURE.outputs, TOLERANCES["w8a8"], steps[-1].scale[0])
    with np.load(case.folder / f"answers-{target}.npz") as data, torch.no_grad():
        for feed, answer in zip(np.load(case.folder / "feeds.npz")["x"], data["y"], strict=True):
            exact = module(torch.from_numpy(feed)).numpy()
            accumulator.add({"y": exact}, {"y": answer})
    report = accumulator.report()
    failed = "; ".join(f"{c.name} {c.value} (limit {c.limit})" for c in report.failures)
    assert report.passed, f"{target} {kept}: SQNR {report.outputs[0].sqnr_db:.1f} dB, {failed}"
    carried = left_out.not_stored().without(case.program, case.plan)
    assert compare_stored(case.program, carried, stored["stored"]) == []
    assert seen["placement"]["float_ops"] > 0
    sizes = seen["placement"]["bytes_by_dtype"]
    layers = [n for n in compute_nodes(graph_module(case.program))]
    floats = {n.name for n in layers if str(n.args[1]) not in case.plan.constants()}
    assert floats and sizes["int8"] > 0 and sizes["float32"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("target", [t for t in available() if "w8a8" in find(t).schemes])
def test_every_layer_beside_those_in_float_is_right_by_itself(target: str, tmp_path: Path) -> None:
    """Without the concatenation, which LiteRT gives as a result with the channels last."""
    missing = [name for name, version in installed(find(target)).items() if version is None]
    if missing:
        pytest.skip(f"{target}: {', '.join(missing)} not installed")
    case = _case(Net(joined=False), KEPT["several"], tmp_path)
    feeds = {"x": np.load(tmp_path / "feeds.npz")["x"]}
    found = layerwise.examine(target, case.program, case.plan, SIGNATURE.inputs, feeds)
    assert len(found) >= 8
    assert [e.layer for e in found if e.fault] == []
