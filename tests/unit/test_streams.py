"""Both runs node by node: their values, what they keep, and for how long."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import fx, nn

from edgekit.compress.fake import fake_quantize
from edgekit.compress.graph import canonical, compute_nodes, graph_module
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.streams import Streams, peak_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

Feeds = list[tuple[torch.Tensor, ...]]


class Branches(nn.Module):
    """Ids and numbers in, two results out, a split and a value that is read late."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.first(self.table(ids) + x)
        most, place = y.max(1, keepdim=True)
        z = torch.relu(self.second(y))
        return self.third(z) + y, most.softmax(-1) + place


@pytest.fixture(scope="module")
def feeds() -> Feeds:
    generator = torch.Generator().manual_seed(0)
    ids = (torch.randint(50, (1, 4), generator=generator) for _ in range(3))
    return [(i, torch.randn(1, 4, 8, generator=generator)) for i in ids]


@pytest.fixture(scope="module")
def program(feeds: Feeds) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return canonical(torch.export.export(Branches().eval(), feeds[0], strict=False))


@pytest.fixture(scope="module")
def plan(program: torch.export.ExportedProgram, feeds: Feeds) -> QuantPlan:
    return quantize(program, feeds)


class Recorder(fx.Interpreter):
    """A plain run that keeps every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[str, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        name = node.name
        if node.target is fake_quantize:
            name = node.all_input_nodes[0].name
        self.values[name] = value
        return value


def recorded(module: fx.GraphModule, feed: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    recorder = Recorder(module)
    with torch.no_grad():
        recorder.run(*feed)
    return recorder.values


def with_stored_constants(streams: Streams, module: fx.GraphModule, fake: fx.GraphModule) -> None:
    """Gives the quantized run the weights and biases of a rendered plan."""
    stored = {n.name: n for n in fake.graph.nodes if n.op == "get_attr"}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            streams.replace(node, fake.get_parameter(str(stored[node.name].target)).detach())


def test_both_runs_give_what_plain_runs_give(
    program: torch.export.ExportedProgram, plan: QuantPlan, feeds: Feeds
) -> None:
    # The table stays float: half precision does not hold its integers' values exactly.
    plan = dataclasses.replace(plan, edges=tuple(e for e in plan.edges if "table" not in e.edge))
    module, fake = graph_module(program), render(program, plan, "fake")
    streams, activations = Streams(module, plan.activations(), feeds), plan.activations()
    with_stored_constants(streams, module, fake)
    expected = [(recorded(module, f), recorded(fake, f)) for f in feeds]
    seen = set()
    with torch.no_grad():
        for node in module.graph.nodes:
            streams.advance(node)
            if node.op in ("get_attr", "output") or not node.users:
                continue
            for i, (exact, rounded) in enumerate(expected):
                x, y = streams.inputs(node, i)
                if not isinstance(x, torch.Tensor):
                    continue
                seen.add(node.name)
                assert x.dtype == exact[node.name].dtype and x.shape == exact[node.name].shape
                torch.testing.assert_close(x, exact[node.name], rtol=1e-2, atol=2e-3)
                # Half precision may move a value to the next integer.
                step = activations[node.name].scale[0] if node.name in activations else 2e-3
                torch.testing.assert_close(y, rounded[node.name], rtol=1e-2, atol=1.5 * step)
                if node.op == "placeholder":
                    assert torch.equal(x, exact[node.name])
    assert {n.name for n in compute_nodes(module)} <= seen and set(activations) <= seen


def test_quantized_values_are_whole_steps(
    program: torch.export.ExportedProgram, plan: QuantPlan, feeds: Feeds
) -> None:
    module, activations = graph_module(program), plan.activations()
    streams = Streams(module, activations, feeds)
    with torch.no_grad():
        for node in module.graph.nodes:
            streams.advance(node)
            if node.name in activations and node.op != "get_attr":
                edge, value = activations[node.name], streams.inputs(node, 0)[1]
                steps = value / edge.scale[0] + edge.zero_point[0]
                assert torch.allclose(steps, steps.round(), atol=1e-3)
                assert steps.min() >= -128.01 and steps.max() <= 127.01


def test_values_go_after_their_last_use(
    program: torch.export.ExportedProgram, plan: QuantPlan, feeds: Feeds
) -> None:
    module = graph_module(program)
    streams = Streams(module, plan.activations(), feeds)
    nodes = list(module.graph.nodes)
    last = {n: max((nodes.index(u) for u in n.users), default=-1) for n in nodes}
    with torch.no_grad():
        for place, node in enumerate(nodes):
            streams.advance(node)
            for run in (streams._float, streams._quantized):
                held = set(run)
                needed = {n for n in nodes[: place + 1] if last[n] > place and n.op != "get_attr"}
                assert needed <= held
                assert all(last[n] == -1 or last[n] > place for n in held if node.op != "output")
    results = set(module.graph.output_node().all_input_nodes)
    assert set(streams._float) - results <= {n for n in nodes if not n.users}


def test_a_shift_moves_the_quantized_run_alone(
    program: torch.export.ExportedProgram, plan: QuantPlan, feeds: Feeds
) -> None:
    module = graph_module(program)
    layer = next(compute_nodes(module))
    shift = torch.linspace(-0.5, 0.5, 8)
    moved, plain = (Streams(module, {}, feeds) for _ in range(2))
    with torch.no_grad():
        for node in module.graph.nodes:
            made = moved.outputs(node) if node is layer else None
            moved.advance(node, made, shift=shift if node is layer else None)
            plain.advance(node)
            if node is layer:
                assert made is not None and made[1] == [None] * 3, "freed while it was read"
                break
    for i in range(3):
        (x, y), (same, before) = moved.inputs(layer, i), plain.inputs(layer, i)
        assert torch.equal(x, same)
        torch.testing.assert_close(y, before + shift, rtol=1e-3, atol=1e-3)


def test_a_constant_is_replaced_in_the_quantized_run_alone(
    program: torch.export.ExportedProgram, feeds: Feeds
) -> None:
    module = graph_module(program)
    layer = next(compute_nodes(module))
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    streams = Streams(module, {}, feeds)
    streams.replace(weight, torch.zeros(8, 8))
    with torch.no_grad():
        for node in module.graph.nodes:
            streams.advance(node)
            if node is layer:
                break
    exact, changed = streams.inputs(layer, 0)
    assert torch.equal(changed, changed[:, :1].expand_as(changed)), "only the bias is left"
    assert not torch.equal(exact, exact[:, :1].expand_as(exact))


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e6])
def test_values_of_any_size_keep_their_digits(scale: float) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    feeds: Feeds = [(scale * torch.randn(1, 8),) for _ in range(2)]
    module = graph_module(canonical(torch.export.export(layers.eval(), feeds[0], strict=False)))
    streams = Streams(module, {}, feeds)
    first = next(compute_nodes(module))
    with torch.no_grad():
        for node in module.graph.nodes:
            streams.advance(node)
            if node is first:
                break
        expected = layers[0](*feeds[1])
    for got in streams.inputs(first, 1):
        torch.testing.assert_close(
            got, expected, rtol=2e-3, atol=1e-3 * float(expected.abs().max())
        )


def test_ids_given_as_numbers_stay_what_they_are() -> None:
    class Texts(nn.Module):
        """Ids as float32, which half precision has no room for beyond 2048."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5000, 4), nn.Linear(4, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.table(ids.long()))
            return result

    torch.manual_seed(0)
    texts, feeds = Texts().eval(), [(torch.tensor([[4999.0, 2049.0]]),)]
    module = graph_module(canonical(torch.export.export(texts, feeds[0], strict=False)))
    streams, head = Streams(module, {}, feeds), next(compute_nodes(module))
    with torch.no_grad():
        for node in module.graph.nodes:
            if node is head:
                break
            streams.advance(node)
        expected = texts.table(feeds[0][0].long())
    source = head.args[0]
    assert isinstance(source, fx.Node)
    torch.testing.assert_close(streams.inputs(source, 0)[0], expected, rtol=1e-3, atol=1e-3)


def test_the_peak_is_that_of_values_alive_together() -> None:
    class Wide(nn.Module):
        """4 values in, 100 and 100 between of which one waits, 2 out."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.same, self.down = (
                nn.Linear(4, 100),
                nn.Linear(100, 100),
                nn.Linear(100, 2),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.up(x)
            result: torch.Tensor = self.down(self.same(y) + y)
            return result

    exported = torch.export.export(Wide().eval(), (torch.zeros(1, 4),), strict=False)
    assert peak_bytes(graph_module(canonical(exported))) == 4 * 300
