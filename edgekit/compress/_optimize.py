"""The parts of a training step: who is trained, at which rate, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import torch
from torch import nn

from edgekit.compress._train_types import TrainSettings
from edgekit.errors import UsageError
from edgekit.names import unknown

__all__ = [
    "Average",
    "Frozen",
    "Schedule",
    "copies_of",
    "fill",
    "memory_of",
    "remember",
    "rule_of",
    "tensors_of",
]

CYCLE_START: Final = 25.0
CYCLE_END: Final = 25.0 * 1e4
"""How much lower one-cycle's rate begins and ends than it is at its highest."""

CYCLE_MOMENTUM: Final = (0.95, 0.85)
"""Momentum at one-cycle's ends, and where its rate is highest."""

WARM_UP: Final = {"cosine": 0.05, "one-cycle": 0.3, "constant": 0.0}


class Frozen:
    """Parameters that stay as they are while a module is trained.

    Args:
        module: the module.
        patterns: shell patterns of parameters' names; a module's name stands for all in it.

    Raises:
        UsageError: a pattern matches nothing, or nothing is left to train.
    """

    def __init__(self, module: nn.Module, patterns: tuple[str, ...]) -> None:
        named = dict(module.named_parameters())
        for pattern in patterns:
            found = [n for n in named if _matches(n, pattern)]
            if not found:
                parts = {n.partition(".")[0] for n in named}
                raise UsageError(
                    f"freeze: {unknown('parameter', pattern, parts)}",
                    hint="a part stands for all in it; patterns look like features.[0-5].* or "
                    "*.bias",
                )
        chosen = [p for n, p in named.items() if any(_matches(n, pattern) for pattern in patterns)]
        self._frozen = [p for p in chosen if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        if not any(p.requires_grad for p in named.values()):
            self.thaw()
            raise UsageError(
                "no parameter of the module is left to train",
                hint="freeze fewer of them, or call requires_grad_() on some",
            )
        frozen = {id(p) for p in chosen}
        self._still = [
            part
            for part in module.modules()
            if isinstance(part, nn.modules.batchnorm._BatchNorm)
            and (own := list(part.parameters()))
            and all(id(p) in frozen for p in own)
        ]

    def hold(self) -> None:
        """Puts frozen batch normalizations into eval mode; after ``module.train()``."""
        for part in self._still:
            part.eval()

    def thaw(self) -> None:
        """Lets the parameters be trained again."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def rule_of(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of the parameters that want a gradient, by the settings' rule and decay."""
    wanted = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.dim() > 1], "weight_decay": settings.decay},
        {"params": [p for p in wanted if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # Fused: MobileNetV2's AdamW takes 2.9 ms of one CPU's time in place of 9.4.
    if settings.rule == "adamw":
        return torch.optim.AdamW(
            groups, lr=settings.rate, betas=(settings.momentum, 0.999), fused=True
        )
    return torch.optim.SGD(
        groups,
        lr=settings.rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=True,
    )


class Schedule:
    """Rate and momentum of each of ``total`` steps; see `TrainSettings`."""

    def __init__(self, settings: TrainSettings, total: int) -> None:
        self._kind = settings.schedule
        self._rate, self._momentum = settings.rate, settings.momentum
        self._final, self._total = settings.final, total
        share = WARM_UP[self._kind] if settings.warm_up is None else settings.warm_up
        self._warm = share * total

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, counted from 0."""
        if self._kind == "one-cycle":
            low, high, part = self._cycle(step)
            ends = (self._rate / CYCLE_START, self._rate, self._rate / CYCLE_END)
            return _between(ends[low], ends[high], part)
        warm = round(self._warm)
        if step < warm:
            return self._rate * (step + 1) / warm
        if self._kind == "constant":
            return self._rate
        part = (step - warm) / max(1, self._total - warm)
        return _between(self._rate, self._rate * self._final, part)

    def momentum(self, step: int) -> float:
        """The momentum of ``step``."""
        if self._kind != "one-cycle":
            return self._momentum
        low, high, part = self._cycle(step)
        ends = (CYCLE_MOMENTUM[0], CYCLE_MOMENTUM[1], CYCLE_MOMENTUM[0])
        return _between(ends[low], ends[high], part)

    def _cycle(self, step: int) -> tuple[int, int, float]:
        # As torch.optim.lr_scheduler.OneCycleLR places its ends.
        top, end = self._warm - 1, self._total - 1
        if step <= top:
            return 0, 1, step / top if top > 0 else 1.0
        return 1, 2, (step - top) / (end - top) if end > top else 1.0

    def set(self, rule: torch.optim.Optimizer, step: int) -> float:
        """Gives the optimizer what step ``step`` has; returns the rate."""
        rate, momentum = self.rate(step), self.momentum(step)
        for group in rule.param_groups:
            group["lr"] = rate
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum
        return rate


def _between(start: float, end: float, part: float) -> float:
    """From ``start`` to ``end`` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


class Average:
    """An exponential moving average of a module's float tensors, buffers too; others are copied.

    ``average = d * average + (1 - d) * weights`` with ``d = min(decay, (1 + step) / (10 + step))``,
    ``step`` counted from 0: the beginning is forgotten quickly.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = tensors_of(module)
        self.state = {name: value.clone() for name, value in self._live.items()}
        floats = [n for n, v in self._live.items() if v.is_floating_point()]
        self._floats = [(self.state[n], self._live[n]) for n in floats]
        self._others = [(self.state[n], self._live[n]) for n in self._live if n not in set(floats)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights that step ``step`` left."""
        decay = min(self._decay, (1 + step) / (10 + step))
        if self._floats:
            averages, live = zip(*self._floats, strict=True)
            torch._foreach_lerp_(list(averages), list(live), 1 - decay)
        for average, value in self._others:
            average.copy_(value)

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from an average that was kept."""
        for name, value in state.items():
            self.state[name].copy_(value)


def memory_of(rule: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What an optimizer remembers, by the number of the parameter and a name: ``3/exp_avg``."""
    return {
        f"{i}/{name}": value
        for i, parameter in enumerate(_parameters(rule))
        for name, value in rule.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def remember(rule: torch.optim.Optimizer, memory: Mapping[str, torch.Tensor]) -> None:
    """Gives an optimizer what `memory_of` took from one."""
    parameters = _parameters(rule)
    for key, value in memory.items():
        number, name = key.split("/", 1)
        parameter = parameters[int(number)]
        # All but counts of steps lies in memory as the parameter does.
        like = torch.empty_like(parameter if value.dim() else value, device=parameter.device)
        rule.state[parameter][name] = like.copy_(value)


def _parameters(rule: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in rule.param_groups for p in group["params"]]


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a module's state by name, sharing its memory."""
    state: Mapping[str, Any] = module.state_dict()
    return {n: v.detach() for n, v in state.items() if isinstance(v, torch.Tensor)}


@torch.no_grad()
def fill(live: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Copies a state into live tensors, which keep their device and layout."""
    for name, value in state.items():
        live[name].copy_(value)


def copies_of(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous copies on the CPU."""
    return {
        name: torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
        for name, value in state.items()
    }
