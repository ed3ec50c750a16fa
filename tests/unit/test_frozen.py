"""NUM-06: what tracing would freeze, and what differs from call to call, never leaves torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.errors import UnsupportedError
from edgekit.model import Model

Tensor = torch.Tensor


class LoopsByValue(nn.Module):
    """Doubles as often as the first element says (pytorch 170180: the count is frozen)."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x[0, 0].abs())):
            x = x * 2
        return x


class LoopsByHistory(nn.Module):
    """Doubles as often as it was called: the loop is not seen by `torch.export` at all."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(0)
        for _ in self.calls:
            x = x * 2
        return x


class LoopsByItsLargest(nn.Module):
    """Reads the largest value through a detached list, out of the tracer's sight."""

    def forward(self, x: Tensor) -> Tensor:
        values = x.detach().flatten().tolist()
        for _ in range(int(max(values)) + 1):
            x = x * 2
        return x


class BranchesByMemory(nn.Module):
    """Takes the branch that its last input chose."""

    def __init__(self) -> None:
        super().__init__()
        self.negative = False

    def forward(self, x: Tensor) -> Tensor:
        negative, self.negative = self.negative, not self.negative
        return -x if negative else x


class AlwaysTraining(nn.Module):
    """A part that can't be put in eval mode."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def train(self, mode: bool = True) -> AlwaysTraining:
        return super().train(True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x)
        return y


REFUSED: list[tuple[str, nn.Module, str]] = [
    ("loop by value", LoopsByValue(), "decides by a value that it computes from its input"),
    ("loop by history", LoopsByHistory(), "differently from call to call"),
    ("loop by its largest", LoopsByItsLargest(), "decides by a value"),
    ("branch by memory", BranchesByMemory(), "differently from call to call"),
    ("dropout in train mode", AlwaysTraining(nn.Dropout(0.5)), "draws random numbers"),
    ("batch norm in train mode", AlwaysTraining(nn.BatchNorm1d(4)), "statistics of the batch"),
]


@pytest.mark.parametrize(("made", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_num_06_it_is_refused_with_the_reason(made: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        Model.from_module(made, {"x": torch.ones(2, 4)}, name="mine").program()
    assert message in str(caught.value)
    assert caught.value.exit_code == 5 and caught.value.hint


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm1d(4)], ids=["dropout", "norm"])
def test_num_06_what_can_be_put_in_eval_mode_is(part: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(4, 4), part).train()
    model = Model.from_module(module, {"input": torch.ones(2, 4)})
    (again,), (twice,) = (model.run(torch.ones(2, 4)) for _ in range(2))
    assert torch.equal(again, twice)
    exported = model.program().module(check_guards=False)(torch.ones(2, 4))
    assert torch.allclose(exported[0], again)
    assert module.training, "the caller's own module is left alone"


def test_num_06_a_loop_of_a_fixed_count_is_no_reason_to_refuse() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(x.shape[1]):
                x = x * 2
            return x

    model = Model.from_module(Fixed(), {"x": torch.ones(2, 4)})
    (doubled,) = model.program().module(check_guards=False)(torch.ones(2, 4))
    assert torch.equal(doubled, torch.full((2, 4), 16.0))
