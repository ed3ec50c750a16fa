"""What can be measured: the artifacts of a bundle, or one bare file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgekit.bench.asking import LocalWorker, Worker
from edgekit.bench.measure import stated_signature
from edgekit.bench.request import BenchRequest, parts
from edgekit.device import Device
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.names import DELEGATES, TEST_TARGET, through_target, unknown
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.runtime.session import Array, unavailable

__all__ = [
    "SUFFIXES",
    "artifact_parts",
    "bundle_requests",
    "chosen",
    "file_request",
    "open_requests",
    "runs",
]

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


@contextmanager
def open_requests(
    subject: Path, ids: tuple[str, ...], worker: Worker | None
) -> Iterator[list[BenchRequest]]:
    """What is to be measured of a bundle or an artifact's file; a bundle stays open meanwhile.

    Args:
        subject: its path.
        ids: which artifacts of a bundle; all of them if empty.
        worker: where it is to be measured, this machine if None.

    Raises:
        UsageError: ids were given for a bare artifact.
        EdgekitError: as `file_request`, `bundle_requests` and `edgekit.runtime.bundle.Bundle.open`.
    """
    bare = subject.suffix.lower() in SUFFIXES
    if bare and not (subject / "manifest.json").is_file():
        if ids:
            raise UsageError(f"--artifact chooses from a bundle; {subject} is one artifact")
        yield [file_request(subject, worker)]
        return
    with Bundle.open(subject) as bundle:
        yield bundle_requests(bundle, ids, here=worker is None)


def chosen(
    subject: Path, ids: tuple[str, ...], device: Device | None
) -> tuple[tuple[str, ...], set[str]]:
    """Which artifacts of a subject to measure, and their targets.

    Without a say, those of a bundle that the device runs by its profile.

    Raises:
        UnsupportedError: it runs none of them.
    """
    bare = SUFFIXES.get(subject.suffix.lower())
    if bare is not None and not (subject / "manifest.json").is_file():
        return ids, {bare}
    with Bundle.open(subject) as bundle:
        named = [a for a in bundle.artifacts if a.id in ids]
        found = named if ids else [a for a in bundle.artifacts if runs(device, a)]
        if not found and not ids:
            held = ", ".join(a.id for a in bundle.artifacts)
            raise UnsupportedError(
                f"a device {'' if device is None else device.id} runs none of {subject}: {held}",
                hint="name what to measure all the same: --artifact ID",
            )
        return ids or tuple(a.id for a in found), {a.target for a in found}


def runs(device: Device | None, artifact: BundleArtifact) -> bool:
    """Whether a device runs an artifact by its profile, without being asked for its target."""
    if device is None or artifact.target == TEST_TARGET:
        return True
    wanted = artifact.delegate if artifact.target in DELEGATES else None
    return any(
        support.target == artifact.target and wanted in (None, support.delegate)
        for support in device.targets
        if not support.when_named
    )


artifact_parts = parts
