"""Finished plans given to an export: trained ones, and those of `edgekit quantize`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.artifact import Store
from edgekit.compress.folder import save_quantized
from edgekit.compress.graph import canonical
from edgekit.compress.ptq import Quantized
from edgekit.compress.qat import QatSettings, qat
from edgekit.compress.saturation import at_risk
from edgekit.compress.train import TrainSettings
from edgekit.compress.variants import variants_of
from edgekit.compress.weights import quantize_weights
from edgekit.errors import BadData, UsageError
from edgekit.export import ExportRequest, ExportResult, export_bundle
from edgekit.export.given import given_plans
from edgekit.model import Model
from edgekit.names import NO_VNNI, TARGETS
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.schemas import validate

sys.path.insert(0, str(Path(__file__).parent))
try:
    from qat_models import Net, Tensors, feeds_of, picture_model, pictures, plain, quantized
finally:
    sys.path.pop(0)

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = QatSettings(train=TrainSettings(epochs=1, batch=64, rate=2e-3))


@pytest.fixture(scope="module")
def data() -> Tensors:
    return pictures(1024)


@pytest.fixture(scope="module")
def model(data: Tensors) -> Model:
    return picture_model(data.part(0, 384))


@pytest.fixture(scope="module")
def trained(model: Model, data: Tensors) -> Quantized:
    start = quantized(model, data)
    return qat(model, start, data.part(0, 384), ONE, held=data.part(384, 512)).trained


@pytest.fixture(scope="module")
def files(data: Tensors, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Calibration and evaluation data."""
    folder = tmp_path_factory.mktemp("data")
    kept = data.part(512, 1024)
    assert kept.y is not None
    np.savez(folder / "calib.npz", x=data.inputs["x"][:64].numpy())
    np.savez(folder / "eval.npz", x=kept.inputs["x"].numpy(), y=kept.y.numpy())
    return folder / "calib.npz", folder / "eval.npz"


def export(
    model: Model, files: tuple[Path, Path], store: Path, *plans: Path | Quantized, **more: Any
) -> ExportResult:
    asked: dict[str, Any] = {"schemes": ("w8a8",), "bench": False, "clients": ()} | more
    asked |= {"calib": files[0], "evaluation": files[1], "plans": plans}
    asked.setdefault("waive", ("smaller", "faster"))
    return export_bundle(model, ExportRequest(**asked), store=Store(store))


@pytest.mark.slow
def test_a_trained_plan_is_what_the_artifact_holds(
    model: Model, trained: Quantized, files: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = save_quantized(trained, tmp_path / "plan")
    asked: dict[str, Any] = {"targets": ("onnxruntime",), "out": tmp_path / "bundle"}
    result = export(model, files, tmp_path / "store", folder, **asked)
    assert not result.failed
    validate(result.document)
    (artifact,) = result.document["artifacts"]
    assert artifact["verification"] == "runtime" and artifact["parity"]["agreement"] == 1
    digest = trained.plan.digest()
    about = [{"scheme": "w8a8", "digest": digest, "training": "qat"}]
    assert result.document["plans_given"] == about
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert trained.plan.program_digest in json.dumps(manifest["lineage"])
    # Given as it is, it is the same plan to the store.
    again = export(model, files, tmp_path / "store", trained, targets=("onnxruntime",))
    assert again.conversions == 0


def test_plans_that_are_refused(
    model: Model, trained: Quantized, files: tuple[Path, Path], tmp_path: Path
) -> None:
    def refused(message: str, *plans: Path | Quantized, kind: Any = UsageError, **m: Any) -> None:
        with pytest.raises(kind, match=message):
            export(model, files, tmp_path / "store", *plans, **{"targets": ("onnxruntime",)} | m)

    other = Model.from_module(Net().eval(), {"x": torch.zeros(1, 1, 8, 8)}, name="other")
    with pytest.raises(UsageError, match="not made from 'other' as it is"):
        export(other, files, tmp_path / "store", trained, targets=("onnxruntime",))
    refused("are of one scheme", trained, trained)
    weights = quantize_weights(canonical(model.program()), "w8")
    refused("is of no use: this export makes w8a8", Quantized(trained.program, weights))
    variant = dataclasses.replace(trained.plan, variant=NO_VNNI)
    refused("is an override of another", dataclasses.replace(trained, plan=variant))
    with pytest.raises(UsageError, match="engine 'nncf' makes its own"):
        given_plans(ExportRequest(plans=(trained,), engine="nncf"), ["w8a8"])
    refused("plan.json is missing", tmp_path, kind=BadData)
    folder = save_quantized(trained, tmp_path / "mixed")
    document = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(document | {"program_digest": "0"}))
    refused("from another program than the program.pt2", folder, kind=BadData)
    (folder / "plan.json").write_text("{}")
    refused("is no plan: KeyError", folder, kind=BadData)


