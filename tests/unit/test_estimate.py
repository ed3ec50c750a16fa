"""Estimates: layers counted from graphs, probes, intervals, memory, and the planner."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import schemas
from edgekit.bench import estimate as documents
from edgekit.bench.arena import live_elements, stored_elements
from edgekit.bench.estimator import Estimator, Probe
from edgekit.bench.features import FEATURES, features, layer_features
from edgekit.bench.graph_layers import graph_of, layers_of
from edgekit.bench.layers import KINDS, Layer
from edgekit.bench.planner import ranked, ratio_spread
from edgekit.bench.probes import of_target, read_probes
from edgekit.bench.processors import setting_of, thread_choices
from edgekit.bench.setting import CORES, DESCRIPTORS, GROUPS
from edgekit.bench.subject import Subject, subject_of
from edgekit.device import Device, load, plan_targets
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.model import Model

pytestmark = pytest.mark.usefixtures("one_thread")


class Small(nn.Module):
    """A stem, a depthwise and a pointwise layer with a way around them, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.wide = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.point(self.deep(x).relu())
        x = nn.functional.silu(self.wide(x))
        return self.head(x.mean((2, 3)))


def model_of(module: nn.Module, *shape: int) -> Model:
    return Model.from_module(module.eval(), {"x": torch.randn(*shape)}, name="small")


@pytest.fixture(scope="module")
def small() -> Subject:
    torch.manual_seed(0)
    return subject_of(model_of(Small(), 1, 3, 32, 32))


def device_of(**changes: object) -> Device:
    """A Raspberry Pi 5 with other figures, known by none of the groups of its own chip."""
    data = load("raspberry-pi-5").to_json() | {"soc": "a chip that nobody measured"}
    data["cpu"]["clusters"][0].update(changes)
    return Device.model_validate(data)


# -- layers ---------------------------------------------------------------------------------------


def test_layers_are_counted_by_kind(small: Subject) -> None:
    found = [(layer.kind, layer.macs, layer.weights, layer.written) for layer in small.layers]
    assert found == [
        ("stem", 16 * 27 * 256, 16 * 27, 16 * 256),
        ("depthwise", 16 * 9 * 256, 16 * 9, 16 * 256),
        ("pointwise", 16 * 16 * 256, 16 * 16, 16 * 256),
        ("elementwise", 0, 0, 16 * 256),
        ("winograd", 32 * 16 * 9 * 256, 32 * 16 * 9, 32 * 256),
        ("elementwise", 0, 0, 32 * 256),  # SiLU, sigmoid and product in one
        ("pool", 0, 0, 32),
        ("linear", 320, 320, 10),
    ]
    assert {layer.kind for layer in small.layers} <= set(KINDS)
    assert small.layers[5].read == 32 * 256
    assert small.layers[0].name == "stem (conv2d)"


def test_attention_is_two_products_and_a_softmax() -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    layers = layers_of(graph_of(model_of(Attention(), 1, 2, 8, 4)))
    products = [layer for layer in layers if layer.kind == "product"]
    assert [layer.macs for layer in products] == [2 * 8 * 4 * 8, 2 * 8 * 8 * 4]
    assert sum(layer.kind == "norm" for layer in layers) == 1


def test_grouped_one_dimensional_and_transposed_convolutions() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.Conv1d(16, 32, 5, groups=2, padding=2)
            self.up = nn.ConvTranspose2d(32, 8, 2, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.grouped(x).unsqueeze(2))

    grouped, up = layers_of(graph_of(model_of(Other(), 1, 16, 20)))
    assert (grouped.kind, grouped.macs, grouped.taps) == ("grouped", 32 * 8 * 5 * 20, 5)
    assert (up.kind, up.macs, up.written) == ("conv", 32 * 8 * 4 * 20, 8 * 2 * 40)


def test_an_operator_that_nobody_measured_is_named() -> None:
    class Special(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(UnsupportedError, match="bessel_j0") as caught:
        subject_of(model_of(Special(), 1, 4))
    assert "edgekit bench" in caught.value.hint


def test_memory_by_liveness(small: Subject) -> None:
    # While the sum is made: the stem's map, the pointwise layer's, and the sum.
    assert small.live == 32 * 256 + 32 * 256 + 32 * 256  # SiLU: map, sigmoid of it, product
    weights = 16 * 27 + 16 + 16 * 9 + 16 + 16 * 16 + 16 + 32 * 144 + 32 + 320 + 10
    assert small.stored == weights


def test_views_and_fused_activations_take_no_memory() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1)).relu()

    graph = graph_of(model_of(Flat(), 1, 3, 4))
    assert live_elements(graph) == 12 + 4
    assert stored_elements(graph) == 12 * 4 + 4


