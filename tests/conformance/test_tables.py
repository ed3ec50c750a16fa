"""Embeddings in every target: int8 in the file, a scale for each row, and the plan's answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.graph import canonical, save_program, with_constants
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.unrounded import Unrounded
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import available, find, installed, worker
from edgekit.targets._stored import compare_stored

pytestmark = pytest.mark.runtime

REAL = [t for t in available() if "w8a8" in find(t).schemes and t != "null"]
ROWS, WIDTH, LENGTH = 300, 16, 12
OPS = ("convert", "infer", "inspect", "stored", "unrounded")

Feeds = list[tuple[torch.Tensor, ...]]


class Words(nn.Module):
    """Words and their kinds, added and normalized, and scores of all words; or words as they are.

    Args:
        tied: whether the scores' weight is the table of words itself.
        bare: whether the sum is the result.
    """

    def __init__(self, tied: bool, bare: bool) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(ROWS, WIDTH, padding_idx=0), nn.Embedding(4, WIDTH)
        with torch.no_grad():  # rows of very different size
            self.words.weight *= torch.logspace(-3, 1, ROWS).flip(0)[:, None]
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, ROWS)
        if tied:
            self.head.weight = self.words.weight
        self.bare = bare

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.words(ids) + self.kinds(ids.remainder(4))
        result: torch.Tensor = rows if self.bare else self.head(self.norm(rows))
        return result


@dataclass(frozen=True)
class Subject:
    """A module with its plan, and what one target's worker said of each task."""

    module: Words
    program: torch.export.ExportedProgram
    plan: QuantPlan
    feeds: Feeds
    folder: Path
    results: list[dict[str, Any]]


@pytest.fixture(scope="module", params=REAL)
def subjects(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Subject]:
    """Both modules, through one target, in one worker process."""
    target: str = request.param
    if missing := [p for p, v in installed(find(target)).items() if v is None]:
        pytest.skip(f"{target}: {', '.join(missing)} not installed")
    torch.manual_seed(0)
    found: dict[str, Subject] = {}
    tasks: list[dict[str, Any]] = []
    for kind in ("rows", "tied"):
        folder = tmp_path_factory.mktemp(kind)
        module = Words(kind == "tied", kind == "rows").eval()
        feeds = [(torch.randint(ROWS, (1, LENGTH)),) for _ in range(8)]
        program = canonical(torch.export.export(module, feeds[0], strict=False))
        plan = quantize(program, feeds)
        save_program(program, folder / "program.pt2")
        (folder / "plan.json").write_text(json.dumps(plan.to_json()))
        np.savez(folder / "feeds.npz", ids=np.stack([f[0].numpy() for f in feeds]))
        result = TensorSpec("y", (1, LENGTH, WIDTH if kind == "rows" else ROWS), "float32")
        out = str(folder / f"model{find(target).suffix}")
        about = {
            "artifact": out,
            "out": out,
            "signature": Signature((TensorSpec("ids", (1, LENGTH), "int64"),), (result,)).to_json(),
            "program": str(folder / "program.pt2"),
            "plan": str(folder / "plan.json"),
            "feeds": str(folder / "feeds.npz"),
            "outputs": str(folder / "answers.npz"),
        }
        tasks += [{**about, "op": op} for op in OPS]
        found[kind] = Subject(module, program, plan, feeds, folder, [])
    results = worker.run(target, tasks)
    assert not [r["error"] for r in results if "error" in r]
    for i, subject in enumerate(found.values()):
        subject.results.extend(results[len(OPS) * i : len(OPS) * (i + 1)])
    return found


@pytest.mark.parametrize("kind", ["rows", "tied"])
def test_rows_are_the_plans(subjects: dict[str, Subject], kind: str) -> None:
    subject = subjects[kind]
    _, _, seen, stored, kernels = subject.results
    left_out = Unrounded.from_json(kernels["unrounded"])
    fake = render(subject.program, left_out.without(subject.program, subject.plan), "fake")
    with np.load(subject.folder / "answers.npz") as data, torch.no_grad():
        for feed, got in zip(subject.feeds, data["y"], strict=True):
            want = fake(*feed)
            want = (want[0] if isinstance(want, tuple | list) else want).numpy()
            # Rows exactly; behind a norm a rounding may fall the other way now and then.
            off = np.abs(got - want)
            if kind == "rows":
                assert not off.any()
            else:
                assert (off > 1e-4).mean() < 0.1 and off.max() < 0.1 * np.abs(want).max()
    carried = left_out.not_stored().without(subject.program, subject.plan)
    assert compare_stored(subject.program, carried, stored["stored"]) == []
    sizes = seen["placement"]["bytes_by_dtype"]
    tables = (ROWS + 4) * WIDTH
    assert sizes["int8"] >= tables
    assert sizes.get("float32", 0) < tables, f"{sizes}: a table is stored in float"


def test_another_table_is_noticed(subjects: dict[str, Subject]) -> None:
    """What is stored is compared row by row: two rows in each other's place are a fault."""
    subject = subjects["rows"]
    weight = subject.module.words.weight.detach().clone()
    weight[[7, 8]] = weight[[8, 7]]
    other = with_constants(subject.program, {"words.weight": weight})
    faults = compare_stored(other, quantize(other, subject.feeds), subject.results[3]["stored"])
    assert faults and "words" in faults[-1]
