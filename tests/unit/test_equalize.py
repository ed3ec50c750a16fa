"""Equalization: the same answers, channels of even reach, and what must be left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from edgekit.compress.equalize import equalize, find_pairs
from edgekit.compress.graph import canonical, graph_module, program_digest, tensor_of

pytestmark = pytest.mark.usefixtures("one_thread")

Program = torch.export.ExportedProgram
Feeds = list[tuple[torch.Tensor, ...]]
PICTURE = (1, 3, 6, 6)


def uneven(module: nn.Module) -> nn.Module:
    """Makes the channels of every layer but the last reach very differently."""
    layers = [m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer in layers[:-1]:
            factors = torch.logspace(0, -1, len(layer.weight))
            layer.weight.mul_(factors.reshape(-1, *[1] * (layer.weight.dim() - 1)))
            if layer.bias is not None:
                layer.bias.mul_(factors)
    return module.eval()


def normal(*shape: int, n: int = 4) -> Feeds:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(*shape, generator=generator),) for _ in range(n)]


def program_of(module: nn.Module, feeds: Feeds) -> Program:
    return canonical(torch.export.export(module.eval(), feeds[0], strict=False))


def answers(program: Program, feeds: Feeds) -> torch.Tensor:
    module = graph_module(program)
    with torch.no_grad():
        return torch.stack([module(*feed) for feed in feeds])


def reaches(program: Program, feeds: Feeds) -> torch.Tensor:
    """The largest absolute value of every channel between the two layers."""
    module = graph_module(program)
    [pair] = find_pairs(module)
    module.graph.output_node().args = (pair.value,)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    axis = -1 if "linear" in str(pair.first.target) else 1
    with torch.no_grad():
        values = torch.stack([module(*feed) for feed in feeds], -1)
    channels = values.movedim(axis - 1 if axis < 0 else axis, 0)
    return channels.abs().flatten(1).amax(1)


class Calls(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, call: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self, x)


EVENED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv-relu-conv": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        PICTURE,
    ),
    "conv-conv": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)), PICTURE),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)),
        PICTURE,
    ),
    "depthwise, two outputs per channel": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=8)),
        PICTURE,
    ),
    "padded": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 4, 3)),
        PICTURE,
    ),
    "without biases": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 1, bias=False)),
        PICTURE,
    ),
    "one axis": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1)),
        (1, 3, 9),
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (1, 6)),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (1, 5, 6)),
}


@pytest.mark.parametrize("name", EVENED)
def test_channels_become_more_even_and_answers_stay(name: str) -> None:
    torch.manual_seed(0)
    build, shape = EVENED[name]
    feeds = normal(*shape)
    program = program_of(uneven(build()), feeds)
    digest = program_digest(program)
    [pair] = find_pairs(graph_module(program))
    assert pair.depthwise == name.startswith("depthwise")
    even = equalize(program, feeds)
    assert program_digest(program) == digest != program_digest(even)
    expected, got = answers(program, feeds), answers(even, feeds)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    before, after = reaches(program, feeds), reaches(even, feeds)
    wider = before.max() / before.min(), after.max() / after.min()
    assert wider[1] < 0.7 * wider[0]
    assert (after >= 0.999 * before).all(), "channels are scaled up, none down"
    assert after.max() <= 1.001 * before.max()


def test_before_a_depthwise_layer_every_channel_fills_the_range() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4))
    feeds = normal(*PICTURE)
    with torch.no_grad():
        layers[0].weight[1] *= 1e-4
        layers[0].bias[1] = 1e-4
        layers[0].weight[2] = 0
        layers[0].bias[2] = -1.0
    program = program_of(layers, feeds)
    before, after = (reaches(p, feeds) for p in (program, equalize(program, feeds)))
    assert torch.allclose(after[[0, 3]], before[[0, 3]].max().expand(2), rtol=1e-3)
    assert torch.isclose(after[1] / before[1], torch.tensor(64.0), rtol=1e-4), (
        "no channel is scaled by more"
    )
    assert after[2] == before[2] == 0, "a silent one"


ALONE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu6": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1)), PICTURE),
    "gelu": (lambda: nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 4)), (1, 6)),
    "a residual branch": (
        lambda: Calls(
            lambda s, x: s.b(y := torch.relu(s.a(x))) + y, a=nn.Linear(6, 4), b=nn.Linear(4, 4)
        ),
        (1, 6),
    ),
    "a result": (
        lambda: Calls(
            lambda s, x: torch.cat([y := s.a(x), s.b(y)], 1), a=nn.Linear(6, 4), b=nn.Linear(4, 4)
        ),
        (1, 6),
    ),
    "a shared layer": (
        lambda: Calls(lambda s, x: s.a(torch.relu(s.a(x))), a=nn.Linear(6, 6)),
        (1, 6),
    ),
    "some groups": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2)),
        PICTURE,
    ),
    "a transposed convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 1)),
        PICTURE,
    ),
    "behind a transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 1), nn.Conv2d(4, 4, 1)),
        PICTURE,
    ),
    "padding with ones": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConstantPad2d(1, 1.0), nn.Conv2d(4, 4, 1)),
        PICTURE,
    ),
    "more channels": (
        lambda: Calls(
            lambda s, x: s.b(pad(s.a(x), (0, 0, 0, 0, 1, 1))),
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(6, 4, 1),
        ),
        PICTURE,
    ),
    "channels moved on": (
        lambda: Calls(lambda s, x: s.b(pad(s.a(x), (1, -1))), a=nn.Linear(6, 4), b=nn.Linear(4, 4)),
        (1, 6),
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_can_not_be_scaled_is_left_alone(name: str) -> None:
    torch.manual_seed(0)
    build, shape = ALONE[name]
    feeds = normal(*shape)
    program = program_of(uneven(build()), feeds)
    assert find_pairs(graph_module(program)) == []
    assert program_digest(equalize(program, feeds)) == program_digest(program)


def test_tied_weights_are_left_alone() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    layers[2].weight = layers[0].weight
    feeds = normal(1, 4)
    program = program_of(layers, feeds)
    assert torch.equal(answers(equalize(program, feeds), feeds), answers(program, feeds))


def test_a_chain_and_a_choice_of_its_pairs() -> None:
    torch.manual_seed(0)
    relu, layers = nn.ReLU(), [nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)]
    feeds = normal(1, 6)
    program = program_of(uneven(nn.Sequential(layers[0], relu, layers[1], relu, layers[2])), feeds)
    pairs = find_pairs(graph_module(program))
    assert len(pairs) == 2
    expected = answers(program, feeds)
    for chosen, changed in ((pairs, 5), (pairs[1:], 3), ([], 0)):
        even = equalize(program, feeds, chosen)
        assert (answers(even, feeds) - expected).abs().max() < 1e-5 * expected.abs().max()
        old, new = graph_module(program), graph_module(even)
        constants = [n for n in old.graph.nodes if n.op == "get_attr"]
        same = [torch.equal(tensor_of(old, n), tensor_of(new, n)) for n in constants]  # type: ignore[arg-type]
        assert same.count(False) == changed


def test_samples_that_are_silent_change_nothing() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 4))
    feeds = [(torch.zeros(1, 6),)]
    program = program_of(uneven(layers), feeds)
    assert torch.equal(
        answers(equalize(program, feeds), normal(1, 6)), answers(program, normal(1, 6))
    )
