"""The canonical form: the model's own answers, one set of names, everything constant computed."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from edgekit.compress.graph import (
    aten,
    canonical,
    compute_nodes,
    example_args,
    graph_module,
    layer_of,
    program_digest,
    tensor_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def program_of(module: nn.Module, *args: torch.Tensor) -> torch.export.ExportedProgram:
    """The canonical program of a module in eval mode."""
    return canonical(torch.export.export(module.eval(), args, strict=False))


def operators(program: torch.export.ExportedProgram) -> list[Any]:
    """The operators that it calls, in order."""
    return [n.target for n in graph_module(program).graph.nodes if n.op == "call_function"]


def answer(program: torch.export.ExportedProgram, *args: torch.Tensor) -> torch.Tensor:
    """Its only output."""
    with torch.no_grad():
        result = graph_module(program)(*args)
    value: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return value


def settle(module: nn.Module) -> nn.Module:
    """Gives batch norm statistics and weights as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator)
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.5
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5, generator)
                nn.init.normal_(part.bias, generator=generator)
    return module


class Residual(nn.Module):
    """Convolutions with batch norm and dropout, an in-place activation and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        )
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(192, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.body(x) + x)
        return result


def test_gives_the_modules_answers() -> None:
    torch.manual_seed(0)
    module = settle(Residual())
    program = program_of(module, X)
    for scale in (1.0, -3.0):
        expected = module(scale * X)
        torch.testing.assert_close(answer(program, scale * X), expected, rtol=1e-5, atol=1e-5)


def test_the_program_given_is_not_changed() -> None:
    torch.manual_seed(0)
    program = torch.export.export(settle(Residual()).eval(), (X,), strict=False)
    before = program_digest(program)
    canonical(program)
    assert program_digest(program) == before


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)),
        (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)),
        (nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)),
        (nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)),
    ],
    ids=["depthwise", "no-affine", "transposed", "linear"],
)
def test_batch_norm_is_folded(layers: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    module = settle(nn.Sequential(*layers))
    program = program_of(module, X)
    assert not [op for op in operators(program) if "norm" in str(op)]
    torch.testing.assert_close(answer(program, X), module(X), rtol=1e-5, atol=1e-5)


def test_batch_norm_that_no_layer_can_absorb_stays() -> None:
    class Twice(nn.Module):
        """One convolution whose result is used with and without normalization."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            result: torch.Tensor = self.norm(y) + y
            return result

    torch.manual_seed(0)
    grouped = nn.Sequential(nn.ConvTranspose2d(3, 3, 2, groups=3), nn.BatchNorm2d(3))
    for module in (Twice(), nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), grouped):
        program = program_of(settle(module), X)
        assert [op for op in operators(program) if "batch_norm" in str(op)]
        torch.testing.assert_close(answer(program, X), module(X), rtol=1e-5, atol=1e-5)


def test_dropout_and_in_place_operators_are_gone() -> None:
    found = operators(program_of(settle(Residual()), X))
    assert found == [
        aten.conv2d.default,
        aten.relu.default,
        aten.add.Tensor,
        aten.view.default,
        aten.linear.default,
    ]


def test_names_and_digest_survive_saving() -> None:
    program = program_of(settle(Residual()), X)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert program_digest(loaded) == program_digest(program)
    names = [[n.name for n in graph_module(p).graph.nodes] for p in (loaded, program)]
    assert names[0] == names[1]


def test_the_canonical_form_is_its_own() -> None:
    program = program_of(settle(Residual()), X)
    assert program_digest(canonical(program)) == program_digest(program)


def test_equal_models_have_one_digest_and_others_another() -> None:
    def digest(bias: float) -> str:
        torch.manual_seed(0)
        module = settle(Residual())
        with torch.no_grad():
            module.head[2].bias[0] += bias  # type: ignore[index,union-attr]
        return program_digest(program_of(module, X))

    assert digest(0.0) == digest(0.0)
    assert digest(0.0) != digest(1e-3)


def test_layers_are_called_what_their_author_called_them() -> None:
    module = graph_module(program_of(settle(Residual()), X))
    assert [layer_of(n) for n in compute_nodes(module)] == ["body.0", "head.2"]


