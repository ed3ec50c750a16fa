"""What every artifact of every target has to be: the plan's answers, constants and bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.compress.dynamic import as_computed
from edgekit.compress.graph import graph_module, tensor_of
from edgekit.parity import TOLERANCES, Check, ParityAccumulator, ParityReport
from edgekit.targets import find
from edgekit.targets._common import channel_digest
from edgekit.verify import Reference, Verdict, judge, look_closer

FLOAT32_ROUNDING = 1e-6
ALL_INTEGER = ("mlp", "mobilenet_v2", "resnet18")


def report_of(converted: Any) -> ParityReport:
    """Its answers against the plan's evaluation in torch, judged by the frozen figures."""
    prepared, scheme = converted.prepared, converted.scheme
    accumulator = ParityAccumulator(
        prepared.signature.outputs, TOLERANCES[scheme], prepared.steps(scheme)
    )
    reference = prepared.reference(scheme, converted.unrounded, converted.target)
    for i in range(len(prepared.labels)):
        accumulator.add(
            {name: value[i] for name, value in reference.items()},
            {name: converted.outputs[name][i] for name in converted.order},
        )
    return accumulator.report()


def verdict_of(converted: Any) -> Verdict:
    """The same as ``edgekit verify`` judges it: by the plan's floor, and then layer by layer.

    A whole network may move by more under rounding noise than the figures allow: EfficientNet-B0
    comes to 30 dB of itself, single steps of an output whose range a few samples stretch.
    """
    prepared, scheme = converted.prepared, converted.scheme
    held = Reference(
        scheme=scheme,
        feeds=prepared.feeds,
        outputs=prepared.reference(scheme, converted.unrounded, converted.target),
        steps=prepared.steps(scheme),
        floor=prepared.floor(scheme, converted.unrounded),
    )
    verdict = judge(
        held,
        prepared.signature,
        converted.outputs,
        converted.order,
        converted.distinct,
        stored_faults=None,
        runtime=converted.runtime,
    )
    return look_closer(
        verdict,
        converted.target,
        prepared.program,
        prepared.plan(scheme),
        prepared.signature,
        prepared.feeds,
    )


def figures(converted: Any, report: ParityReport) -> str:
    """The measured figures of every output, in a line each."""
    lines = [converted.what]
    for stats in report.outputs:
        agreement = "-" if stats.agreement is None else f"{stats.agreement:.4f}"
        within = "-" if stats.within_fraction is None else f"{stats.within_fraction:.5f}"
        lines.append(
            f"  {stats.name}: SQNR {stats.sqnr_db:.1f} dB, agreement {agreement} of "
            f"{stats.n_decisive} decisive, within 2 steps {within}, worst sample "
            f"{stats.worst_sample_db:.1f} dB, largest error {stats.max_error:.3g}"
        )
    return "\n".join(lines)


def test_the_model_has_learnt_its_task(converted: Any) -> None:
    """Else parity on it would say little: margins would be as small as the rounding."""
    prepared = converted.prepared
    right = prepared.right(prepared.reference(converted.scheme), prepared.labels)
    assert right >= 0.85, f"{prepared.name} {converted.scheme}: {right:.1%} right"


def test_answers_are_the_plans(converted: Any) -> None:
    report = report_of(converted)
    checks: tuple[Check, ...] = report.checks
    if converted.prepared.whole:
        verdict = verdict_of(converted)
        report, checks = verdict.report, verdict.checks
    text = figures(converted, report)
    print(text)  # shown by pytest -rP
    told = ("plan-floor", "layers")
    print(*(f"  {c.name}: {c.value} {c.detail}" for c in checks if c.name in told), sep="\n")
    failed = "\n".join(
        f"  {c.name}: {c.value} (limit {c.limit}) {c.detail}" for c in checks if c.passed is False
    )
    assert not failed, f"{text}\n{failed}"
    unjudged = [c.detail for c in checks if c.name == "layers" and c.passed is None]
    assert not unjudged, f"{text}\n{unjudged}"
    assert report.samples == len(converted.prepared.labels)


def test_answers_repeat_bit_for_bit(converted: Any) -> None:
    assert converted.distinct == 1, f"{converted.what}: {converted.distinct} different answers"


def test_names_and_types_are_the_signatures(converted: Any) -> None:
    signature, count = converted.prepared.signature, len(converted.prepared.labels)
    assert converted.order == tuple(spec.name for spec in signature.outputs)
    for spec in signature.outputs:
        value = converted.outputs[spec.name]
        assert (value.shape, str(value.dtype)) == ((count, *spec.shape), spec.dtype)


def test_copied_files_answer_the_same_in_another_process(converted: Any) -> None:
    for name, value in converted.outputs.items():
        assert np.array_equal(value, converted.reloaded[name]), f"{converted.what}: {name}"


def test_files_lie_together_and_carry_the_suffix(converted: Any) -> None:
    main = converted.files[0]
    assert main.suffix == find(converted.target).suffix
    assert all(f.parent == main.parent and f.stem == main.stem for f in converted.files)
    assert all(f.stat().st_size > 0 for f in converted.parts)


