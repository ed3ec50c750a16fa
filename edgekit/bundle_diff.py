"""What changed between two bundles, and what got worse beyond the interval of its measurement.

Two bundles were measured at different times, so their latencies say little beside each other; what
is compared is each artifact's time over its float twin's, which both come from the same rounds. The
interval of a difference is put together from those of the two figures by squaring and adding
(Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
Medicine, 1998, method 10; for other figures Zou and Donner, same journal, 2008). Both bundles'
accuracies are from the same samples, which that does not make use of: it is on the careful side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from edgekit.errors import BadData
from edgekit.metrics import sqnr_db
from edgekit.names import VERIFICATIONS
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.runtime.golden import unpack_golden
from edgekit.signature import TensorSpec

__all__ = ["CONTRACT", "SCHEMA", "diff"]

SCHEMA = "edgekit.bundle-diff/1"
CONTRACT = ("signature", "labels", "preprocess")
"""What an app that feeds the model and reads its answers is written against."""

_Z95 = NormalDist().inv_cdf(0.975)
_Interval = tuple[float, float]


def diff(old: Bundle, new: Bundle) -> dict[str, Any]:
    """The ``edgekit.bundle-diff/1`` document of two opened bundles.

    Artifacts belong together that have the same id; of the rest, those of one target, delegate,
    border and variant, where there is one on each side: their scheme changed.
    """
    bundle = [*_facts(old, new), *_contract(old, new), *_golden(old, new)]
    evaluations = _evaluation(old), _evaluation(new)
    artifacts = []
    for before, after in _pairs(old.artifacts, new.artifacts):
        one = after or before
        assert one is not None
        entry: dict[str, Any] = {"id": one.id, "change": "same", "changes": []}
        if before is None or after is None:
            entry["change"] = "added" if before is None else "removed"
        else:
            entry["changes"] = list(_artifact(before, after, *evaluations))
            entry["change"] = "changed" if entry["changes"] else "same"
            if before.id != after.id:
                entry["was"] = before.id
        artifacts.append(entry)
    worse = [(None, c) for c in bundle] + [(a["id"], c) for a in artifacts for c in a["changes"]]
    return {
        "schema": SCHEMA,
        "old": _about(old),
        "new": _about(new),
        "identical": old.digest == new.digest,
        "bundle": bundle,
        "artifacts": artifacts,
        "regressed": [
            c["what"] if id is None else f"{id}: {c['what']}"
            for id, c in worse
            if c["verdict"] == "worse"
        ],
        "removed": [a["id"] for a in artifacts if a["change"] == "removed"],
        "contract": [c["what"] for c in bundle if c["what"].partition(" ")[0] in CONTRACT],
    }


def _about(bundle: Bundle) -> dict[str, Any]:
    return {
        "path": str(bundle.path),
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
    }


def _change(
    what: str,
    values: Sequence[Any],
    verdict: str | None = "changed",
    detail: str | None = None,
    interval: _Interval | None = None,
) -> dict[str, Any]:
    old, new = values
    entry = {"what": what, "old": _scalar(old), "new": _scalar(new), "verdict": verdict}
    if interval is not None:
        entry["ci95"] = list(interval)
    return entry if detail is None else {**entry, "detail": detail}


def _scalar(value: Any) -> Any:
    """Numbers and texts as they are, all else as JSON."""
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


# -- the bundle as a whole ------------------------------------------------------------------------


def _facts(old: Bundle, new: Bundle) -> Iterator[dict[str, Any]]:
    for key in ("name", "version", "licence"):
        before, after = old.manifest.get(key), new.manifest.get(key)
        if before != after:
            yield _change(key, (before, after))
    models = [_mapping(b.manifest.get("model")) for b in (old, new)]
    for key in ("name", "digest", "parameters"):
        before, after = (model.get(key) for model in models)
        if before != after:
            yield _change(f"model {key}", (before, after))
    before, after = _evaluation(old), _evaluation(new)
    if before != after:
        told = [
            None if e is None else f"{e.get('source')}, {e.get('n')} samples"
            for e in (before, after)
        ]
        yield _change("evaluation data", told)


def _contract(old: Bundle, new: Bundle) -> Iterator[dict[str, Any]]:
    for side in ("inputs", "outputs"):
        before: Sequence[TensorSpec] = getattr(old.signature, side)
        after: Sequence[TensorSpec] = getattr(new.signature, side)
        for i in range(max(len(before), len(after))):
            told = [_tensor(specs[i]) if i < len(specs) else None for specs in (before, after)]
            if told[0] != told[1]:
                yield _change(f"signature {side[:-1]} {i}", told)
    if old.labels != new.labels:
        pairs = zip(old.labels, new.labels, strict=False)
        first = next(((i, a, b) for i, (a, b) in enumerate(pairs) if a != b), None)
        detail = None if first is None else f"the first: {first[0]}, {first[1]!r} to {first[2]!r}"
        yield _change("labels", [f"{len(b.labels)} labels" for b in (old, new)], detail=detail)
    before_, after_ = (_mapping(b.manifest.get("preprocess")) for b in (old, new))
    for key in sorted({*before_, *after_}):
        if before_.get(key) != after_.get(key):
            yield _change(f"preprocess {key}", (before_.get(key), after_.get(key)))


def _tensor(spec: TensorSpec) -> str:
    layout = f" {spec.layout}" if spec.layout else ""
    return f"{spec.name}: {spec.dtype} {list(spec.shape)}{layout}"


def _golden(old: Bundle, new: Bundle) -> Iterator[dict[str, Any]]:
    """The float model's own answers to the golden inputs."""
    entries = [_mapping(b.manifest.get("golden")) for b in (old, new)]
    hashes = [None if not e else str(e["sha256"]) for e in entries]
    if hashes[0] == hashes[1]:
        return
    detail = None
    if all(entries):
        try:
            detail = _compare_golden(
                *(
                    unpack_golden(b.read(str(e["path"])))
                    for b, e in zip((old, new), entries, strict=True)
                )
            )
        except BadData as error:
            detail = error.message
    yield _change("golden answers", hashes, detail=detail)


