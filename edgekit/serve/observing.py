"""Both sides on the same samples: a bundle's artifact, and a teacher, a bundle or a server."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.data import Samples, load
from edgekit.errors import BadData, UsageError
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.runtime.cloud import Cloud
from edgekit.runtime.policy import Policy
from edgekit.serve.choice import choose
from edgekit.signature import Signature, TensorSpec

__all__ = ["Side", "Teacher", "halves", "open_teacher", "samples_of", "side_of", "watch"]

Feeds = Mapping[str, npt.NDArray[Any]]
Run = Callable[[Feeds], npt.NDArray[Any]]

_WARM = 3


@dataclass(frozen=True)
class Side:
    """What one side answered.

    Attributes:
        scores: [N, C].
        median_ms: of one request.
    """

    scores: npt.NDArray[Any]
    median_ms: float


@dataclass(frozen=True)
class Teacher:
    """The cloud's model.

    Attributes:
        name, version, digest: which; the digest is None of a server.
        run: gives the scores [1, C] of one sample.
        samples: how it takes them; None: as the device does.
        kind: ``measured`` where a whole request is timed, else ``estimate``.
        network_ms: what is added to the model's own time under ``estimate``.
    """

    name: str
    version: str | None
    digest: str | None
    run: Run
    samples: Samples | None
    kind: str
    network_ms: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Which it is, as the policy's document says it."""
        return {"name": self.name, "version": self.version, "digest": self.digest}


def samples_of(bundle: Bundle, data: str, limit: int | None, least: int) -> Samples:
    """Evaluation samples as a bundle's model takes them.

    Raises:
        BadData: see `edgekit.data.load`; or a sample has no label.
    """
    samples = load(
        data,
        signature=bundle.signature,
        preprocess=bundle.preprocess(),
        split="eval",
        limit=limit,
        min_samples=least,
    )
    if any(samples.label(i) is None for i in range(len(samples))):
        raise BadData(f"{samples.source}: a sample has no label, and tuning needs one of each")
    return samples


@contextmanager
def side_of(
    bundle: Bundle, artifact: BundleArtifact, output: TensorSpec, threads: int
) -> Iterator[Run]:
    """An artifact, opened: what gives its scores."""
    session = bundle.session(artifact, threads=threads)
    try:
        yield lambda feeds: session.run(feeds)[output.name]
    finally:
        session.close()


@contextmanager
def open_teacher(
    spec: str,
    *,
    artifact: str | None,
    device: Bundle,
    output: TensorSpec,
    data: str,
    limit: int | None,
    threads: int,
    network_ms: float,
    connect: Callable[[str], Cloud],
) -> Iterator[Teacher]:
    """The teacher that a user named.

    Args:
        spec: a bundle's path, or a server's URL with a model.
        artifact: of a bundle; None: the one that a server would run.
        device: the bundle that is tuned.
        output: its output with the scores; the teacher's must have the same classes.
        data, limit: as of `samples_of`.
        threads: of a bundle's session.
        network_ms: what a request to it would take beside the model's own time.
        connect: makes a client of a URL.

    Raises:
        UsageError: it takes or gives something else.
        CloudError: the server does not answer.
    """
    if spec.startswith(("http://", "https://")):
        with connect(spec) as cloud:
            yield _server(cloud, device.signature, output)
        return
    with Bundle.open(Path(spec)) as bundle:
        chosen = choose(bundle, artifact)
        theirs = Policy(output=None if len(chosen.signature.outputs) == 1 else output.name)
        scored = theirs.scored(chosen.signature)
        if scored.shape != output.shape or _labels(bundle) != _labels(device):
            raise UsageError(
                f"the teacher gives {scored.shape} of {_labels(bundle)}, the device "
                f"{output.shape} of {_labels(device)}",
                hint="both have to tell the same classes in the same order",
            )
        same = _same_inputs(device, bundle)
        samples = None if same else samples_of(bundle, data, limit, 1)
        with side_of(bundle, chosen, scored, threads) as run:
            yield Teacher(
                bundle.name, bundle.version, bundle.digest, run, samples, "estimate", network_ms
            )


def _server(cloud: Cloud, signature: Signature, output: TensorSpec) -> Teacher:
    stated = cloud.metadata(timeout_ms=10_000)
    wanted = {spec.name: (spec.shape[1:], spec.dtype) for spec in signature.inputs}
    found = {spec.name: (spec.shape[1:], spec.dtype) for spec in stated.inputs}
    if wanted != found:
        raise UsageError(
            f"the server's model takes {found}, the device's {wanted}",
            hint="where they take different tensors, name the teacher's bundle",
        )
    first = cloud.infer(_zeros(signature), [output], timeout_ms=30_000)

    def run(feeds: Feeds) -> npt.NDArray[Any]:
        return cloud.infer(feeds, [output], timeout_ms=30_000).outputs[output.name]

    return Teacher(str(cloud.model), first.version, None, run, None, "measured")


def _zeros(signature: Signature) -> dict[str, npt.NDArray[Any]]:
    return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in signature.inputs}


def _labels(bundle: Bundle) -> tuple[str, ...]:
    return bundle.labels


def _same_inputs(one: Bundle, other: Bundle) -> bool:
    """Whether both take the very same tensors of the same data."""
    specs = [
        [(spec.name, spec.shape, spec.dtype) for spec in bundle.signature.inputs]
        for bundle in (one, other)
    ]
    alike = one.manifest.get("preprocess") == other.manifest.get("preprocess")
    return specs[0] == specs[1] and alike


def watch(run: Run, samples: Samples, advance: Callable[[int], None]) -> Side:
    """Runs one side on every sample, one at a time, and times it.

    Raises:
        BadData: a score is not finite.
    """
    scores, seconds = [], []
    for i in range(len(samples)):
        feeds = samples.feed(i)
        if i == 0:
            for _ in range(_WARM):
                run(feeds)
        started = time.perf_counter()
        found = run(feeds)
        seconds.append(time.perf_counter() - started)
        if not np.isfinite(found).all():
            raise BadData(f"{samples.source}: sample {i} is answered with NaN or infinity")
        scores.append(np.array(found))
        advance(1)
    return Side(np.concatenate(scores), 1000 * float(np.median(seconds)))


def halves(samples: Samples, seed: int = 0) -> npt.NDArray[np.bool_]:
    """[N] which samples to choose on; the others are for the report. By a hash of each, so that
    equal samples stay together and the division depends on nothing else."""
    found = []
    for i in range(len(samples)):
        total = hashlib.sha256(str(seed).encode())
        for name, value in sorted(samples.feed(i).items()):
            total.update(name.encode() + np.ascontiguousarray(value).tobytes())
        found.append(total.digest()[0] % 2 == 0)
    return np.array(found, bool)
