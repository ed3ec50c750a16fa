"""Which of a bundle's artifacts a server runs."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import UnsupportedError
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.runtime.session import unavailable

__all__ = ["FLOAT_FIRST", "SCHEMES", "TARGETS", "choose"]

TARGETS = ("openvino", "onnxruntime")
"""Runtimes made for servers, in the order in which they are taken."""

SCHEMES = ("w8a8", "w8a8-dyn", "w8", "w8a16", "w4", "fp16", "fp32")
"""In the order in which they are taken: int8 before float."""

FLOAT_FIRST = ("fp32", "fp16", *SCHEMES[:-2])
"""The order for a teacher, which is there to be right."""


def choose(
    bundle: Bundle, id: str | None = None, schemes: Sequence[str] = SCHEMES
) -> BundleArtifact:
    """The artifact to serve: by its id, or the first of `TARGETS` and schemes that runs here.

    Raises:
        UsageError: there is none with that id.
        UnsupportedError: none of them is for a server, or runs on this processor.
    """
    if id is not None:
        return bundle.artifact(id)
    refused: UnsupportedError | None = None
    for target in TARGETS:
        for scheme in schemes:
            if unavailable(target) is not None or not any(
                (a.target, a.scheme) == (target, scheme) for a in bundle.artifacts
            ):
                continue
            try:
                return bundle.artifact(target=target, scheme=scheme)
            except UnsupportedError as error:
                refused = refused or error
    if refused is not None:
        raise refused
    listed = ", ".join(artifact.id for artifact in bundle.artifacts)
    raise UnsupportedError(
        f"bundle {bundle.name!r} has no artifact for {' or '.join(TARGETS)}; it has: {listed}",
        hint="export it with --target openvino, or name one of these with --artifact",
    )
