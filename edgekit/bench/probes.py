"""Probe runs: small known networks, measured on a device that a team has, that move its estimates.

`edgekit bench --probe` makes and measures them, on the device with ``--on``; `edgekit estimate
--probe` takes what that wrote. `edgekit estimate --write-probes` makes the files alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from edgekit.bench.estimator import Probe
from edgekit.bench.features import features
from edgekit.bench.processors import precision_of, setting_of
from edgekit.bench.subject import Subject, subject_of
from edgekit.device import Device
from edgekit.errors import BadData, StorageError
from edgekit.model import Model
from edgekit.names import SCHEMES

__all__ = ["NETWORKS", "name_of", "probe_model", "read_probes"]

NETWORKS: Final = {"mobilenet": "mobilenet_v2", "resnet": "resnet18", "squeezenet": "squeezenet1_1"}
"""Probes by name, as torchvision has them: narrow layers and depthwise ones, wide 3x3 ones, and
both 1x1 and 3x3. Their weights are random, which changes no latency."""

_SIDE = 224
_PREFIX = "probe-"


def probe_model(name: str) -> Model:
    """One of `NETWORKS`, with random weights, always the same."""
    import torch

    from edgekit._torchvision import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(torchvision().models, NETWORKS[name])(weights=None).eval()
        example = torch.rand(1, 3, _SIDE, _SIDE)
    return Model.from_module(net, {"x": example}, name=f"{_PREFIX}{name}")


def name_of(network: str, scheme: str) -> str:
    """The stem of a probe's file, by which its latency is found again."""
    return f"{_PREFIX}{network}-{scheme}"


def read_probes(path: Path, device: Device, own: Subject | None = None) -> list[tuple[str, Probe]]:
    """The probes in a file that `edgekit bench --json` wrote, by target.

    Args:
        path: the file.
        device: where it was measured.
        own: a bundle that is estimated; its artifacts, known by id and size, are measurements of
            the model itself.

    Raises:
        BadData: it is no such file, or holds no probe.
        StorageError: it can't be read.
        UnsupportedError: a probe ran through a delegate of which nothing is known.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path} is not JSON: {error}") from error
    documents = document if isinstance(document, list) else [document]
    found: list[tuple[str, Probe]] = []
    subjects: dict[str, Subject] = {}
    for one in documents:
        if not isinstance(one, dict) or one.get("schema") != "edgekit.bench/1":
            raise BadData(f"{path} is not what 'edgekit bench --json' writes")
        for result in one.get("results", []):
            probe = _probe(result, device, subjects, own)
            if probe is not None:
                found.append((str(result["target"]), probe))
    if not found:
        raise BadData(
            f"{path} measures no probe, and no artifact of what is estimated",
            hint="measure them: edgekit bench --probe TARGET-SCHEME --on URL --json",
        )
    return found


def _probe(
    result: Any, device: Device, subjects: dict[str, Subject], own: Subject | None
) -> Probe | None:
    artifact = str(result.get("artifact", ""))
    if not result.get("latency_ms"):
        return None
    if own is not None and own.sizes.get(artifact, -1) == result.get("bytes"):
        return _run(result, str(result["scheme"]), device, own)
    if not artifact.startswith(_PREFIX):
        return None
    stem = artifact.removeprefix(_PREFIX).partition(".")[0]
    network, _, scheme = stem.partition("-")
    if network not in NETWORKS or scheme not in SCHEMES:
        raise BadData(
            f"{artifact!r} is no probe that is known: {', '.join(NETWORKS)}, each with a scheme"
        )
    if network not in subjects:
        subjects[network] = subject_of(probe_model(network))
    return _run(result, scheme, device, subjects[network])


def _run(result: Any, scheme: str, device: Device, subject: Subject) -> Probe:
    target = str(result["target"])
    precision, stored = precision_of(scheme)
    delegate, threads = _delegate(target, device), int(result["threads"])
    setting, _ = setting_of(device, target, delegate, precision, threads)
    return Probe(
        features(subject.layers, precision, stored), setting, float(result["latency_ms"]["p50"])
    )


def _delegate(target: str, device: Device) -> str:
    known = [entry.delegate for entry in device.targets if entry.target == target]
    if not known:
        raise BadData(f"a probe was measured in {target}, which {device.id} does not run")
    return known[0]


def of_target(probes: Sequence[tuple[str, Probe]], target: str) -> list[Probe]:
    """Those of one target; all of them where there are none."""
    own = [probe for name, probe in probes if name == target]
    return own or [probe for _, probe in probes]
