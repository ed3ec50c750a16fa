"""`edgekit verify` of artifacts that no runtime on this machine can run: their files are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.cli._found import Found, failed
from edgekit.errors import (
    EdgekitError,
    MissingDependency,
    StorageError,
    TrustError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from edgekit.runtime.bundle import Bundle, BundleArtifact

__all__ = ["SETTLED", "look", "through"]

SETTLED = (TrustError, StorageError, UsageError)
"""Errors that say nothing of one artifact: they end the verification."""


def through(artifact: BundleArtifact) -> str:
    from edgekit.names import through_target

    return through_target(artifact.target, artifact.delegate)


def look(bundle: Bundle, artifact: BundleArtifact, keep_going: bool) -> tuple[Found, str | None]:
    """Checks the file of an artifact that no runtime here can run, and says why it can't be
    emulated either; None if it can."""
    from edgekit.structure import AGAINST, checks_of
    from edgekit.targets import worker

    try:
        path = bundle.place(artifact)
    except UnsupportedError as error:
        if not keep_going:
            raise
        return failed(artifact, "installed", error), error.message
    task = {
        "op": "structure",
        "artifact": str(path.absolute()),
        "signature": artifact.signature.to_json(),
        "scheme": artifact.scheme,
    }
    try:
        (result,) = worker.run(through(artifact), [task])
        if "error" in result:
            raise result["error"]
    except SETTLED:
        raise
    except MissingDependency as error:  # installed, but it does not load
        if not keep_going:
            raise
        return failed(artifact, "installed", error), error.message
    except EdgekitError as error:
        return failed(artifact, "structure", error), error.message
    checks = checks_of(result["findings"], result["mutant"])
    found = Found(artifact, checks, AGAINST, result["runtime"], structural=True)
    return found, result["unemulated"]
