"""What a model answers on labelled samples, kept for a report: confusions and the worst answers.

A stage of a recipe calls `collect` with its own folder; the report finds ``evidence.json`` there.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.artifact import storage_error
from edgekit.data import Samples, text_of
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.names import FLOAT_IO
from edgekit.protocols import Unwatched, Watch
from edgekit.report.thumbnails import thumbnail
from edgekit.runtime.bundle import Bundle
from edgekit.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from edgekit.model import Model

__all__ = ["DOCUMENT", "TEXT", "WORST", "collect"]

DOCUMENT: Final = "evidence.json"
WORST: Final = 24
"""Worst samples that are kept, at most."""

TEXT: Final = 400
"""Characters of a text that are kept, at most."""

_TOLERANCE: Final = 1e-3
"""By how much a row of probabilities may miss a sum of 1: int8 outputs have coarse steps."""

Answer = Callable[[Mapping[str, npt.NDArray[Any]]], npt.NDArray[Any]]


@dataclass(frozen=True)
class _Subject:
    """Who answers: what the document says of it, its scores, and its weights by layer."""

    about: Mapping[str, Any]
    output: TensorSpec
    answer: Answer
    layers: list[dict[str, Any]] | None = None


def collect(
    subject: Model | Bundle | str | Path,
    samples: Samples,
    out: Path,
    *,
    artifact: str | None = None,
    worst: int = WORST,
    threads: int = 1,
    watch: Watch | None = None,
) -> Path:
    """Runs a classifier over labelled samples and keeps what a report shows of its answers.

    The same subject, samples and threads give the same bytes.

    Args:
        subject: the float model, or a bundle (open, or where it lies), of which one artifact is
            run in its real runtime.
        samples: each with a label, a class index.
        out: folder for ``evidence.json`` (``edgekit.evidence/1``) and ``pictures/``; made if need
            be.
        artifact: id of the artifact; may be left out where the bundle has one only.
        worst: how many of the samples with the highest loss to keep, up to 24.
        threads: CPU threads of the artifact's session.
        watch: hears of progress.

    Returns:
        The document's path.

    Raises:
        UsageError: no such artifact, an artifact that takes pixels, or ``worst`` out of range.
        BadData: no samples, a sample without a label, or a label that is no class.
        UnsupportedError: the model gives no scores of one sample, ``[1, classes]``.
        MissingDependency, TrustError, StorageError: as `Bundle.open` and `Bundle.session`.
    """
    if not 0 <= worst <= WORST:
        raise UsageError(f"worst is {worst}; 0 to {WORST} samples are kept")
    with ExitStack() as stack:
        found = _subject(subject, artifact, threads, stack)
        scores, labels = _answers(found, samples, watch or Unwatched())
    document = {
        "schema": "edgekit.evidence/1",
        "of": dict(found.about),
        "data": {"source": Path(samples.source).name, "digest": samples.digest},
        "output": found.output.name,
        "labels": list(found.output.labels) or None,
        "layers": found.layers,
        **_judged(samples, scores, labels, worst, out),
    }
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
    path = out / DOCUMENT
    try:
        out.mkdir(parents=True, exist_ok=True)
        aside = out / f".{DOCUMENT}"
        aside.write_text(text + "\n", encoding="ascii")
        aside.replace(path)
    except OSError as error:
        raise storage_error(out, error) from error
    return path


# -- who answers ----------------------------------------------------------------------------------


def _subject(
    subject: Model | Bundle | str | Path, artifact: str | None, threads: int, stack: ExitStack
) -> _Subject:
    if isinstance(subject, str | Path):
        subject = stack.enter_context(Bundle.open(subject))
    if isinstance(subject, Bundle):
        return _artifact(subject, artifact, threads, stack)
    if artifact is not None:
        raise UsageError(
            f"artifact {artifact!r} was named, and a float model has none",
            hint="give collect() the bundle",
        )
    return _float(subject)


def _artifact(bundle: Bundle, id: str | None, threads: int, stack: ExitStack) -> _Subject:
    chosen = bundle.artifact(id)
    if chosen.io not in (None, FLOAT_IO):
        raise UsageError(
            f"artifact {chosen.id!r} takes {chosen.io}, not the model's tensors",
            hint="name one that does; the answers are the same",
        )
    session = bundle.session(chosen, threads=threads)
    stack.callback(session.close)
    output = _scores_of(chosen.signature, bundle.name)
    about = {
        "kind": "artifact",
        "name": bundle.name,
        "artifact": chosen.id,
        "target": chosen.target,
        "scheme": chosen.scheme,
        "sha256": chosen.sha256,
        "bundle": bundle.digest,
        "runtime": session.runtime_version,
    }
    return _Subject(about, output, lambda feeds: session.run(feeds)[output.name])


def _float(model: Model) -> _Subject:
    import torch

    output = _scores_of(model.signature, model.name)
    place = [spec.name for spec in model.signature.outputs].index(output.name)
    inputs = [spec.name for spec in model.signature.inputs]

    def answer(feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        tensors = (torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in inputs)
        return model.run(*tensors)[place].float().numpy()

    about = {
        "kind": "float",
        "name": model.name,
        "artifact": None,
        "target": None,
        "scheme": "fp32",
        "sha256": model.digest(),
        "bundle": None,
        "runtime": f"torch {torch.__version__}",
    }
    return _Subject(about, output, answer, _layers(model))


def _layers(model: Model) -> list[dict[str, Any]]:
    """Weights by the module that holds them, largest first; shared ones once."""
    counts: dict[str, list[int]] = {}
    for name, weight in model.module.named_parameters():
        held = counts.setdefault(name.rpartition(".")[0] or name, [0, 0])
        held[0] += weight.numel()
        held[1] += weight.numel() * weight.element_size()
    rows = [{"layer": k, "parameters": p, "bytes": b} for k, (p, b) in counts.items()]
    return sorted(rows, key=lambda row: (-int(str(row["bytes"])), str(row["layer"])))


def _scores_of(signature: Signature, name: str) -> TensorSpec:
    """The output with one row of scores: the one with labels, else the only one of that form."""
    fitting = [
        spec
        for spec in signature.outputs
        if len(spec.shape) == 2 and spec.shape[1] > 1 and spec.dtype.startswith("float")
    ]
    chosen = [spec for spec in fitting if spec.labels] or fitting
    if len(chosen) != 1 or chosen[0].shape[0] != 1:
        listed = ", ".join(f"{s.name} {s.shape}" for s in signature.outputs)
        raise UnsupportedError(
            f"{name}: evidence needs one output of scores, [1, classes]; the outputs are {listed}",
            hint="export the model for a batch of 1, with labels for the output that classifies",
        )
    return chosen[0]


# -- what is answered -----------------------------------------------------------------------------


def _answers(
    subject: _Subject, samples: Samples, watch: Watch
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores [n, classes] and labels [n]."""
    count, width = len(samples), subject.output.shape[1]
    if not count:
        raise BadData(f"{samples.source} holds no samples")
    scores = np.empty((count, width), np.float64)
    labels = np.empty(count, np.int64)
    for i in range(count):
        label = samples.label(i)
        if label is None:
            raise BadData(
                f"{samples.source}: sample {i} has no label",
                hint="evidence is of labelled samples: pictures by class, or labels as y",
            )
        if not 0 <= label < width:
            raise BadData(
                f"{samples.source}: sample {i} has label {label}; the model has classes 0 to "
                f"{width - 1}"
            )
        scores[i], labels[i] = subject.answer(samples.feed(i)).reshape(-1), label
        watch.step(i + 1, count)
    return scores, labels