def test_an_override_keeps_the_integers_of_layers_not_at_risk(
    model: Model, trained: Quantized, data: Tensors
) -> None:
    risky = {risk.weight for risk in at_risk(trained.program, trained.plan)}
    assert risky and risky == {r["weight"] for r in trained.plan.overrides[NO_VNNI]["layers"]}
    made = variants_of(trained, feeds_of(model, data, 16), [NO_VNNI]).variants[NO_VNNI]
    assert not at_risk(made.program, made.plan)
    assert made.plan.variant == NO_VNNI and made.plan.overrides == trained.plan.overrides
    before, after = trained.plan.constants(), made.plan.constants()
    values = [q.program.state_dict | q.program.constants for q in (trained, made)]
    limited = [n for n, e in after.items() if e.kind == "weight" and e.quant_max == 64]
    assert risky <= set(limited) < {n for n, e in after.items() if e.kind == "weight"}
    for name, edge in after.items():
        if edge.kind == "weight" and name not in limited:
            assert edge == before[name]
            one, two = (held[edge.edge] for held in values)
            assert torch.equal(one, two)


def saved(folder: Path, inputs: torch.Tensor, data: Tensors) -> tuple[Path, Path]:
    """Calibration and evaluation data of a model that calls its picture ``input``."""
    assert data.y is not None
    np.savez(folder / "calib.npz", input=inputs[:64].numpy())
    np.savez(folder / "eval.npz", input=inputs[512:].numpy(), y=data.y[512:].numpy())
    return folder / "calib.npz", folder / "eval.npz"


@pytest.mark.slow
def test_every_target_renders_a_trained_plan(data: Tensors, tmp_path: Path) -> None:
    named = Tensors({"input": data.inputs["x"]}, data.y)
    model = picture_model(named.part(0, 384), plain)
    start = quantized(model, named)
    made = qat(model, start, named.part(0, 384), ONE, held=named.part(384, 512)).trained
    files = saved(tmp_path, data.inputs["x"], data)
    result = export(model, files, tmp_path / "store", made, targets=TARGETS)
    assert not result.failed
    assert {a["target"] for a in result.document["artifacts"]} == set(TARGETS)
    assert all(a["parity"]["agreement"] == 1 for a in result.document["artifacts"])


@pytest.mark.slow
def test_variants_and_borders_of_a_trained_plan(data: Tensors, tmp_path: Path) -> None:
    pixels = ((data.inputs["x"] * 0.2 + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)
    seen = Tensors({"input": (pixels / 255 - 0.5) / 0.2}, data.y)
    model = dataclasses.replace(
        picture_model(seen.part(0, 384), plain),
        preprocess=ImagePreprocess(8, 8, channels=1, color="GRAY", mean=(0.5,), std=(0.2,)),
    )
    start = quantized(model, seen)
    made = qat(model, start, seen.part(0, 384), ONE, held=seen.part(384, 512)).trained
    files = saved(tmp_path, pixels.permute(0, 2, 3, 1), data)
    asked: dict[str, Any] = {
        "devices": ("intel-nuc",),
        "targets": ("openvino", "onnxruntime"),
        "ios": ("float32", "uint8"),
    }
    result = export(model, files, tmp_path / "store", made, **asked)
    assert not result.failed
    found = {a["id"] for a in result.document["artifacts"]}
    assert len(found) == 4 and all(NO_VNNI in name for name in found)
    asked = {"plans": (made,), "evaluation": files[1], "bench": False, "schemes": ("w8a8",)}
    request = ExportRequest(devices=("intel-nuc",), targets=("openvino",), **asked)
    with pytest.raises(BadData, match="no calibration samples"):
        export_bundle(model, request, store=Store(tmp_path / "store"))
