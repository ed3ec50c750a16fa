"""What can stay in float by itself, what has to follow it, and what that costs."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from torch import nn

from edgekit.compress.graph import canonical, compute_nodes, graph_module, program_digest
from edgekit.compress.plan import QuantPlan
from edgekit.compress.precision import (
    Unit,
    all_macs,
    cost_of,
    find_units,
    float_constants,
    keep_float,
    with_float_constants,
)
from edgekit.compress.ptq import Methods, post_training, scaled
from edgekit.compress.quantize import quantize

pytestmark = pytest.mark.usefixtures("one_thread")

Program = torch.export.ExportedProgram


class Block(nn.Module):
    """A stem, a residual, a concatenation, a gate and two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.wide = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
        self.curve = nn.Conv2d(4, 4, 1)
        self.twice = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.wide(x)
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = nn.functional.hardswish(self.curve(x))
        x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        result: torch.Tensor = self.twice(torch.relu(self.twice(x)))
        return result


@pytest.fixture(scope="module")
def feeds() -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1, 2, 6, 6, generator=generator),) for _ in range(12)]


@pytest.fixture(scope="module")
def program(feeds: list[tuple[torch.Tensor, ...]]) -> Program:
    torch.manual_seed(0)
    return canonical(torch.export.export(Block().eval(), feeds[0], strict=False))


@pytest.fixture(scope="module")
def plan(program: Program, feeds: list[tuple[torch.Tensor, ...]]) -> QuantPlan:
    return quantize(program, feeds)


def unit(program: Program, plan: QuantPlan, name: str) -> Unit:
    [found] = [u for u in find_units(graph_module(program), plan) if u.name.split(" ")[0] == name]
    return found


def result_of(node: torch.fx.Node, edges: dict[str, object]) -> bool:
    return node.name in edges or any(u.name in edges and "relu" in u.name for u in node.users)


def test_every_edge_is_in_one_unit(program: Program, plan: QuantPlan) -> None:
    units = find_units(graph_module(program), plan)
    edges = [edge for u in units for edge in u.edges]
    assert sorted(edges) == sorted(e.node for e in plan.edges)
    names = [(u.name.split(" ")[0], u.kind) for u in units]
    assert names == [
        ("x", "activation"), ("stem", "layer"), ("wide", "layer"), ("add", "activation"),
        ("left", "layer"), ("curve", "layer"), ("hardswish", "activation"),
        ("adaptive_avg_pool2d", "activation"), ("twice", "layer"),
    ]  # fmt: skip
    assert unit(program, plan, "left").name.endswith("and 1 more")  # what shares a scale
    assert len(unit(program, plan, "twice").nodes) == 2  # what shares a weight
    kinds = {e.node: e.kind for e in plan.edges}
    assert [kinds[e] for e in unit(program, plan, "stem").edges].count("activation") == 1


def test_nothing_kept_is_the_plan_itself(program: Program, plan: QuantPlan) -> None:
    assert keep_float(graph_module(program), plan, []) == plan
    assert "sensitivity" not in plan.to_json()


def test_any_choice_leaves_nothing_dangling(program: Program, plan: QuantPlan) -> None:
    """A layer on integers has all its edges; one in float no weight, and a float border."""
    module = graph_module(program)
    units = find_units(module, plan)
    for size in (1, 2):
        for chosen in itertools.combinations(units, size):
            kept = keep_float(module, plan, chosen)
            assert not {e for u in chosen for e in u.edges} & {e.node for e in kept.edges}
            acts, constants = kept.activations(), kept.constants()
            for layer in compute_nodes(module):
                weight, bias = (str(a) in constants for a in layer.args[1:3])
                ends = (layer.args[0].name in acts, result_of(layer, acts))
                assert weight == bias == (ends == (True, True)), (layer, chosen)
            assert keep_float(module, kept, []) == kept
    nothing = keep_float(module, plan, units)
    assert nothing.edges == ()


def test_what_follows_is_named_with_its_reason(program: Program, plan: QuantPlan) -> None:
    module = graph_module(program)
    kept = keep_float(module, plan, [unit(program, plan, "wide")], reason="of the test")
    lost = {e.edge for e in plan.edges} - {e.edge for e in kept.edges}
    assert {"wide.weight", "wide.bias"} <= lost
    # The sum's other operand and its result stay: layers on integers write and read them.
    assert len(lost) == 3
    assert dict(kept.kept_float[len(plan.kept_float) :]) == {
        "conv2d_1": "of the test",
        "add": "beside wide (conv2d_1): of the test",
    }
    kept = keep_float(module, plan, [unit(program, plan, "stem")], reason="of the test")
    assert {n for n, _ in kept.kept_float} == {"conv2d", "conv2d_1", "add"}
    assert "x" not in kept.activations(), "nothing on integers reads it any more"


