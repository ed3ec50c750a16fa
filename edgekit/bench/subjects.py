"""What can be measured: the artifacts of a bundle, or one bare file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.bench.asking import LocalWorker, Worker
from edgekit.bench.measure import stated_signature
from edgekit.bench.request import BenchRequest, parts
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.names import through_target, unknown
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.runtime.session import Array, unavailable

__all__ = ["SUFFIXES", "artifact_parts", "bundle_requests", "file_request"]

SUFFIXES = {
    ".tflite": "tflite",
    ".xml": "openvino",
    ".onnx": "onnxruntime",
    ".pte": "executorch",
    ".ptl": "torch-mobile",
    ".mlpackage": "coreml",
    ".npz": "null",
}
"""Which runtime a bare file belongs to."""


def bundle_requests(
    bundle: Bundle, ids: tuple[str, ...] = (), *, here: bool = True
) -> list[BenchRequest]:
    """Requests for a bundle's artifacts; the bundle must stay open while they are measured.

    They are fed with the first golden vectors, where the bundle carries some: a text model's
    padding, say, is then as it is in use.

    Args:
        bundle: an open bundle.
        ids: which artifacts; all of them if empty.
        here: whether this system is to run them; what another can run, only that one knows.

    Raises:
        UsageError: the bundle has no such artifact, or none at all.
        TrustError, UnsupportedError: as `edgekit.runtime.bundle.Bundle.place`.
        UnsupportedError: this system has no runtime for one of them.
    """
    known = [artifact.id for artifact in bundle.artifacts]
    for wrong in (id for id in ids if id not in known):
        raise UsageError(unknown(f"artifact of bundle {bundle.name!r}", wrong, known))
    chosen = [artifact for artifact in bundle.artifacts if not ids or artifact.id in ids]
    for artifact in chosen if here else ():
        others = [a.id for a in chosen if unavailable(_through(a)) is None]
        _check_measurable(_through(artifact), artifact.id, others)
    return [
        BenchRequest(
            artifact=artifact.id,
            target=artifact.target,
            path=bundle.place(artifact),
            signature=artifact.signature,
            scheme=artifact.scheme,
            delegate=artifact.delegate,
            bytes=artifact.bytes,
            feeds=_golden_feeds(bundle, artifact),
        )
        for artifact in chosen
    ]


def _through(artifact: BundleArtifact) -> str:
    return through_target(artifact.target, artifact.delegate)


def _check_measurable(target: str, name: str, others: Sequence[str] = ()) -> None:
    """Refuses what only an emulation could run here: its speed and memory would say nothing."""
    reason = unavailable(target)
    if reason is not None:
        raise UnsupportedError(
            f"{name} can't be measured here: {reason}"
            + ("" if ":" in target else "; the speed of an emulation says nothing"),
            hint="choose the others: " + " ".join(f"--artifact {o}" for o in others)
            if others
            else "measure it where its runtime is",
        )


def _golden_feeds(bundle: Bundle, artifact: BundleArtifact) -> Mapping[str, Array] | None:
    if bundle.manifest.get("golden") is None:
        return None
    feeds, _ = bundle.golden(artifact.io)
    inputs = artifact.signature.inputs
    first = {
        spec.name: feeds[spec.name][: spec.shape[0]]
        for spec in inputs
        if spec.name in feeds and spec.shape
    }
    full = all(s.name in first and first[s.name].shape == s.shape for s in inputs)
    return first if full else None  # fewer golden vectors than one batch


def file_request(path: Path, worker: Worker | None = None) -> BenchRequest:
    """A request for one file outside a bundle; the runtime reads its signature from it.

    Args:
        path: the file.
        worker: where it is to be measured and asked; on this machine if None.

    Raises:
        UsageError: its suffix belongs to no runtime.
        BadData: it is not there.
        UnsupportedError: this system has no runtime for it.
        WorkerCrashed: the runtime died over it.
    """
    target = SUFFIXES.get(path.suffix.lower())
    if target is None:
        raise UsageError(
            f"{path} is neither a bundle nor an artifact; artifacts end in {', '.join(SUFFIXES)}"
        )
    if not path.exists():
        raise BadData(f"artifact {path} is not a file")
    if worker is None:
        _check_measurable(target, path.name)
    return BenchRequest(
        artifact=path.name,
        target=target,
        path=path,
        signature=stated_signature(target, path, worker=worker or LocalWorker()),
        bytes=sum(part.stat().st_size for part in parts(target, path)),
    )


artifact_parts = parts