def _judged(
    samples: Samples,
    scores: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    worst: int,
    out: Path,
) -> dict[str, Any]:
    """What the scores [n, classes] are worth, beside the labels [n]."""
    kind, confidences = _confidences(scores)
    finite = np.asarray(np.isfinite(scores).all(axis=1))
    predicted = np.where(finite, np.where(finite[:, None], scores, 0).argmax(axis=1), -1)
    sure = np.maximum(confidences[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)
    losses = np.where(finite, 0 - np.log(sure), math.inf)
    return {
        "scores": kind,
        "n": len(labels),
        "top1": float((predicted == labels).mean()) * 100,
        "loss": float(losses.mean()) if finite.all() else None,
        "classes": _classes(labels, predicted, scores.shape[1]),
        "confusion": _confusion(labels, predicted),
        "worst": _worst(samples, labels, predicted, confidences, losses, worst, out),
    }


def _confidences(scores: npt.NDArray[np.float64]) -> tuple[str, npt.NDArray[np.float64]]:
    """What the scores are, and each as a probability; NaN in rows that are not finite."""
    finite = np.asarray(np.isfinite(scores).all(axis=1, keepdims=True))
    rows = np.where(finite, scores, 0)
    sums = rows.sum(axis=1, keepdims=True)
    good = finite[:, 0]
    if good.any() and (rows >= 0).all() and (np.abs(sums[good] - 1) <= _TOLERANCE).all():
        return "probabilities", np.where(finite, rows / np.where(finite, sums, 1), np.nan)
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return "logits", np.where(finite, powers / powers.sum(axis=1, keepdims=True), np.nan)


def _classes(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], count: int
) -> list[dict[str, int]]:
    held = np.bincount(labels, minlength=count)
    taken = np.bincount(predicted[predicted >= 0], minlength=count)
    right = np.bincount(labels[predicted == labels], minlength=count)
    return [
        {"n": int(n), "predicted": int(p), "correct": int(c)}
        for n, p, c in zip(held, taken, right, strict=True)
    ]


def _confusion(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]
) -> list[dict[str, int | None]]:
    pairs = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    return [
        {"label": label, "prediction": None if found < 0 else found, "n": n}
        for (label, found), n in sorted(pairs.items())
    ]


def _worst(
    samples: Samples,
    labels: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    confidences: npt.NDArray[np.float64],
    losses: npt.NDArray[np.float64],
    worst: int,
    out: Path,
) -> list[dict[str, Any]]:
    order = sorted(range(len(labels)), key=lambda i: (-losses[i], i))[:worst]
    entries = []
    for rank, i in enumerate(order):
        known = predicted[i] >= 0
        entry: dict[str, Any] = {
            "sample": i,
            "label": int(labels[i]),
            "prediction": int(predicted[i]) if known else None,
            "confidence": float(confidences[i, predicted[i]]) if known else None,
            "label_confidence": float(confidences[i, labels[i]]) if known else None,
            "loss": float(losses[i]) if known else None,
        }
        entries.append(entry | _shown(samples, i, out, f"pictures/worst-{rank:02}.png"))
    return entries


def _shown(samples: Samples, i: int, out: Path, name: str) -> dict[str, Any]:
    """A sample for people: its text, its picture, or its tensor as one."""
    text = text_of(samples, i)
    if text is not None:
        short = text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"
        return {"shown": "text", "picture": None, "text": short}
    found = thumbnail(samples, i)
    if found is None:
        return {"shown": None, "picture": None, "text": None}
    kind, data = found
    try:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    except OSError as error:
        raise storage_error(out, error) from error
    return {"shown": kind, "picture": name, "text": None}