def test_costs(program: Program, plan: QuantPlan) -> None:
    module = graph_module(program)

    def cost(*names: str) -> tuple[int, int, int]:
        kept = keep_float(module, plan, [unit(program, plan, n) for n in names])
        found = cost_of(module, plan, kept)
        assert found.total >= found.macs
        return found.macs, found.bytes, found.border

    pixels = 36
    stem, wide, joined, curve, twice = (
        pixels * 4 * 18, pixels * 4 * 9, pixels * 4 * 4, pixels * 4 * 4, 2 * 16,
    )  # fmt: skip
    assert all_macs(module, plan) == stem + wide + joined + curve + twice
    # Its input from the stem is dequantized, and the sum that goes on to integers quantized.
    assert cost("wide") == (wide, 3 * 36, 2 * pixels * 4)
    # The sum is quantized, and the model's input need not be any more.
    assert cost("stem") == (stem + wide, 3 * (72 + 36), pixels * (4 - 2))
    assert cost("twice") == (twice, 3 * 16, 4)
    everything = cost(*(u.name.split(" ")[0] for u in find_units(module, plan)))
    assert everything == (all_macs(module, plan), 3 * (72 + 36 + 16 + 16 + 16), 0)


def test_layers_in_float_take_their_own_weights_back(
    program: Program, feeds: list[tuple[torch.Tensor, ...]]
) -> None:
    made = post_training(program, feeds)
    base, _ = scaled(program, feeds, Methods())
    module = graph_module(made.program)
    kept = keep_float(module, made.plan, [unit(made.program, made.plan, "wide")])
    assert sorted(float_constants(module, made.plan, kept, base)) == ["wide.bias", "wide.weight"]
    mixed = with_float_constants(made.program, module, made.plan, kept, base)
    assert torch.equal(mixed.state_dict["wide.weight"], base.state_dict["wide.weight"])
    assert not torch.equal(mixed.state_dict["wide.weight"], made.program.state_dict["wide.weight"])
    assert torch.equal(mixed.state_dict["stem.weight"], made.program.state_dict["stem.weight"])
    assert program_digest(mixed) != made.plan.program_digest


def test_a_plan_keeps_its_sensitivity(plan: QuantPlan) -> None:
    told = dataclasses.replace(plan, sensitivity={"n": 3, "layers": []})
    assert QuantPlan.from_json(json.loads(json.dumps(told.to_json()))) == told
    assert QuantPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert told.digest() != plan.digest()


class Tied(nn.Module):
    """One table is looked rows up in and multiplied with, another only looked up in."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(12, 8), nn.Embedding(5, 8)
        self.hidden = nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.hidden(self.words(ids) + self.places(places)))
        return nn.functional.linear(x, self.words.weight)


def test_tables_stay_in_float_with_what_multiplies_them() -> None:
    torch.manual_seed(0)
    feeds = [(torch.randint(12, (1, 4)), torch.randint(5, (1, 4))) for _ in range(6)]
    program = canonical(torch.export.export(Tied().eval(), feeds[0], strict=False))
    plan, module = quantize(program, feeds), graph_module(program)
    units = find_units(module, plan)
    assert sorted(e for u in units for e in u.edges) == sorted(e.node for e in plan.edges)
    assert keep_float(module, plan, []) == plan
    words, places = (unit(program, plan, n) for n in ("words", "places"))
    assert (words.kind, len(words.nodes), places.nodes) == ("layer", 2, ("embedding_1",))
    kept = keep_float(module, plan, [places], reason="of the test")
    assert {e.edge for e in plan.edges} - {e.edge for e in kept.edges} == {"places.weight"}
    assert dict(kept.kept_float)["embedding_1"] == "of the test"
    assert len(kept.kept_float) == len(plan.kept_float)
    cost = cost_of(module, plan, kept)
    assert (cost.macs, cost.bytes, cost.border, cost.total) == (0, 3 * 40, 0, 3 * 40)
    # The layer that multiplies by a table goes with it, whichever of the two is asked for.
    kept = keep_float(module, plan, [words])
    assert "words.weight" not in {e.edge for e in kept.edges}
    assert {"hidden.weight", "places.weight"} <= {e.edge for e in kept.edges}
    source = unit(program, plan, "hidden")
    assert "words.weight" not in {e.edge for e in keep_float(module, plan, [source]).edges}