class Positions(nn.Module):
    """Adds embedded positions under a causal mask, as a language model's first layer does."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(20, 4), nn.Embedding(length, 4)
        self.linear = nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(ids.shape[1])
        mask = (steps[:, None] >= steps[None, :]).to(torch.float32)
        x = self.words(ids) + self.positions(steps)
        mixed = mask @ x * torch.ones_like(ids, dtype=torch.float32).unsqueeze(-1)
        result: torch.Tensor = self.linear(mixed)
        return result


def test_what_no_input_reaches_is_computed_once() -> None:
    torch.manual_seed(0)
    module, ids = Positions(6), torch.tensor([[1, 5, 3, 19, 0, 2]])
    program = program_of(module, ids)
    found = operators(program)
    made = (aten.arange.default, aten.ge.Tensor, aten.ones_like.default, aten.unsqueeze.default)
    assert not set(made) & set(found), found
    assert found.count(aten.embedding.default) == 1, "the positions' rows are constant"
    assert "positions.weight" not in program.state_dict
    torch.testing.assert_close(answer(program, ids), module(ids), rtol=1e-6, atol=1e-6)
    for node in graph_module(program).graph.nodes:
        if node.op == "get_attr":
            value = tensor_of(graph_module(program), node)
            assert value is not None and value.is_contiguous()


def test_folding_does_not_grow_a_program_by_megabytes() -> None:
    class Wide(nn.Module):
        """Adds the outer product of two short ramps: 4 KiB that would become 1 or 16 MiB."""

        def __init__(self, side: int) -> None:
            super().__init__()
            self.side = side

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ramp = torch.arange(self.side, dtype=torch.float32)
            return x + (ramp[:, None] * ramp[None, :]).mean()

    small, big = (program_of(Wide(side), X) for side in (512, 2048))
    assert aten.mul.Tensor not in operators(small)
    assert aten.mul.Tensor in operators(big)
    assert sum(v.nbytes for v in big.state_dict.values()) < 2**20


def test_a_computed_weight_becomes_one_that_can_be_quantized() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    program = program_of(nn.Sequential(layer), X)
    module = graph_module(program)
    [node] = compute_nodes(module)
    assert tensor_of(module, node.args[1]) is not None
    torch.testing.assert_close(answer(program, X), layer(X), rtol=1e-5, atol=1e-5)


def test_random_operators_are_not_folded() -> None:
    class Noisy(nn.Module):
        """Random by design; a model refuses it, the canonical form must not freeze it."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand(3, 1, 1)

    assert any("rand" in str(op) for op in operators(program_of(Noisy(), X)))


EVEN = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


