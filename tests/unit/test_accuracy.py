"""How much less a plan has to lose where a runtime loses more than the plan's own evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.data import ArraySamples
from edgekit.device import Job
from edgekit.export import accuracy
from edgekit.export.document import Row
from edgekit.export.planning import Planned
from edgekit.export.reference import Referenced
from edgekit.export.request import ExportRequest
from edgekit.model import Model

N = 200


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.from_module(torch.nn.Linear(2, 2).eval(), {"input": torch.zeros(1, 2)})


def reference(model: Model, folder: Path, wrong: int) -> Referenced:
    """All labels are 0; the float model is right, the plan ``wrong`` times not; two probes."""
    name = model.signature.outputs[0].name
    right = np.tile(np.array([[[1.0, 0.0]]], np.float32), (N + 2, 1, 1))
    plan = right.copy()
    plan[:wrong] = plan[:wrong, :, ::-1]
    plan[N:] = plan[N:, :, ::-1]
    np.savez(folder / "outputs-fp32.npz", **{name: right})
    np.savez(folder / "outputs-w8a8.npz", **{name: plan})
    samples = ArraySamples(
        {"input": np.zeros((N, 2), np.float32)},
        np.zeros(N, np.int64),
        signature=model.signature,
        preprocess=None,
        source="here",
    )
    return Referenced("key", folder, samples, N, 2)


def row(drop: float | None, scheme: str = "w8a8") -> Row:
    return Row(Job("null", scheme, "cpu", ("host",), 1), drop=drop)


@pytest.mark.parametrize(
    ("rows", "wrong", "limit", "wanted"),
    [
        ([row(0.5)], 1, 1.0, None),  # it holds
        ([row(1.5)], 1, 1.0, 0.0),  # the runtime loses 1 point more than the plan
        ([row(0.2), row(1.5)], 2, 1.0, 0.5),  # the worst counts: half a point more
        ([row(3.0)], 2, 1.0, 0.0),  # more than there is to gain
        ([row(3.0)], 0, 1.0, None),  # the plan loses nothing: layers in float can't help
        ([row(1.5)], 2, 0.5, None),  # it was asked for that already
        ([row(None)], 2, 1.0, None),  # nothing was measured
        ([row(1.5, "fp32")], 2, 1.0, None),  # there is nothing to keep
    ],
)
def test_how_much_less_a_plan_must_lose(
    rows: list[Row], wrong: int, limit: float, wanted: float | None, model: Model, tmp_path: Path
) -> None:
    held = reference(model, tmp_path, wrong)
    request = ExportRequest(max_drop=1.0)
    found = accuracy._tighter(model, limit, held, rows, request)
    assert found == (wanted if wanted is None else pytest.approx(wanted))


def test_rounds_end_when_all_hold_and_keep_the_last_that_was_made(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`steer` stands in here: it would have to quantize a model for each of these."""
    asked: list[float | None] = []
    folders = {key: tmp_path / key for key in ("plain", "first", "second")}
    for folder in folders.values():
        folder.mkdir()

    def steer(model: Model, planned: Planned, *_: object, limit: float | None = None) -> Planned:
        asked.append(limit)
        if limit is None:
            return Planned("first", folders["first"])
        return Planned("second", folders["second"]) if limit > 0.2 else planned

    monkeypatch.setattr(accuracy, "steer", steer)
    plain = Planned("plain", folders["plain"])

    def run(drops: dict[str, tuple[int, float]]) -> str:
        asked.clear()

        def prove(planned: Planned) -> tuple[Referenced, list[Row]]:
            wrong, drop = drops[planned.key]
            return reference(model, planned.path, wrong), [row(drop)]

        request = ExportRequest(max_drop=1.0)
        made, _, rows = accuracy.until_held(
            model,
            plain,
            None,
            None,
            ["w8a8"],
            request,
            None,
            prove,  # type: ignore[arg-type]
        )
        assert rows[0].drop == drops[made.key][1]
        return made.key

    assert run({"first": (2, 1.0)}) == "first" and asked == [None]
    assert run({"first": (2, 1.5), "second": (1, 1.0)}) == "second" and asked == [None, 0.5]
    # Nothing holds what would be needed: what was made stays, for the gate to judge.
    assert run({"first": (2, 2.0)}) == "first" and asked == [None, 0.0]


def test_a_document_tells_what_was_kept_if_anything_was(tmp_path: Path) -> None:
    planned = Planned("key", tmp_path)
    assert accuracy.about(planned) == {}
    (tmp_path / "accuracy.json").write_text(json.dumps([{"scheme": "w8a8"}]))
    assert accuracy.about(planned) == {"kept_for_accuracy": [{"scheme": "w8a8"}]}