@pytest.mark.slow  # four exports
@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("mobilenet_v2", "mobilenet_v2"),
        ("resnet18", "resnet18"),
        ("mobilenet_v3_large", "mobilenet_v3_large"),
    ],
)
def test_networks_written_down_are_torchvisions_own(name: str, network: str) -> None:
    benchmarks = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, benchmarks)
    try:
        from estimate_networks import NETWORKS
    finally:
        sys.path.remove(benchmarks)
    from edgekit.sources import load as source

    ours = features(NETWORKS[network]().layers, "fp32")
    theirs = features(layers_of(graph_of(source(f"torchvision:{name}"))), "fp32")
    few = FEATURES.index("other_layers")
    # The gates of squeeze and excitation, a few hundred elements, are spelt in other operators.
    np.testing.assert_allclose(np.delete(ours, few), np.delete(theirs, few), rtol=2e-3)
    assert ours[few] == pytest.approx(theirs[few], rel=0.2)


# -- features -------------------------------------------------------------------------------------


def test_features_are_the_sum_of_the_layers(small: Subject) -> None:
    whole = features(small.layers, "fp32")
    parts = sum(layer_features(layer, "fp32") for layer in small.layers)
    np.testing.assert_allclose(whole[:-1], parts[:-1])
    assert FEATURES[-1] == "run" and whole[-1] == 1
    int8 = dict(zip(FEATURES, features(small.layers, "int8"), strict=True))
    fp32 = dict(zip(FEATURES, whole, strict=True))
    assert fp32["traffic"] == pytest.approx(4 * int8["traffic"])
    assert fp32["pointwise"] == int8["pointwise"]


def test_traffic_counts_beyond_the_knees_only() -> None:
    layer = Layer.other("big", "elementwise", 100_000, 200_000)
    at = dict(zip(FEATURES, layer_features(layer, "fp32") * 4e6, strict=True))
    assert at["elementwise"] == 1_200_000
    assert at["traffic_512k"] == 1_200_000 - 512 * 1024
    assert at["traffic_2m"] == 0


# -- the estimator that ships ---------------------------------------------------------------------


def test_the_file_that_ships_is_small_sound_and_knows_no_model_by_name() -> None:
    path = Path(documents.__file__).with_name("estimator.json")
    assert path.stat().st_size < 1_000_000
    data = json.loads(path.read_text(encoding="utf-8"))
    schemas.validate(data)
    assert data["features"] == list(FEATURES)
    assert np.shape(data["slopes"]) == (len(DESCRIPTORS), len(FEATURES))
    assert set(data["groups"]) <= {name for name, _, _ in GROUPS} - {"session", "config"}
    named = path.read_text(encoding="utf-8").split('"sources"')[0].lower()
    assert not any(net in named for net in ("mobilenet", "resnet", "squeezenet", "vgg"))
    assert all(source["from"] and len(source["sha256"]) == 64 for source in data["sources"])