def test_files_name_no_machine_and_no_author(converted: Any) -> None:
    """Neither the folder it was made in, nor where the converter or the model's code lies."""
    here = [
        str(converted.files[0].parent),
        np.__file__.rsplit("/", 3)[0],
        __file__.rsplit("/", 3)[0],
    ]
    for file in converted.parts:
        data = file.read_bytes()
        assert not [place for place in here if place.encode() in data], (
            f"{converted.what}: {file.name}"
        )


def test_placement_counts_operators(converted: Any) -> None:
    placement = converted.placement
    assert placement["ops"] and all(n > 0 for n in placement["ops"].values())
    total = sum(placement["ops"].values())
    assert 0 <= placement["float_ops"] + placement["boundary_ops"] <= total, converted.what
    assert (placement["first_fallback"] is None) <= (placement["float_ops"] == 0) or (
        converted.scheme == "fp32"
    ), converted.what
    if converted.scheme == "fp32":
        assert placement["float_ops"] > 0, f"{converted.what}: {placement}"


def test_placement_counts_bytes(converted: Any) -> None:
    sizes = converted.placement["bytes_by_dtype"]
    stored = sum(f.stat().st_size for f in converted.parts)
    assert 0 < sum(sizes.values()) <= 1.05 * stored, f"{converted.what}: {sizes} in {stored} bytes"
    if converted.scheme == "w8a8" and "bert" not in converted.prepared.name:
        assert sizes["int8"] > sizes.get("float32", 0), f"{converted.what}: {sizes}"
    if converted.scheme == "fp32":
        assert "int8" not in sizes, f"{converted.what}: {sizes}"


def test_nothing_falls_back_to_float_where_every_runtime_has_integer_kernels(
    converted: Any,
) -> None:
    """Not in MobileNetV3 (hard-swish) and DistilBERT (layer norm and more)."""
    if converted.scheme != "w8a8" or converted.prepared.name not in ALL_INTEGER:
        return
    placement = converted.placement
    assert placement["float_ops"] <= 1, (  # one: the quantization of the input itself
        f"{converted.what}: {placement['first_fallback']}, {placement}"
    )


def test_stored_activations_are_the_plans(converted: Any) -> None:
    prepared = converted.prepared
    carried = converted.unrounded.not_stored()
    plan = carried.without(prepared.program, prepared.plan(converted.scheme))
    ours = [(e.scale[0], e.zero_point[0]) for e in plan.edges if e.kind == "activation"]
    theirs = [
        (s["scale"][0], s["zero_point"][0]) for s in converted.stored if s["kind"] == "activation"
    ]
    missing, extra = unmatched(ours, theirs), unmatched(theirs, ours)
    assert not missing, f"{converted.what}: in the plan, not in the file: {missing[:5]}"
    assert not extra, f"{converted.what}: in the file, not in the plan: {extra[:5]}"


def unmatched(
    wanted: list[tuple[float, int]], found: list[tuple[float, int]]
) -> list[tuple[float, int]]:
    """Those (scale, zero point) of ``wanted`` that are not in ``found``."""
    scales, zeros = (np.array([pair[i] for pair in found]) for i in (0, 1))
    return [
        (scale, zero)
        for scale, zero in sorted(set(wanted))
        if not ((np.abs(scales - scale) <= FLOAT32_ROUNDING * scale) & (zeros == zero)).any()
    ]


def test_stored_weights_are_the_plans(converted: Any) -> None:
    prepared = converted.prepared
    module = graph_module(prepared.program)
    plan = as_computed(module, prepared.plan(converted.scheme), find(converted.target))
    constants = plan.constants()
    ours = {}
    for node in module.graph.nodes:
        edge, value = constants.get(node.name), tensor_of(module, node)
        if edge is not None and edge.kind == "weight" and value is not None:
            ours[channel_digest(edge.quantize(value.numpy()), edge.axis)] = edge
    theirs = {s["digest"]: s for s in converted.stored if s["kind"] == "weight"}
    lost = [edge.edge for digest, edge in ours.items() if digest not in theirs]
    assert not lost, f"{converted.what}: these weights' integers are not in the file: {lost[:5]}"
    extra = [s["name"] for digest, s in theirs.items() if digest not in ours]
    assert not extra, f"{converted.what}: integers that the plan does not have: {extra[:5]}"
    for digest, edge in ours.items():
        scale = theirs[digest]["scale"]
        np.testing.assert_allclose(scale, edge.scale, rtol=FLOAT32_ROUNDING, err_msg=edge.edge)
        assert set(theirs[digest]["zero_point"]) == {0}, edge.edge


def test_stored_biases_are_the_plans(converted: Any) -> None:
    """Where a runtime stores biases as integers; others keep the rounded values as float.

    Kernels that must have one get zeros for a layer without: LR-ASPP's gate is such a layer.
    """
    plan = converted.prepared.plan(converted.scheme)
    ours = [np.array(e.scale) for e in plan.edges if e.kind == "bias"]
    for stored in converted.stored:
        if stored["kind"] != "bias" or not any(stored["values"]):
            continue
        scale = np.array(stored["scale"])
        assert any(
            scale.shape == own.shape and np.allclose(scale, own, rtol=FLOAT32_ROUNDING, atol=0)
            for own in ours
        ), f"{converted.what}: bias {stored['name']} has scales that the plan does not have"
        assert set(stored["zero_point"]) == {0}


def test_a_second_process_writes_the_same_bytes(converted: Any) -> None:
    if converted.again is None:
        return
    assert converted.hashes == converted.again, converted.what
