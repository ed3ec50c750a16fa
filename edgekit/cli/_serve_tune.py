"""`edgekit serve tune`: when a device asks the cloud, chosen from evaluation data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli._libraries import subdued
from edgekit.cli._output import emit, json_option, note, progress, table, verbosity_options
from edgekit.errors import BadData, GateFailed, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit.data import Samples
    from edgekit.runtime.bundle import Bundle, BundleArtifact
    from edgekit.runtime.cloud import Cloud
    from edgekit.serve.observing import Side, Teacher
    from edgekit.serve.tune import Observed, Rule
    from edgekit.signature import TensorSpec

__all__ = ["command"]

_LEAST = 100
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_PERCENT = click.FloatRange(0, 100)


@dataclass(frozen=True)
class _Request:
    """The options."""

    teacher: str
    teacher_artifact: str | None
    data: str
    report: str | None
    rule: Rule
    artifact: str | None
    signal: str
    output: str | None
    timeout_ms: float | None
    network_ms: float
    limit: int | None
    threads: int
    api_key_env: str
    ca: Path | None
    out: Path


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--teacher", required=True, metavar="BUNDLE_OR_URL",
              help="What the cloud runs: a bundle, or https://HOST/v2/models/NAME.")  # fmt: skip
@click.option("--eval", "data", required=True, metavar="DATA",
              help="Labelled data to choose on; without --report one half of it.")  # fmt: skip
@click.option("--report", metavar="DATA", help="Other labelled data, to tell what to expect of.")
@click.option("--keep", type=_PERCENT, metavar="PERCENT",
              help="Keep so much of the teacher's accuracy (99 without any rule).")  # fmt: skip
@click.option("--target-accuracy", type=_PERCENT, metavar="PERCENT", help="Reach this accuracy.")
@click.option("--max-cloud-share", type=_PERCENT, metavar="PERCENT",
              help="Send at most so many of the requests.")  # fmt: skip
@click.option("--artifact", metavar="ID", help="Of BUNDLE; needed where it has several.")
@click.option("--teacher-artifact", metavar="ID", help="Of the teacher's bundle.")
@click.option("--signal", type=click.Choice(("auto", "confidence", "entropy", "margin")),
              default="auto", show_default=True,
              help="What tells how sure an answer is; auto: what does so best.")  # fmt: skip
@click.option("--output", metavar="NAME", help="The output with the scores, of several.")
@click.option("--timeout-ms", type=click.FloatRange(0, min_open=True),
              help="How long an answer may take; goes into the policy.")  # fmt: skip
@click.option("--network-ms", type=click.FloatRange(0), default=0.0, show_default=True,
              help="What the network adds, for a teacher that is a bundle.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many samples.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True,
              help="Of each session.")  # fmt: skip
@click.option("--api-key-env", default="EDGEKIT_API_KEY", show_default=True, metavar="NAME",
              help="The environment variable with the server's key.")  # fmt: skip
@click.option("--ca", type=_FILE, help="Certificates to trust, in PEM.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path),
              help="Where the new bundle goes: a directory, or a .zip.")  # fmt: skip
@json_option
@verbosity_options
def command(
    bundle: Path,
    as_json: bool,
    keep: float | None,
    target_accuracy: float | None,
    max_cloud_share: float | None,
    **options: Any,
) -> None:
    """Choose when a device that runs BUNDLE asks the cloud.

    The device's artifact and the teacher answer the evaluation data. On one half (or all of it,
    with --report) a temperature is fitted to the device's scores, and a threshold chosen; on the
    rest the table is made: accuracy against the share that is sent against mean latency, and
    routing by lot beside it. The new bundle is the old one with the policy in its manifest.

    \b
    Exit codes: 0 written; 1 the rule cannot be met, or is missed on the samples that nothing was
    chosen on; 4 the server does not answer, 6 a bundle is not what its manifest says, 7 the data
    are no good.

    \b
    edgekit serve tune small.zip --teacher large.zip --eval dev.jsonl -o tuned.zip
    edgekit serve tune small.zip --teacher https://models.example.com/v2/models/large \\
        --eval dev.jsonl --report test.jsonl --max-cloud-share 20 -o tuned.zip --json
    """
    from edgekit.pack import check_destination, rewrite
    from edgekit.runtime.bundle import Bundle

    rule = _rule(keep, target_accuracy, max_cloud_share)
    request = _Request(rule=rule, **options)
    check_destination(request.out)
    with Bundle.open(bundle) as opened:
        with subdued():
            document, statistics = _tune(opened, request)
        changes = {"policy": document["policy"], "reference_statistics": statistics}
        rewrite(opened, changes, request.out)
    with Bundle.open(request.out) as written:
        told = {"name": written.name, "version": written.version, "digest": written.digest}
    document |= {"bundle": told, "out": str(request.out)}
    emit(document, as_json, lambda: _text(document))


def _rule(keep: float | None, accuracy: float | None, share: float | None) -> Rule:
    from edgekit.serve.tune import RULES, Rule

    given = [
        Rule(kind, value)
        for kind, value in zip(RULES, (keep, accuracy, share), strict=True)
        if value is not None
    ]
    if len(given) > 1:
        raise UsageError(
            f"one rule is wanted, not {' and '.join('--' + rule.kind for rule in given)}"
        )
    return given[0] if given else Rule("keep", 99.0)


def _tune(bundle: Bundle, request: _Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document, without the bundle that is still to be written, and its statistics."""
    from edgekit.runtime.policy import Policy
    from edgekit.serve.observing import open_teacher

    artifact = bundle.artifact(request.artifact)
    scored = Policy(output=request.output).scored(artifact.signature)
    sets = [request.data] if request.report is None else [request.data, request.report]
    found = []
    for data in sets:
        with open_teacher(
            request.teacher,
            artifact=request.teacher_artifact,
            device=bundle,
            output=scored,
            data=data,
            limit=request.limit,
            threads=request.threads,
            network_ms=request.network_ms,
            connect=lambda url: _connect(url, request),
        ) as teacher:
            found.append(_watched(bundle, artifact, scored, data, teacher, request))
    return _decided(bundle, artifact, scored, teacher, found, request)


