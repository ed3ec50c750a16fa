"""Structured pruning: what is cut together, in which order, and how far."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit.compress._cut import cut, left_of
from edgekit.compress._spend import Chunk, order, spend
from edgekit.compress._widths import survey
from edgekit.compress.importance import importance
from edgekit.compress.prune import PruneSettings, PruneStep, prune
from edgekit.compress.state import fit_state, state_of
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.export.cost import Macs, Parameters

EXAMPLES = {"x": torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
TOKENS = {"x": torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))}


def conv(taken: int, given: int, kernel: int = 1, **options: Any) -> nn.Sequential:
    made = nn.Conv2d(taken, given, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(made, nn.BatchNorm2d(given), nn.ReLU())


class Residual(nn.Module):
    """An inverted residual with squeeze-and-excite, as in MobileNetV3."""

    def __init__(self, width: int = 16, inner: int = 32) -> None:
        super().__init__()
        self.stem = conv(3, width, 3)
        self.expand = conv(width, inner)
        self.deep = conv(inner, inner, 3, groups=inner)
        self.squeeze, self.excite = nn.Conv2d(inner, 16, 1), nn.Conv2d(16, inner, 1)
        self.project = nn.Conv2d(inner, width, 1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.deep(self.expand(x))
        gate = self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        return self.head((x + self.project(y * torch.sigmoid(gate))).mean((2, 3)))


class Dense(nn.Module):
    """Concatenation, as in DenseNet, a flattened picture, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 16, 3), conv(16, 16, 3)
        self.norm = nn.BatchNorm2d(32)
        self.third = conv(32, 16)
        self.up = nn.ConvTranspose2d(48, 16, 2, stride=2)
        self.head = nn.Linear(16 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.first(x)
        b = torch.cat([a, self.second(a)], 1)
        c = torch.cat([b, self.third(torch.relu(self.norm(b)))], 1)
        return self.head(nn.functional.avg_pool2d(torch.relu(self.up(c)), 8).flatten(1))


class Grouped(nn.Module):
    """Convolutions in groups, and a scale per channel that no layer of torch's holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.scale = nn.Parameter(torch.rand(32, 1, 1) + 0.5)
        self.last = nn.Conv2d(32, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.grouped(torch.relu(self.first(x)))) * self.scale)


class Encoder(nn.Module):
    """A layer of a transformer, with attention as transformers writes it."""

    def __init__(self, width: int = 32, heads: int = 4, size: int = 8) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, size
        self.query, self.key, self.value = (nn.Linear(width, heads * size) for _ in range(3))
        self.dense = nn.Linear(heads * size, width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)
        self.last = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:2], -1, self.attention_head_size)
        q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = self.norm(x + self.dense(mixed.reshape(*x.shape[:2], -1)))
        return self.last(x + self.down(torch.relu(self.up(x))))


def filled(module: nn.Module, seed: int = 1) -> nn.Module:
    """Weights and statistics from a generator of its own, no channel like another."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.1)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data -= 0.35
    return module.eval()


def deaden(module: nn.Module, examples: dict[str, torch.Tensor]) -> dict[str, set[int]]:
    """Has every second half of each width give nothing, in whatever layer makes it."""
    dead: dict[str, set[int]] = {}
    found = survey(module, examples)
    for width in found.widths:
        dead[width.name] = set(range(1, width.slots, 2))
        for member in width.members:
            if member.side == "in":
                continue
            rows = member.index[torch.tensor([int(s) in dead[width.name] for s in member.slot])]
            if member.side.isdigit():
                continue
            layer: Any = module.get_submodule(member.layer)
            with torch.no_grad():
                for tensor in (layer.weight, layer.bias):
                    if tensor is not None:
                        turned = getattr(layer, "transposed", False) and tensor.ndim > 1
                        (tensor.transpose(0, 1) if turned else tensor)[rows] = 0
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean[rows] = 0
    return dead


@pytest.mark.parametrize(
    ("build", "examples", "widths"),
    [(Residual, EXAMPLES, 3), (Dense, EXAMPLES, 4), (Grouped, EXAMPLES, 2), (Encoder, TOKENS, 2)],
)
def test_channels_that_give_nothing_go_and_nothing_changes(
    build: Callable[[], nn.Module], examples: dict[str, torch.Tensor], widths: int
) -> None:
    module = filled(build())
    keep = ("dense",) if build is Encoder else ()  # a norm notices channels that are gone
    found = survey(module, examples, keep=keep)
    assert len(found.widths) == widths
    dead = {k: v for k, v in deaden(module, examples).items() if k in left_of(found, {})}
    before = module(**examples).detach()
    assert float(before.std()) > 1e-3
    scores = importance(module, found, {}, "l1")
    gone = {
        name: frozenset(torch.argsort(one)[: len(dead[name])].tolist())
        for name, one in scores.items()
    }
    if build is not Grouped:  # what a slot of groups is, is in what makes and in what reads it
        assert gone == {name: frozenset(one) for name, one in dead.items()}
    narrow = cut(module, found, {}, {name: frozenset(one) for name, one in dead.items()})
    assert all(
        left == w.channels // 2
        for w, left in zip(
            found.widths,
            left_of(found, {n: frozenset(d) for n, d in dead.items()}).values(),
            strict=True,
        )
    )
    assert Macs(examples)(narrow) < 0.7 * Macs(examples)(module)
    torch.testing.assert_close(narrow(**examples), before, rtol=1e-4, atol=1e-5)


def test_cutting_twice_is_cutting_once() -> None:
    for build in (Residual, Dense, Grouped):
        module = filled(build())
        found = survey(module, EXAMPLES)
        first = {w.name: frozenset(range(0, w.slots, 3)) for w in found.widths}
        both = {n: s | {1} for n, s in first.items()}
        once = cut(module, found, {}, both)
        twice = cut(cut(module, found, {}, first), found, first, both)
        for name, tensor in state_of(once).items():
            assert torch.equal(tensor, state_of(twice)[name])
        assert torch.equal(once(**EXAMPLES), twice(**EXAMPLES))


def test_to_a_target_of_macs_in_steps_and_channels_that_kernels_like() -> None:
    module, cost = filled(Residual()), Macs(EXAMPLES)
    before, whole = state_of(module), cost(module)
    pruned = prune(module, EXAMPLES, PruneSettings(target=0.5, steps=2), cost=cost)
    assert cost(pruned.module) == pruned.history[-1]["cost"] <= 0.5 * whole
    assert [h["step"] for h in pruned.history] == [0, 1, 2]
    assert pruned.history[1]["cost"] <= pruned.history[1]["target"] < whole
    assert pruned.history[1]["target"] == pytest.approx(whole * math.sqrt(0.5))
    assert all(left % 8 == 0 for left in pruned.steps[-1].values())
    assert "head" in pruned.left
    assert pruned.module.get_submodule("head").out_features == 10
    assert all(torch.equal(before[k], v) for k, v in state_of(module).items()), "the input changed"
    fresh = fit_state(Residual().eval(), pruned.state)
    assert torch.equal(fresh(**EXAMPLES), pruned.module(**EXAMPLES))
    assert pruned.cost == "multiply-accumulates"


def test_it_is_one_chunk_no_more_than_the_target_needs() -> None:
    module, cost = filled(Residual()), Parameters()
    settings = PruneSettings(target=0.8, steps=1, multiple=1, scope="layer")
    pruned = prune(module, EXAMPLES, settings, cost=cost)
    found = survey(module, EXAMPLES)
    scores = importance(module, found, {}, "l2")
    chunks = order(found, {}, scores, gains=None, multiple=1, most=0.8, scope="layer")
    gone: dict[str, frozenset[int]] = {}
    costs = []
    for chunk in chunks:
        gone[chunk.width] = gone.get(chunk.width, frozenset()) | set(chunk.slots)
        costs.append(cost(cut(module, found, {}, gone)))
    assert pruned.history[-1]["cost"] == next(c for c in costs if c <= 0.8 * cost(module))


def test_kept_layers_and_heads() -> None:
    module = filled(Residual())
    settings = PruneSettings(target=0.7, steps=1, keep=("expand", "squ*"), most=0.9, multiple=1)
    pruned = prune(module, EXAMPLES, settings, cost=Macs(EXAMPLES))
    assert set(pruned.steps[0]) == {"stem.0"}
    assert pruned.left["expand.0"] == "expand.0 is kept"
    with pytest.raises(UsageError, match=r"'nothing\.here'"):
        survey(module, EXAMPLES, keep=("nothing.here",))

    encoder = filled(Encoder())
    settings = PruneSettings(target=0.6, steps=1, multiple=16)
    pruned = prune(encoder, TOKENS, settings, cost=Macs(TOKENS))
    assert pruned.steps[0]["query"] % 8 == 0
    assert pruned.module.num_attention_heads == pruned.steps[0]["query"] // 8
    assert pruned.module.key.out_features == pruned.module.dense.in_features
    assert torch.equal(fit_state(Encoder().eval(), pruned.state)(**TOKENS), pruned.module(**TOKENS))


class Shuffle(nn.Module):
    """Channels that change places without a layer that could be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.head(torch.relu(self.last(y.flip(1) + y.roll(3, 1))))


def test_a_width_that_is_read_in_another_order_is_left_alone() -> None:
    found = survey(filled(Shuffle()), EXAMPLES)
    assert [w.name for w in found.widths] == ["last"]
    assert "answers otherwise" in found.left["first"]


def test_what_cannot_be_followed_says_where() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 16)
            self.third = nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.third(self.second(self.first(x).detach()))

    found = survey(Cut(), {"x": torch.randn(1, 4)})
    assert "no gradient" in found.left["first"]
    assert [w.name for w in found.widths] == ["second"]
    with pytest.raises(UnsupportedError, match=r"second \(Linear\): mat1 and mat2"):
        module = Cut()
        module.second = nn.Linear(5, 16)
        survey(module, {"x": torch.randn(1, 4)})

    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(4, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.only(x).argmax(1).float()

    with pytest.raises(UnsupportedError, match="none comes from the outputs to only"):
        survey(Classes(), {"x": torch.randn(1, 4)})
    with pytest.raises(UnsupportedError, match="no layer of the model can be pruned"):
        survey(nn.Linear(4, 4), {"input": torch.randn(1, 4)})


def test_layers_that_share_weights_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    module[1].weight = module[0].weight
    found = survey(module, {"input": torch.randn(1, 8)})
    assert [w.name for w in found.widths] == ["2"]
    assert "shares its weights" in found.left["0"]


def test_importances() -> None:
    module = filled(Residual())
    found = survey(module, EXAMPLES)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([1, 2, 3, 4])

    def losses(narrow: nn.Module) -> Any:
        yield nn.functional.cross_entropy(narrow(x[:2]), y[:2])
        yield nn.functional.cross_entropy(narrow(x[2:]), y[2:])

    # Taylor's estimate at a batch norm is the gradient of a gate of 1 behind it.
    scores = importance(module, found, {}, "taylor", losses=losses)["expand.0"]
    wanted = torch.zeros(32, dtype=torch.float64)
    for rows in (slice(0, 2), slice(2, 4)):
        gates = [torch.ones(32, requires_grad=True) for _ in range(2)]
        norms = [module.get_submodule(n) for n in ("expand.1", "deep.1")]
        hooks = [
            norm.register_forward_hook(lambda _, __, out, gate=gate: out * gate[:, None, None])
            for norm, gate in zip(norms, gates, strict=True)
        ]
        nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
        wanted += sum(g.grad for g in gates).double().square() / 2  # type: ignore[union-attr, misc]
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(scores, wanted, rtol=1e-3, atol=1e-9)

    scales = importance(module, found, {}, "bn")
    norms = [module.get_submodule(n).weight.detach().abs() for n in ("expand.1", "deep.1")]
    torch.testing.assert_close(scales["expand.0"], sum(norms).double())
    assert "squeeze" not in scales
    gone = {"expand.0": frozenset((3,))}
    narrow = cut(module, found, {}, gone)
    again = importance(narrow, found, gone, "bn")["expand.0"]
    assert again[3] == math.inf
    assert torch.equal(again[4:], scales["expand.0"][4:])
    with pytest.raises(UsageError, match="needs losses"):
        importance(module, found, {}, "taylor")
    with pytest.raises(UsageError, match="has none"):
        importance(Grouped(), survey(Grouped(), EXAMPLES), {}, "bn")
    module.get_submodule("stem.0").weight.data[:] = math.nan
    with pytest.raises(BadData, match=r"stem\.0's channels is NaN"):
        importance(module, found, {}, "l1")


def test_gains_turn_the_order() -> None:
    module = filled(Residual())
    found = survey(module, EXAMPLES)
    scores = {w.name: torch.ones(w.slots, dtype=torch.float64) for w in found.widths}
    names = [w.name for w in found.widths]
    for dear in names:
        gains = {n: 100.0 if n == dear else 1.0 for n in names}
        chunks = order(found, {}, scores, gains=gains, multiple=8, most=0.5, scope="global")
        mine = [c.width for c in chunks]
        assert mine[: mine.count(dear)] == [dear] * mine.count(dear)
        assert {n: 8 * mine.count(n) for n in names} == {
            w.name: w.channels // 2 // 8 * 8 for w in found.widths
        }
    # One that saves nothing is no bargain, whatever it weighs: gains of 0 come last.
    gains = {n: 0.0 if n == names[0] else 1.0 for n in names}
    chunks = order(found, {}, scores, gains=gains, multiple=8, most=0.5, scope="global")
    assert chunks[-1].width == names[0]


def test_spending_where_the_cost_is_only_roughly_monotone() -> None:
    chunks = [Chunk("w", (i,)) for i in range(40)]
    bumps = torch.rand(41, generator=torch.Generator().manual_seed(5)).tolist()
    real = [100 - 2 * i + 6 * (b - 0.5) for i, b in enumerate(bumps)]
    for target in (90, 70, 50, 30):
        for saved, tries in ((None, 1), ([2.0] * 40, 6), ([0.5] * 40, 6), ([9.0] * 40, 6)):
            asked: list[int] = []

            def cost(count: int, asked: list[int] = asked) -> float:
                asked.append(count)
                return real[count]

            count, found = spend(
                chunks, base=100, target=target, cost=cost, saved=saved, tries=tries
            )
            assert found == real[count] <= target
            assert count <= (100 - target) / 2 + 8
            assert len(asked) <= 8
            assert len(set(asked)) == len(asked)
    assert spend(chunks, base=100, target=100, cost=cost, saved=None, tries=6) == (0, 100)
    assert spend(chunks, base=100, target=1, cost=cost, saved=None, tries=6) == (40, real[40])
    assert spend(chunks, base=100, target=1, cost=cost, saved=[1.0] * 40, tries=2)[0] == 40


class Clock:
    """A cost that drifts from one call to the next, as clocks do; comparable side by side only."""

    name = "a clock"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def compare(self, modules: Sequence[nn.Module]) -> list[float]:
        self.calls.append(len(modules))
        speed = 1 + 0.5 * math.sin(len(self.calls))
        return [speed * (2e4 + Macs(EXAMPLES)(m)) for m in modules]


def test_a_measured_cost_is_compared_with_the_module_as_it_was(tmp_path: Path) -> None:
    module, clock = filled(Residual()), Clock()
    settings = PruneSettings(target=0.6, steps=2)
    pruned = prune(module, EXAMPLES, settings, cost=clock, folder=tmp_path)
    real = [2e4 + Macs(EXAMPLES)(m) for m in (module, pruned.module)]
    assert real[1] / real[0] <= 0.6 + 1e-9
    assert pruned.history[-1]["cost"] / pruned.history[0]["cost"] == pytest.approx(
        real[1] / real[0]
    )
    assert clock.calls[:2] == [1, 1 + len(pruned.steps[0])]  # the base, and each width by itself
    assert set(clock.calls[2:]) == {2}
    again = prune(module, EXAMPLES, settings, cost=(silent := Clock()), folder=tmp_path)
    assert silent.calls == []
    assert all(torch.equal(pruned.state[k], v) for k, v in again.state.items())


def test_a_target_out_of_reach_and_costs_that_are_none() -> None:
    module = filled(Residual())
    with pytest.raises(UsageError, match=r"a cost of .* can't be met: .* it is"):
        prune(module, EXAMPLES, PruneSettings(target=0.01, steps=1), cost=Macs(EXAMPLES))
    with pytest.raises(BadData, match="cost of a module is nan"):
        prune(module, EXAMPLES, PruneSettings(), cost=lambda _: math.nan)
    settings = PruneSettings(limit=1e12, steps=1)
    same = prune(module, EXAMPLES, settings, cost=Macs(EXAMPLES))
    assert all(torch.equal(state_of(module)[k], v) for k, v in same.state.items())


class Stopped(Exception):
    """Where a power cut would be."""


def shaken(
    stop: str = "", calls: list[str] | None = None
) -> Callable[[nn.Module, PruneStep], None]:
    """A recovery that changes all weights, and may be stopped half way."""

    def recover(module: nn.Module, step: PruneStep) -> None:
        if calls is not None:
            calls.append(str(step.number))
        generator = torch.Generator().manual_seed(step.number)
        for i, parameter in enumerate(module.parameters()):
            if stop == f"{step.number}" and i == 3:
                raise Stopped
            parameter.data += 0.01 * torch.rand(parameter.shape, generator=generator)

    return recover


@pytest.mark.parametrize(
    "stop",
    ["2", pytest.param("1", marks=pytest.mark.slow), pytest.param("3", marks=pytest.mark.slow)],
)
def test_it_goes_on_where_it_was_stopped(tmp_path: Path, stop: str) -> None:
    module, settings = filled(Residual()), PruneSettings(target=0.5, steps=3, multiple=4)

    def run(folder: Path | None, recover: Any) -> Any:
        return prune(
            module,
            EXAMPLES,
            settings,
            cost=Macs(EXAMPLES),
            recover=recover,
            score=lambda m: float(m(**EXAMPLES).sum()),
            folder=folder,
        )

    whole = run(None, shaken())
    with pytest.raises(Stopped):
        run(tmp_path, shaken(stop))
    calls: list[str] = []
    resumed = run(tmp_path, shaken(calls=calls))
    assert calls == [n for n in "123" if n >= stop]
    assert resumed.state.keys() == whole.state.keys()
    assert all(torch.equal(whole.state[k], v) for k, v in resumed.state.items())
    assert (resumed.history, resumed.steps) == (whole.history, whole.steps)
    # To the byte: what is made of it is known by its digest.
    assert json.dumps(resumed.history) == json.dumps(whole.history)
    assert whole.history[1].keys() >= {"score", "score_cut"}
    calls.clear()
    assert run(tmp_path, shaken(calls=calls)).history == whole.history
    assert calls == []


@pytest.mark.slow
def test_other_settings_or_damage_start_anew(tmp_path: Path) -> None:
    module, calls = filled(Residual()), []
    recover = shaken(calls=calls)

    def run(**settings: Any) -> Any:
        chosen = PruneSettings(target=0.5, steps=2, **settings)
        cost = Macs(EXAMPLES)
        return prune(module, EXAMPLES, chosen, cost=cost, recover=recover, folder=tmp_path)

    first = run()
    run(importance="l1")
    assert calls == ["1", "2", "1", "2"]
    calls.clear()
    run()
    assert calls == ["1", "2"]
    kept = tmp_path / "step-2.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    calls.clear()
    assert torch.equal(run().state["head.weight"], first.state["head.weight"])
    assert calls == ["2"]
    (tmp_path / "prune.json").write_text(json.dumps({"key": 1})[:-2])
    calls.clear()
    run()
    assert calls == ["1", "2"]


def test_recovery_may_not_change_shapes() -> None:
    def widen(module: Any, step: PruneStep) -> None:
        module.head = nn.Linear(module.head.in_features, 11)

    settings = PruneSettings(target=0.7, steps=1)
    with pytest.raises(BadData, match="recovery after step 1 changed the shapes"):
        prune(filled(Residual()), EXAMPLES, settings, cost=Macs(EXAMPLES), recover=widen)


def test_macs_of_what_is_known() -> None:
    x = torch.randn(3, 4, 6, 6)
    layers = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten())
    assert Macs({"input": x})(layers) == 4 * 8 * 9 * 16 + 8 * 9 * 4
    # Four projections, the feed-forward layers, and the two products of attention.
    assert Macs(TOKENS)(Encoder()) == 5 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 4 * 5 * 5 * 8
    assert Parameters()(deepcopy(layers)) == 4 * 8 * 9 + 8 + 8 * 9 + 8


@pytest.mark.slow
def test_it_goes_on_after_kill_9(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        import torch
        from safetensors.torch import save_file
        from torch import nn
        from edgekit.compress._journal import Journal
        from edgekit.compress.prune import PruneSettings, prune
        from edgekit.export.cost import Macs

        out, left = Path(sys.argv[1]), int(sys.argv[2])
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1)
        )
        examples = {"input": torch.ones(1, 3, 8, 8)}
        put = Journal._put

        def dying(self, path, data):
            global left
            left -= 1
            if left == 0:
                path.with_name(f".new-{path.name}").write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            put(self, path, data)

        Journal._put = dying

        def recover(narrow, step):
            for p in narrow.parameters():
                p.data += step.number * 0.01

        pruned = prune(
            module, examples, PruneSettings(steps=2), cost=Macs(examples), recover=recover,
            folder=out / "run",
        )
        save_file(dict(pruned.state), out / "end.safetensors")
        """
    )

    def run(out: Path, left: int) -> int:
        out.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-W", "ignore", "-c", script, str(out), str(left)]
        return subprocess.run(command, env=environment, timeout=120).returncode

    assert run(tmp_path / "whole", 0) == 0
    whole = (tmp_path / "whole/end.safetensors").read_bytes()
    for left in (1, 2, 3, 5, 8):
        assert run(tmp_path / str(left), left) == -signal.SIGKILL
        assert run(tmp_path / str(left), 0) == 0
        assert (tmp_path / f"{left}/end.safetensors").read_bytes() == whole