@EVEN
@pytest.mark.parametrize("kernel", [(3, 3), (4, 4), (2, 5)], ids=str)
def test_padding_is_stated_in_numbers(kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(3, 4, kernel, padding="same", dilation=(1, 2))
    program = program_of(module, X)
    assert operators(program)[-1] is aten.conv2d.default
    torch.testing.assert_close(answer(program, X), module(X), rtol=1e-5, atol=1e-5)


@EVEN
def test_padding_valid_and_one_dimension() -> None:
    torch.manual_seed(0)
    for module, x in (
        (nn.Conv2d(3, 4, 3, padding="valid", stride=2), X),
        (nn.Conv1d(3, 4, 4, padding="same"), X[:, :, 0]),
    ):
        program = program_of(module, x)
        assert operators(program)[-1] in (aten.conv1d.default, aten.conv2d.default)
        torch.testing.assert_close(answer(program, x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("clamp", "operator"),
    [
        (nn.functional.relu6, aten.hardtanh.default),
        (nn.ReLU6(inplace=True), aten.hardtanh.default),
        (lambda x: x.clamp(-0.5, 2), aten.hardtanh.default),
        (lambda x: x.clamp(min=0), aten.relu.default),
        (lambda x: torch.clamp_min(x, 0.0), aten.relu.default),
        (lambda x: x.clamp(min=0.5), aten.clamp.default),
        (lambda x: x.clamp(max=0.5), aten.clamp.default),
        (lambda x: (8 * x).long().clamp(0, 6).float(), aten.clamp.default),
    ],
    ids=["relu6", "ReLU6", "both", "from-zero", "clamp_min", "from-half", "to-half", "integers"],
)
def test_a_clamp_has_one_spelling(
    clamp: Callable[[torch.Tensor], torch.Tensor], operator: Any
) -> None:
    class Clamped(nn.Module):
        """A clamp before another operator."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return clamp(x + 0.0) * 2.0

    program = program_of(Clamped(), X)
    assert operator in operators(program)
    for scale in (1.0, 10.0):
        assert torch.equal(answer(program, scale * X), Clamped()(scale * X))


class Wired(nn.Module):
    """One function of a test as a module."""

    def __init__(self, wire: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.wire = wire

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wire(x)


@pytest.mark.parametrize(
    "wire",
    [
        nn.AvgPool2d(3, 1, 1),
        nn.AvgPool2d((2, 3), padding=(1, 0)),
        nn.AvgPool2d(3, 2, (0, 1), divisor_override=5),
        lambda x: nn.functional.avg_pool1d(x.flatten(2), 3, 2, 1),
    ],
    ids=["square", "default-stride", "divisor", "one-dimension"],
)
def test_average_pooling_pads_before_it_pools(
    wire: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    program = program_of(Wired(wire), X)
    assert aten.constant_pad_nd.default in operators(program)
    for node in graph_module(program).graph.nodes:
        if "avg_pool" in str(node.target):
            assert not any(node.args[3]) if len(node.args) > 3 else True
    torch.testing.assert_close(answer(program, X), wire(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (nn.AdaptiveMaxPool2d(1), aten.max_pool2d.default),
        (nn.AdaptiveMaxPool2d((2, 4)), aten.max_pool2d.default),
        (nn.AdaptiveMaxPool2d((None, 2)), aten.max_pool2d.default),
        (nn.AdaptiveMaxPool2d(3), aten.adaptive_max_pool2d.default),
    ],
    ids=["whole", "windows", "one-axis", "windows-of-two-sizes"],
)
def test_adaptive_max_pooling_is_max_pooling_where_its_windows_are_alike(
    pool: nn.Module, expected: Any
) -> None:
    program = program_of(Wired(pool), X)
    assert operators(program)[0] == expected
    assert torch.equal(answer(program, X), pool(X))


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (lambda x: x.mean((2, 3)), [aten.adaptive_avg_pool2d.default, aten.reshape.default]),
        (lambda x: x.mean((-1, -2), keepdim=True), [aten.adaptive_avg_pool2d.default]),
        (lambda x: x.mean((1, 2)), [aten.mean.dim]),
        (lambda x: x.mean(3), [aten.mean.dim]),
        (lambda x: x.mean((2, 3), dtype=torch.float64), [aten.mean.dim]),
        (lambda x: x.flatten(2).mean((1, 2)), [aten.reshape.default, aten.mean.dim]),
    ],
    ids=["drops-axes", "keeps-axes", "other-axes", "one-axis", "other-dtype", "three-axes"],
)
def test_a_mean_over_a_picture_is_pooling(
    mean: Callable[[torch.Tensor], torch.Tensor], expected: list[Any]
) -> None:
    program = program_of(Wired(mean), X)
    found = [aten.reshape.default if o is aten.view.default else o for o in operators(program)]
    assert found == expected
    torch.testing.assert_close(answer(program, X), mean(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 1, 1, count_include_pad=False)],
    ids=["ceil", "not-counted"],
)
def test_average_pooling_that_does_not_count_its_zeros_is_left(pool: nn.Module) -> None:
    program = program_of(Wired(pool), X)
    assert operators(program) == [aten.avg_pool2d.default]
    assert torch.equal(answer(program, X), pool(X))


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (lambda x: nn.functional.pad(x, (1, 0, 2, 0)), aten.constant_pad_nd.default),
        (lambda x: nn.functional.pad(x, (1, 1), value=2.5), aten.constant_pad_nd.default),
        (lambda x: torch.cat(torch.chunk(x, 2, 3)[::-1], 1), aten.slice.Tensor),
        (lambda x: torch.cat(x.split([1, 2], 1)[::-1], 1), aten.slice.Tensor),
        (lambda x: x.transpose(1, 3).contiguous().view(1, 24, 8), aten.reshape.default),
        (lambda x: x.transpose(1, 3).contiguous().neg().view(1, 24, 8), aten.reshape.default),
    ],
    ids=["pad", "pad-value", "chunk", "split", "view-of-copy", "view-behind-copy"],
)
def test_data_movement_has_one_spelling(
    wire: Callable[[torch.Tensor], torch.Tensor], expected: Any
) -> None:
    program = program_of(Wired(wire), X)
    found = operators(program)
    assert expected in found
    assert not [op for op in found if "split" in str(op) or "clone" in str(op)]
    assert torch.equal(answer(program, X), wire(X))


def test_a_layer_used_twice_has_two_biases() -> None:
    class Shared(nn.Module):
        """One layer, applied twice."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(self.layer(x).relu())
            return result

    torch.manual_seed(0)
    module, x = Shared(), torch.randn(1, 4)
    program = program_of(module, x)
    first, second = compute_nodes(graph_module(program))
    assert first.args[1] is second.args[1], "the weight is shared"
    assert first.args[2] is not second.args[2]
    torch.testing.assert_close(answer(program, x), module(x))


def test_example_inputs_are_rebuilt_where_a_program_lost_them() -> None:
    program = program_of(nn.Linear(8, 2), X)
    [kept] = example_args(program)
    assert torch.equal(kept, X)
    program.example_inputs = None
    [made] = example_args(program)
    assert made.shape == X.shape and made.dtype == X.dtype