@dataclass(frozen=True)
class _Watched:
    """Both sides' answers on one set of samples."""

    samples: Samples
    labels: npt.NDArray[np.int64]
    device: Side
    cloud: Side
    half: npt.NDArray[np.bool_]  # [N] which to choose on, where there is no other set

    @property
    def whole(self) -> npt.NDArray[np.bool_]:
        """[N] all of them."""
        return self.half | True


def _connect(url: str, request: _Request) -> Cloud:
    from edgekit.runtime.cloud import Cloud

    key = os.environ.get(request.api_key_env)
    return Cloud(url, api_key=key, ca=None if request.ca is None else str(request.ca))


def _watched(
    bundle: Bundle,
    artifact: BundleArtifact,
    scored: TensorSpec,
    data: str,
    teacher: Teacher,
    request: _Request,
) -> _Watched:
    import numpy as np

    from edgekit.serve.observing import halves, samples_of, side_of, watch

    samples = samples_of(bundle, data, request.limit, _LEAST)
    theirs = samples if teacher.samples is None else teacher.samples
    labels = [samples.label(i) for i in range(len(samples))]
    if labels != [theirs.label(i) for i in range(len(theirs))]:
        raise BadData(f"{data}: the two models read different labels out of it")
    count = 2 * len(samples)
    with progress(f"asking both models about {len(samples)} samples", count) as advance:
        with side_of(bundle, artifact, scored, request.threads) as run:
            device = watch(run, samples, advance)
        cloud = watch(teacher.run, theirs, advance)
    return _Watched(samples, np.array(labels), device, cloud, halves(samples))


def _decided(
    bundle: Bundle,
    artifact: BundleArtifact,
    scored: TensorSpec,
    teacher: Teacher,
    found: list[_Watched],
    request: _Request,
) -> tuple[dict[str, Any], dict[str, Any]]:
    from edgekit.runtime.drift_reference import with_policy
    from edgekit.runtime.policy import SIGNALS, Policy
    from edgekit.serve import tune

    first, last, rule = found[0], found[-1], request.rule
    # Of two sets each serves whole, of one a half for each.
    mine = first.half if len(found) == 1 else first.whole
    rest = ~first.half if len(found) == 1 else last.whole
    kind = tune.kind_of_scores(first.device.scores)
    temperature = tune.fit_temperature(first.device.scores[mine], first.labels[mine], kind)

    def observed(one: _Watched, rows: npt.NDArray[np.bool_], signal: str) -> Observed:
        return tune.observe(
            one.device.scores[rows], one.cloud.scores[rows], one.labels[rows],
            temperature=temperature, signal=signal, kind=kind,
        )  # fmt: skip

    signals = SIGNALS if request.signal == "auto" else (request.signal,)
    by_signal = {signal: observed(first, mine, signal) for signal in signals}
    # Of two classes all rank alike, but for rounding: then the first.
    signal = max(by_signal, key=lambda name: round(tune.ranking(by_signal[name]), 6))
    tuned, told = by_signal[signal], observed(last, rest, signal)
    threshold = tune.choose(tuned, rule)
    verdict = _verdict(rule, told, threshold)
    device_ms, cloud_ms = last.device.median_ms, last.cloud.median_ms + teacher.network_ms
    policy = Policy(
        temperature=temperature,
        min_confidence=threshold,
        otherwise="cloud",
        timeout_ms=request.timeout_ms,
        signal=signal,
        scores=kind,
        output=None if len(artifact.signature.outputs) == 1 else scored.name,
        same_inputs=teacher.samples is None,
        chosen={
            "rule": {"kind": rule.kind, "value": rule.value},
            "bundle": bundle.digest,
            "artifact": artifact.id,
            "teacher": teacher.to_json(),
            "tuned_on": _set(first, len(tuned)),
            "reported_on": _set(last, len(told)),
            "expected": tune.expected(told, threshold, device_ms, cloud_ms, teacher.kind),
        },
    )
    if teacher.kind == "estimate":
        note("the teacher ran in this process: its latency is an estimate, see --network-ms")
    document = {
        "schema": "edgekit.tune/1",
        "policy": policy.to_json(),
        "calibration": {
            name: tune.nll(last.device.scores[rest], last.labels[rest], t, kind)
            for name, t in (("nll_before", 1.0), ("nll_after", temperature))
        },
        "verdict": verdict,
        "curve": [p.to_json() for p in tune.curve(tuned, told, device_ms, cloud_ms)],
    }
    # The temperature was fitted on some of the others.
    return document, with_policy(bundle, policy, last.device.scores[rest], artifact.scheme)