def _compare_golden(
    old: tuple[dict[str, Any], dict[str, Any]], new: tuple[dict[str, Any], dict[str, Any]]
) -> str:
    (feeds, before), (others, after) = old, new
    same = feeds.keys() == others.keys() and all(
        np.array_equal(feeds[name], others[name]) for name in feeds
    )
    if not same:
        return "other inputs"
    told = []
    for name in sorted(before.keys() & after.keys()):
        a, b = before[name], after[name]
        if a.shape != b.shape:
            told.append(f"{name}: {list(a.shape)} to {list(b.shape)}")
        elif not np.array_equal(a, b):
            worst = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
            ratio = sqnr_db(a, b)
            said = f"{name}: {worst:.4g} apart at most, SQNR {ratio:.1f} dB"
            if a.ndim == 2 and a.shape[1] > 1:
                agree = int((a.argmax(1) == b.argmax(1)).sum())
                said += f", the same class for {agree} of {len(a)}"
            told.append(said)
    return "; ".join(told) or "the same inputs and answers"


# -- one artifact ---------------------------------------------------------------------------------


def _pairs(
    old: Sequence[BundleArtifact], new: Sequence[BundleArtifact]
) -> list[tuple[BundleArtifact | None, BundleArtifact | None]]:
    """Artifacts that belong together, in the order of the new bundle, then what is gone."""
    before, used = {a.id: a for a in old}, set()
    ids = {a.id for a in new}
    pairs: list[tuple[BundleArtifact | None, BundleArtifact | None]] = []
    for artifact in new:
        found = before.get(artifact.id)
        if found is None:
            alike = [a for a in old if a.id not in ids and _kind(a) == _kind(artifact)]
            rivals = [a for a in new if a.id not in before and _kind(a) == _kind(artifact)]
            found = alike[0] if len(alike) == len(rivals) == 1 else None
        if found is not None:
            used.add(found.id)
        pairs.append((found, artifact))
    return [*pairs, *((a, None) for a in old if a.id not in used)]


def _kind(artifact: BundleArtifact) -> tuple[str | None, ...]:
    return artifact.target, artifact.delegate, artifact.io, artifact.variant


def _artifact(
    old: BundleArtifact,
    new: BundleArtifact,
    old_data: Mapping[str, Any] | None,
    new_data: Mapping[str, Any] | None,
) -> Iterator[dict[str, Any]]:
    if old.sha256 != new.sha256:
        yield _change("sha256", (old.sha256, new.sha256))
    for key in ("delegate", "scheme", "io", "variant"):
        if getattr(old, key) != getattr(new, key):
            yield _change(key, (getattr(old, key), getattr(new, key)))
    borders = [{} if a.border is None else a.border.to_json() for a in (old, new)]
    for key in sorted({*borders[0], *borders[1]}):
        if borders[0].get(key) != borders[1].get(key):
            yield _change(f"border {key}", [b.get(key) for b in borders])
    if old.devices != new.devices:
        yield _change("devices", (" ".join(old.devices), " ".join(new.devices)))
    for key in sorted({*old.requires, *new.requires}):
        if old.requires.get(key) != new.requires.get(key):
            yield _change(f"requires {key}", (old.requires.get(key), new.requires.get(key)))
    yield from _verified(old, new)
    yield from _counts(old, new)
    yield from _accuracy(old, new, old_data, new_data)
    yield from _speed(old, new)


def _verified(old: BundleArtifact, new: BundleArtifact) -> Iterator[dict[str, Any]]:
    if old.verification != new.verification:
        ranks = {name: rank for rank, name in enumerate(VERIFICATIONS)}
        worst = len(ranks)
        weaker = ranks.get(new.verification, worst) > ranks.get(old.verification, worst)
        verdict = "worse" if weaker else "better"
        yield _change("verification", (old.verification, new.verification), verdict)
    parities = [_least_sqnr(a) for a in (old, new)]
    if parities[0] != parities[1]:
        yield _change("parity_sqnr_db", parities, detail="none means identical or not known")