def test_factors_for_memory_are_sound() -> None:
    path = Path(documents.__file__).with_name("estimate_memory.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    schemas.validate(data)
    assert "tflite" in data["targets"] and data["facts"]["packages"]


def document(
    small: Subject, device: Device, scheme: str = "fp32", **given: object
) -> dict[str, object]:
    (job,) = plan_targets([device], ["tflite"], [scheme])
    return documents.estimate(small, device, job, **given)  # type: ignore[arg-type]


def test_a_document_keeps_to_its_schema(small: Subject) -> None:
    device = load("pixel-8")
    made = document(small, device, "w8a8") | {"plan": ranked(small, device, ["tflite"])}
    schemas.validate(made)
    assert made["estimate"] is True and made["coverage"] == 0.8
    latency = made["latency_ms"]
    assert latency["low"] < latency["p50"] < latency["high"]
    # What is not on an accelerator comes first.
    assert [a["name"] for a in made["falls_off"]["accelerators"]] == [
        "Mali-G715",
        "Google TPU (G3)",
    ]
    assert made["falls_off"]["delegate"]["undelegated_ops"] is None
    shares = [layer["share"] for layer in made["layers"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(kind["share"] for kind in made["by_kind"]) <= 1.0001
    assert any("bandwidth" in text for text in made["assumed"])


def test_what_a_bundle_holds_outside_the_delegate_is_told(small: Subject) -> None:
    device = load("pixel-8")
    (job,) = plan_targets([device], ["tflite"], ["w8a8"])
    placed = {job.id: {"undelegated_ops": 3, "first_undelegated": "CUSTOM"}}
    seen = Subject(small.name, small.layers, small.stored, small.live, placed)
    delegate = documents.estimate(seen, device, job)["falls_off"]["delegate"]
    assert (delegate["undelegated_ops"], delegate["first"]) == (3, "CUSTOM")


def test_a_faster_clock_and_more_threads_take_less_time(small: Subject) -> None:
    def ms(device: Device, threads: int) -> float:
        return document(small, device, threads=threads)["latency_ms"]["p50"]  # type: ignore[index]

    assert ms(device_of(ghz=2.4), 1) < 0.75 * ms(device_of(ghz=1.2), 1)
    assert ms(device_of(), 4) < ms(device_of(), 1)


def test_int8_gains_on_cores_with_dot_products() -> None:
    big = Layer.conv("c", 256, 256, (1, 1), 1, 1, (28, 28), 256 * 784)
    subject = Subject("m", (big,) * 8, 8 * 65536, 2 * 256 * 784, {})
    device = load("raspberry-pi-5")
    times = [document(subject, device, s, threads=1)["latency_ms"]["p50"] for s in ("fp32", "w8a8")]
    assert times[1] < 0.7 * times[0]


def test_an_unknown_core_is_extrapolated_with_a_wider_interval(small: Subject) -> None:
    def made(core: str) -> tuple[str, float]:
        found = document(small, device_of(core=core))
        latency = found["latency_ms"]
        return found["basis"], latency["high"] / latency["low"]  # type: ignore[index,return-value]

    known, near = made("Cortex-A76")
    unknown, far = made("Cortex-Z9")
    assert (known, unknown) == ("same core", "extrapolated")
    assert far > near


def test_a_graph_unlike_all_others_has_a_wider_interval(small: Subject) -> None:
    estimator = documents.shipped()
    setting, _ = setting_of(load("raspberry-pi-5"), "tflite", "xnnpack", "fp32", 1)
    strange = Subject("m", tuple(Layer.other("n", "norm", 9, 9) for _ in range(500)), 0, 9, {})
    near = estimator._graphs
    x = features(small.layers, "fp32")
    odd = features(strange.layers, "fp32")
    assert estimator.nearness(odd).max() < 1e-3 < 1 < len(near)
    assert estimator.estimate(odd, setting).spread > 0.16 - 1e-9
    assert estimator.estimate(x, setting).ms > 0


# -- probes ---------------------------------------------------------------------------------------


def probes_at(factor: float, device: Device, small: Subject) -> tuple[Estimator, list[Probe]]:
    """A probe that took ``factor`` times what was estimated of it."""
    estimator = documents.shipped()
    setting, _ = setting_of(device, "tflite", "xnnpack", "fp32", 1)
    net = Subject("p", small.layers * 3, 0, 1, {})
    x = features(net.layers, "fp32")
    return estimator, [Probe(x, setting, factor * math.exp(estimator.log_ms(x, setting)))]


def test_a_probe_moves_the_estimate_and_narrows_it(small: Subject) -> None:
    device = device_of(core="Cortex-Z9")
    _, slow = probes_at(2.0, device, small)
    _, same = probes_at(1.0, device, small)
    plain = document(small, device, threads=1)
    slower = document(small, device, threads=1, probes=slow)
    calm = document(small, device, threads=1, probes=same)

    def width(made: dict[str, object]) -> float:
        return made["latency_ms"]["high"] / made["latency_ms"]["low"]  # type: ignore[index]

    before, after = plain["latency_ms"]["p50"], slower["latency_ms"]["p50"]  # type: ignore[index]
    assert 1.7 * before < after < 2.05 * before
    assert calm["latency_ms"]["p50"] == pytest.approx(before, rel=1e-3)  # type: ignore[index]
    assert width(slower) < width(plain)
    assert slower["basis"] == "probed"


def test_a_probe_with_other_threads_says_less(small: Subject) -> None:
    device = device_of(core="Cortex-Z9")
    _, probes = probes_at(2.0, device, small)
    one = document(small, device, threads=1, probes=probes)["latency_ms"]["p50"]  # type: ignore[index]
    four = document(small, device, threads=4, probes=probes)["latency_ms"]["p50"]  # type: ignore[index]
    plain = document(small, device, threads=4)["latency_ms"]["p50"]  # type: ignore[index]
    moved = math.log(one / document(small, device, threads=1)["latency_ms"]["p50"])  # type: ignore[index]
    assert 0 < math.log(four / plain) < moved


def test_the_model_itself_measured_is_no_longer_guessed(small: Subject, tmp_path: Path) -> None:
    device = load("raspberry-pi-5")
    own = Subject(small.name, small.layers, small.stored, small.live, {}, {"tflite-fp32": 1234})
    result = {
        "artifact": "tflite-fp32", "target": "tflite", "scheme": "fp32", "threads": 1,
        "bytes": 1234, "latency_ms": {"p50": 7.5},
    }  # fmt: skip
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"schema": "edgekit.bench/1", "results": [result]}))
    probes = of_target(read_probes(path, device, own), "tflite")
    made = document(own, device, threads=1, probes=probes)
    assert made["basis"] == "measured"
    assert made["latency_ms"]["p50"] == 7.5  # type: ignore[index]
    assert document(own, device, threads=4, probes=probes)["basis"] == "probed"
    other = Subject(small.name, small.layers, small.stored, small.live, {}, {"tflite-fp32": 99})
    with pytest.raises(BadData, match="no artifact of what is estimated"):
        read_probes(path, device, other)


