"""What goes into the bundle beside the artifacts: golden vectors, plan, evidence, lineage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit import engines
from edgekit.compress.plan import plan_name
from edgekit.data import Samples, picture_of, sound_of
from edgekit.errors import BadData
from edgekit.export import converting
from edgekit.export.counting import Source
from edgekit.export.document import Row, requirements
from edgekit.export.planning import Planned
from edgekit.export.reference import GOLDEN_SAMPLES, gather, load_arrays
from edgekit.export.request import ExportRequest
from edgekit.export.sides import Side
from edgekit.export.statistics import reference_statistics
from edgekit.keys import versions
from edgekit.model import Model
from edgekit.names import FLOAT_IO
from edgekit.pack import BundleContent, PackedArtifact, pack
from edgekit.runtime.golden import pack_golden, pack_pictures, picture_input
from edgekit.runtime.golden_sounds import pack_sounds, sound_input
from edgekit.runtime.preprocess import AudioPreprocess, ImagePreprocess, TextPreprocess
from edgekit.runtime.wav import Wav

GOLDEN_PICTURES: Final = 4
PICTURE_BYTES: Final = 8 * 2**20
"""All golden pictures, or sounds, together take so much at most, uncompressed."""


def pack_result(
    request: ExportRequest,
    rows: Sequence[Row],
    sides: Mapping[str, Side],
    evaluation: Samples | None,
    calib: Samples | None,
    held: Samples | None,
    out: Path,
    source: Source | None = None,
) -> Path:
    """Packs the proven artifacts with everything a device or a reader needs beside them.

    ``held`` are the samples that they were proven on.
    """
    names = list(dict.fromkeys(_plan_of(r) for r in rows))
    side = sides[FLOAT_IO]
    model, planned, reference = side.model, side.planned, side.reference
    ios = [io for io in sides if io == FLOAT_IO or any(r.job.io == io for r in rows)]
    documents = {k: v for io in ios for k, v in _goldens(io, sides[io], rows, names).items()}
    documents |= _plans(planned, names)
    count = _golden_count(side)
    about: dict[str, Any] = {"n": count, "source": "made-up"}
    if held is not None:
        pictures, sounds = _pictures(held, model, count), _sounds(held, model, count)
        about["source"] = "arrays" if pictures is None else "pictures"
        about["pictures"] = len(pictures or ())
        if pictures:
            documents["golden-pictures.npz"] = pack_pictures(pictures)
        if sounds is not None:
            about |= {"source": "sounds", "sounds": len(sounds)}
            documents |= {"golden-sounds.npz": pack_sounds(sounds)} if sounds else {}
    if isinstance(model.preprocess, TextPreprocess):
        # The manifest has the pieces too; tokenizers of other libraries read this file.
        documents["vocab.txt"] = model.preprocess.vocab_file()
    about |= {io: count for io in ios if io != FLOAT_IO}
    content = BundleContent(
        name=request.name or model.name,
        version=request.version,
        model={
            "name": model.name,
            "digest": model.digest(),
            "parameters": sum(p.numel() for p in model.module.parameters()),
            "notes": list(model.notes),
        },
        signature=model.signature,
        artifacts=[_packed(r, sides[r.job.io]) for r in rows if r.artifact is not None],
        preprocess=None if model.preprocess is None else model.preprocess.to_json(),
        documents=documents,
        golden=about,
        statistics=reference_statistics(model, reference, names, held_out=evaluation is not None),
        lineage=_lineage(calib, evaluation, planned, names, request.engine, source),
        licence=model.license,
        clients=request.clients,
    )
    return pack(content, out)


def _plan_of(row: Row) -> str:
    return plan_name(row.job.target, row.job.scheme, row.job.variant)


def _packed(row: Row, side: Side) -> PackedArtifact:
    assert row.artifact is not None
    known, plan = side.reference.facts(), side.planned.plan(_plan_of(row))
    overrides = json.loads(plan.read_text())["overrides"] if plan.exists() else {}
    # An engine's artifact has no plan, so no steps and no floor; neither has the float model.
    bench, facts = row.measured(), known.get(_plan_of(row), known["fp32"])
    compared, accuracy = row.compared(), None
    speed = None if compared is None else dict(compared)
    if row.value is not None:
        accuracy = {"metric": "top1", "value": row.value, "drop_points": row.drop}
        accuracy["drop_ci95"] = None if row.drop_ci is None else list(row.drop_ci)
    return PackedArtifact(
        artifact=row.artifact,
        devices=row.job.devices,
        requires=requirements(row, overrides),
        verification=row.verification,
        evidence={
            "verification": row.verification,
            "verify": None if row.proof is None else dict(row.proof.document),
            "placement": None if row.placement is None else dict(row.placement),
            "bench": None
            if bench is None
            else {k: v for k, v in bench.items() if k not in ("samples_ms", "rounds")},
            # Beside float in the same rounds: what two bundles can be compared by.
            "speed": speed,
            "accuracy": accuracy,
            # What `edgekit verify` needs to judge the bundle by the figures that it was proven by.
            "steps": facts["steps"],
            "floor": facts["floor"],
            # What the artifact itself tells an app, beside this manifest.
            "metadata": converting.metadata(row.artifact),
        },
        border=side.border(_plan_of(row)),
    )


def _golden_count(side: Side) -> int:
    """How many golden samples there are, all of a batch counted."""
    return min(GOLDEN_SAMPLES, side.reference.n) * side.model.signature.inputs[0].shape[0]


def _plans(planned: Planned, names: Sequence[str]) -> dict[str, bytes]:
    quantized = [n for n in names if n != "fp32" and planned.plan(n).exists()]
    files = {n: "plan.json" if n == quantized[0] else f"plan-{n}.json" for n in quantized}
    return {file: planned.plan(n).read_bytes() for n, file in files.items()}


def _goldens(io: str, side: Side, rows: Sequence[Row], names: Sequence[str]) -> dict[str, bytes]:
    """The golden vectors of artifacts of one io, by the name of their file."""
    model, planned, reference = side.model, side.planned, side.reference
    count, suffix = min(GOLDEN_SAMPLES, reference.n), "" if io == FLOAT_IO else f"-{io}"
    batch = model.signature.inputs[0].shape[0]
    feeds, _ = gather(model, _First(reference.samples, count) if reference.samples else None)
    flat = {k: v[:count].reshape(count * batch, *v.shape[2:]) for k, v in feeds.items()}

    def answers(file: Path) -> bytes:
        arrays = load_arrays(file)
        outputs = {
            k: v[:count].reshape(count * v.shape[1], *v.shape[2:]) for k, v in arrays.items()
        }
        return pack_golden(flat, outputs)

    documents = {f"golden{suffix}.npz": answers(reference.path / "outputs-fp32.npz")}
    for name in (n for n in names if n != "fp32" and planned.plan(n).exists()):
        # What the plan itself answers: a device can tell a wrong kernel from quantization.
        documents[f"golden-{name}{suffix}.npz"] = answers(reference.path / f"outputs-{name}.npz")
    for row in rows:
        if row.job.io != io:
            continue
        if row.against == "float":
            continue  # `edgekit verify` holds it against the float model's answers again
        if row.proof is not None and row.proof.structural:
            continue  # it gave no answers: those of the plan are there for who can run it
        if row.artifact and row.proof and row.proof.document["against"] != "plan":
            # Its runtime rounds otherwise than the plan does, and was proven right in that: what
            # it answered then is what it has to answer again.
            documents[f"golden-{row.artifact.id}.npz"] = answers(row.proof.path / "outputs.npz")
    return documents


def _pictures(samples: Samples, model: Model, count: int) -> dict[int, npt.NDArray[Any]] | None:
    """The pictures behind the first samples, a few that are not too large; None for no pictures.

    Raises:
        BadData: a picture is not what its sample was made of.
    """
    preprocess = model.preprocess
    if not isinstance(preprocess, ImagePreprocess) or picture_of(samples, 0) is None:
        return None
    spec, left = picture_input(model.signature, preprocess), PICTURE_BYTES
    found: dict[int, npt.NDArray[Any]] = {}
    for i in range(min(count, GOLDEN_PICTURES) if spec.shape[0] == 1 else 0):
        picture = picture_of(samples, i)
        if picture is None or picture.nbytes > left:
            continue
        if not np.array_equal(preprocess.apply(picture), samples.feed(i)[spec.name]):
            raise BadData(
                f"{samples.source}: the picture of sample {i} does not give its tensor by the "
                "model's preprocessing"
            )
        found[i], left = picture, left - picture.nbytes
    return found


def _sounds(samples: Samples, model: Model, count: int) -> dict[int, Wav] | None:
    """The recordings behind the first samples, as `_pictures`; None where there are none.

    Raises:
        BadData: a recording is not what its sample was made of.
    """
    step = model.preprocess
    if not isinstance(step, AudioPreprocess) or sound_of(samples, 0) is None:
        return None
    spec, left = sound_input(model.signature, step), PICTURE_BYTES
    found: dict[int, Wav] = {}
    for i in range(min(count, GOLDEN_PICTURES) if spec.shape[0] == 1 else 0):
        sound = sound_of(samples, i)
        if sound is None or sound.samples.nbytes > left:
            continue
        made = step.apply(sound.samples, sound.rate)
        if not np.array_equal(made, samples.feed(i)[spec.name]):
            raise BadData(
                f"{samples.source}: the recording of sample {i} does not give its tensor by the "
                "model's preprocessing"
            )
        found[i], left = sound, left - sound.samples.nbytes
    return found


class _First:
    """The first few of some samples."""

    def __init__(self, samples: Samples, count: int) -> None:
        self._samples, self._count = samples, count
        self.source, self.digest = samples.source, samples.digest

    def __len__(self) -> int:
        return self._count

    def feed(self, i: int) -> dict[str, Any]:
        return self._samples.feed(i)

    def label(self, i: int) -> int | None:
        return self._samples.label(i)


def _lineage(
    calib: Samples | None,
    evaluation: Samples | None,
    planned: Planned,
    names: Sequence[str],
    engine: str | None,
    source: Source | None,
) -> dict[str, Any]:
    def about(samples: Samples | None) -> dict[str, Any] | None:
        if samples is None:
            return None
        return {
            "source": Path(samples.source).name,
            "digest": samples.digest,
            "n": len(samples),
        }

    plans = {
        name: json.loads(planned.plan(name).read_text())["program_digest"]
        for name in names
        if planned.plan(name).exists()
    }
    return {
        "calibration": about(calib),
        "evaluation": about(evaluation),
        "programs": plans,
        "engine": None if engine is None else _engine(engine),
        "tools": versions("torch", "torchao", "litert-torch", "openvino", "onnx", "onnxruntime"),
        "parent": None if source is None else source.to_json(),
    }


def _engine(name: str) -> dict[str, Any]:
    engine = engines.find(name)
    return {"id": name, "settings": dict(engine.defaults), "packages": engines.installed(engine)}
