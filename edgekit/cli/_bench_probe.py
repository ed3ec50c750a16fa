"""`edgekit bench --probe`: the networks by which estimates of a device are moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.cli._output import progress
from edgekit.errors import UsageError
from edgekit.names import SCHEMES, TARGETS
from edgekit.scratch import scratch

__all__ = ["probed"]


def probed(
    name: str, device: str | None, measure: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """Makes the probes and measures one after the other; one document of all.

    Args:
        name: ``TARGET-SCHEME``, as artifacts are called.
        device: id of the profile they are made for; this machine if None.
        measure: gives the document of one artifact.

    Raises:
        UsageError: no such target or scheme.
        UnsupportedError: the device does not run that, or the target can't convert a probe.
    """
    from edgekit.bench.probes import NETWORKS, name_of
    from edgekit.device import load, plan_targets
    from edgekit.export.probing import write_probe

    target, scheme = _parted(name)
    (job, *_) = plan_targets([load(device or "host")], [target], [scheme])
    documents = []
    with scratch("probe") as folder:
        for network in NETWORKS:
            with progress(f"making the probe {network}"):
                path = write_probe(network, job, folder, name_of(network, scheme))
            documents.append(measure(path))
    whole = dict(documents[0])
    whole["results"] = [
        result | {"scheme": scheme} for one in documents for result in one["results"]
    ]
    if "gates" in whole:
        whole["gates"] = [gate for one in documents for gate in one["gates"]]
    return whole


def _parted(name: str) -> tuple[str, str]:
    for scheme in sorted(SCHEMES, key=len, reverse=True):
        target = name.removesuffix(f"-{scheme}")
        if target != name and target in TARGETS:
            return target, scheme
    raise UsageError(
        f"--probe {name} is no target and scheme", hint="write them as tflite-w8a8 or tflite-fp32"
    )