# -- what can't be estimated ----------------------------------------------------------------------


def test_delegates_and_schemes_without_measurements_are_refused(small: Subject) -> None:
    phone = load("iphone-15-pro")
    (job,) = plan_targets([phone], ["coreml"], ["fp16"])
    with pytest.raises(UnsupportedError, match="coreml") as caught:
        documents.estimate(small, phone, job)
    assert "tflite (xnnpack)" in caught.value.hint
    board = load("raspberry-pi-5")
    (job,) = plan_targets([board], ["openvino"], ["w8a8"])
    with pytest.raises(UnsupportedError, match="only these were measured"):
        documents.estimate(small, board, job)
    (wide,) = plan_targets([load("pixel-8")], ["tflite"], ["w8a16"])
    with pytest.raises(UnsupportedError, match="w8a16"):
        documents.estimate(small, load("pixel-8"), wide)


@pytest.mark.parametrize("name", ["pixel-6", "core-ultra", "intel-nuc", "arm-server", "host"])
def test_every_profile_of_a_processor_gives_a_setting(name: str) -> None:
    device = load(name)
    for entry in device.targets:
        if (entry.target, entry.delegate) in (("tflite", "xnnpack"), ("openvino", "cpu")):
            if entry.target == "openvino" and device.isa.arch != "x86_64":
                continue
            setting, _ = setting_of(device, entry.target, entry.delegate, "int8", device.threads)
            assert np.isfinite(setting.descriptors()).all()
            assert len(setting.groups()) == len(GROUPS)


def test_cores_have_sound_figures() -> None:
    for name, core in CORES.items():
        assert core.lanes > 0 and 0 <= core.depth <= 3, name


# -- the planner ----------------------------------------------------------------------------------


def test_ways_are_ranked_with_ties_and_reasons(small: Subject) -> None:
    device = load("raspberry-pi-5")
    rows = ranked(small, device)
    times = [row["latency_ms"]["p50"] for row in rows]
    assert times == sorted(times)
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["times_first"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    for row in rows[1:]:
        assert row["tied_with_first"] == (row["times_first"]["low"] <= 1.0)
        assert row["reason"]
    assert {row["target"] for row in rows} == {"tflite", "onnxruntime", "executorch"}
    # These kernels were measured on such cores; those were not.
    bases = {(row["target"], row["basis"]) for row in rows}
    assert ("tflite", "same core") in bases and ("onnxruntime", "extrapolated") in bases
    assert any(not row["tied_with_first"] for row in rows[1:])
    with pytest.raises(UsageError, match="no-such-target"):
        ranked(small, device, ["no-such-target"])


def test_all_cores_are_told_to_be_slower_than_the_big_ones() -> None:
    layers = tuple(Layer.conv("c", 64, 64, (3, 3), 1, 1, (56, 56), 64 * 3136) for _ in range(12))
    device = load("pixel-6")
    assert thread_choices(device) == [1, 2, 4, 8]
    rows = ranked(Subject("m", layers, 12 * 36864, 2 * 64 * 3136, {}), device, ["tflite"])
    w8a8 = {row["threads"]: row for row in rows if row["scheme"] == "w8a8"}
    assert w8a8[4]["rank"] < w8a8[8]["rank"]
    assert "little cores" in w8a8[8]["reason"]


def test_two_ways_on_one_device_differ_by_less_than_each_is_uncertain(small: Subject) -> None:
    device = device_of(core="Cortex-Z9")
    estimator, x = documents.shipped(), features(small.layers, "fp32")
    one, _ = setting_of(device, "tflite", "xnnpack", "fp32", 1)
    two, _ = setting_of(device, "tflite", "xnnpack", "fp32", 2)
    assert ratio_spread(estimator, one, x, two, x) < estimator.estimate(x, one).spread
    same = ratio_spread(estimator, one, x, one, x)
    assert same < ratio_spread(estimator, one, x, two, x)