def _counts(old: BundleArtifact, new: BundleArtifact) -> Iterator[dict[str, Any]]:
    """Exact figures, of which fewer is better."""
    paths = {
        "float_ops": ("placement", "float_ops"),
        "undelegated_ops": ("placement", "undelegated_ops"),
        "macs": ("placement", "macs", "total"),
    }
    figures: dict[str, tuple[float | None, float | None]] = {"bytes": (old.bytes, new.bytes)}
    for name, path in paths.items():
        figures[name] = _number(old.evidence, *path), _number(new.evidence, *path)
    for name, (before, after) in figures.items():
        if before == after:
            continue
        verdict = None
        if before is not None and after is not None:
            verdict = "worse" if after > before else "better"
        yield _change(name, (before, after), verdict)
    first = [
        _mapping(_mapping(a.evidence).get("placement")).get("first_fallback") for a in (old, new)
    ]
    if first[0] != first[1]:
        yield _change("first_fallback", first)


def _accuracy(
    old: BundleArtifact,
    new: BundleArtifact,
    old_data: Mapping[str, Any] | None,
    new_data: Mapping[str, Any] | None,
) -> Iterator[dict[str, Any]]:
    before, after = (_number(a.evidence, "accuracy", "value") for a in (old, new))
    same = old_data is not None and old_data == new_data
    apart = None if same else "judged on other data"
    if before != after:
        n = _number({"data": new_data}, "data", "n")
        if not same or before is None or after is None or not n:
            yield _change("accuracy", (before, after), None, apart)
        else:
            ends = [_wilson(value, int(n)) for value in (before, after)]
            interval = _difference(before, ends[0], after, ends[1])
            yield _change("accuracy", (before, after), _verdict(interval, -1), None, interval)
    drops = [_number(a.evidence, "accuracy", "drop_points") for a in (old, new)]
    if drops[0] != drops[1]:
        intervals = [_interval(a.evidence, "accuracy", "drop_ci95") for a in (old, new)]
        yield _judged("drop_points", drops, intervals, apart)


def _speed(old: BundleArtifact, new: BundleArtifact) -> Iterator[dict[str, Any]]:
    ratios = [_number(a.evidence, "speed", "ratio") for a in (old, new)]
    if ratios[0] != ratios[1]:
        intervals = [_interval(a.evidence, "speed", "ci95") for a in (old, new)]
        yield _judged("time_over_float", ratios, intervals, None)
    said = "of two runs, which say little beside each other"
    for name, path in (
        ("latency_p50_ms", ("bench", "latency_ms", "p50")),
        ("peak_memory_mib", ("bench", "peak_memory_mib")),
    ):
        before, after = (_number(a.evidence, *path) for a in (old, new))
        if before != after:
            yield _change(name, (before, after), None, said)


def _judged(
    what: str,
    values: Sequence[float | None],
    intervals: Sequence[_Interval | None],
    apart: str | None,
) -> dict[str, Any]:
    """A figure of which less is better, by the interval of the difference."""
    (before, after), (first, second) = values, intervals
    if apart or before is None or after is None or first is None or second is None:
        return _change(what, (before, after), None, apart)
    interval = _difference(before, first, after, second)
    return _change(what, (before, after), _verdict(interval, 1), None, interval)


def _difference(old: float, old_ends: _Interval, new: float, new_ends: _Interval) -> _Interval:
    """The 95 % interval of ``new - old`` from those of both."""
    change = new - old
    down = math.hypot(new - new_ends[0], old_ends[1] - old)
    up = math.hypot(new_ends[1] - new, old - old_ends[0])
    return change - down, change + up


def _verdict(interval: _Interval, worse: int) -> str:
    """What an interval of a change says; ``worse`` is the sign of a change for the worse."""
    low, high = sorted(end * worse for end in interval)
    if low > 0:
        return "worse"
    return "better" if high < 0 else "no difference shown"


def _wilson(percent: float, n: int) -> _Interval:
    """Wilson's 95 % interval of a share of ``n`` samples, in percent."""
    p, z2 = min(max(percent / 100, 0.0), 1.0), _Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    reach = _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return 100 * min(middle - reach, p), 100 * max(middle + reach, p)


# -- reading what a manifest may hold in any form -------------------------------------------------


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _evaluation(bundle: Bundle) -> Mapping[str, Any] | None:
    return _mapping(_mapping(bundle.manifest.get("lineage")).get("evaluation")) or None


def _number(evidence: Mapping[str, Any], *path: str) -> float | None:
    value: Any = evidence
    for key in path:
        value = _mapping(value).get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _interval(evidence: Mapping[str, Any], *path: str) -> _Interval | None:
    value: Any = evidence
    for key in path:
        value = _mapping(value).get(key)
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = (_number({"end": end}, "end") for end in value)
    return None if low is None or high is None else (low, high)


def _least_sqnr(artifact: BundleArtifact) -> float | None:
    outputs = _mapping(artifact.evidence.get("verify")).get("outputs")
    rows = outputs if isinstance(outputs, list) else []
    known = [v for row in rows if (v := _number(_mapping(row), "sqnr_db")) is not None]
    return min(known, default=None)