def _verdict(rule: Rule, told: Observed, threshold: float) -> str:
    """Whether a rule holds where nothing was chosen on.

    Raises:
        GateFailed: it does not.
    """
    judged = rule.judged(told, threshold)
    if judged.verdict == "worse":
        raise GateFailed(
            f"{rule.kind} {rule.value:g} % is missed on the {len(told)} samples that nothing was "
            f"chosen on, by {-100 * judged.difference:.2f} points "
            f"(95 % interval {-100 * judged.high:.2f} to {-100 * judged.low:.2f})",
            hint="choose on more samples, or ask for less",
        )
    return "met" if judged.verdict == "better" else "not shown"


def _set(one: _Watched, n: int) -> dict[str, Any]:
    return {"source": Path(one.samples.source).name, "digest": one.samples.digest, "n": n}


def _text(document: Mapping[str, Any]) -> str:
    policy = document["policy"]
    chosen = policy["chosen"]
    hoped, rule, latency = (chosen["expected"], chosen["rule"], chosen["expected"]["latency"])
    headers = ["sent %", "below", "accuracy %", "by lot %", "gain [95 %]", "mean ms"]
    rows = [
        [
            round(p["cloud_share"], 1), round(p["threshold"], 4), round(p["accuracy"], 2),
            round(p["random"], 2),
            f"{p['gain']:+.2f} [{p['gain_ci95'][0]:+.2f}, {p['gain_ci95'][1]:+.2f}]",
            round(p["latency_ms"], 2),
        ]
        for p in document["curve"]
    ]  # fmt: skip
    share, accuracy, gain = hoped["cloud_share"], hoped["accuracy"], hoped["gain_over_random"]

    def span(value: Mapping[str, float]) -> str:
        return f"{value['value']:.2f} % [{value['low']:.2f}, {value['high']:.2f}]"

    calibration = document["calibration"]
    return "\n".join(
        [
            table(headers, rows),
            "",
            f"{rule['kind']} {rule['value']:g} %: ask the cloud where {policy['signal']} is below "
            f"{policy['min_confidence']:.4f} at temperature {policy['temperature']:.3f}",
            f"on {chosen['reported_on']['n']} samples that nothing was chosen on "
            f"({chosen['tuned_on']['n']} others were): {document['verdict']}",
            f"  sent      {span(share)}",
            f"  accuracy  {span(accuracy)}; device alone {hoped['device']:.2f} %, "
            f"teacher {hoped['teacher']:.2f} %",
            f"  by lot    {hoped['random']:.2f} %; better by {gain['value']:+.2f} points "
            f"[{gain['low']:+.2f}, {gain['high']:+.2f}]",
            f"  latency   {latency['mean_ms']:.2f} ms in the mean: device "
            f"{latency['device_ms']:.2f} ms, cloud {latency['cloud_ms']:.2f} ms "
            f"({latency['cloud_kind']})",
            f"  log loss  {calibration['nll_before']:.4f} -> {calibration['nll_after']:.4f}",
            f"{document['out']}: {document['bundle']['name']} "
            f"{document['bundle']['version']} ({document['bundle']['digest'][:12]})",
        ]
    )
