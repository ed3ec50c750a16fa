"""Structured pruning: a module in, one with fewer channels out, down to a cost.

The cost is whatever is handed in: multiply-accumulates, parameters, or latency measured in a
runtime (`edgekit.export.cost`). Channels go where they buy most of it for the least importance, as
NetAdapt (Yang et al., 2018, arXiv:1804.03230) and HALP (Shen et al., 2021, arXiv:2110.10811) spend
them: a fourth of the multiply-accumulates was seen to buy only half of the time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import nn

from edgekit.artifact import fingerprint
from edgekit.compress._cut import Gone, Survey, cut, left_of
from edgekit.compress._journal import Journal
from edgekit.compress._spend import Chunk, Scope, gone_with, order, spend
from edgekit.compress._widths import survey
from edgekit.compress.importance import Importance, Losses, importance
from edgekit.compress.state import fit_state, state_of
from edgekit.errors import BadData, UsageError
from edgekit.protocols import Unwatched, Watch
from edgekit.settings import Settings

__all__ = ["Cost", "MeasuredCost", "PruneSettings", "PruneStep", "Pruned", "prune"]


class PruneSettings(Settings):
    """How a module is pruned.

    Attributes:
        target: the cost to come down to, as a share of what the module costs now.
        limit: the cost to come down to in the cost's own unit, in place of ``target``.
        steps: how often it is cut and recovers; each step takes the same share off the cost.
        importance: see `edgekit.compress.importance.importance`.
        scope: ``global`` compares channels of all layers, ``layer`` takes as large a share of
            each.
        gains: whether ``global`` weighs importance by what cutting a layer saves. Where the cost is
            measured that takes one conversion and measurement per layer, once.
        multiple: channels of a layer that was cut are a multiple of this; of heads, which go whole,
            only the number changes.
        most: share of a layer's channels that may go, over all steps.
        keep: patterns of layers whose outputs stay as they are; a module stands for all in it.
        tries: costs measured per step, at most, once one was low enough; for latency. Costs that
            are computed are searched to the end.
    """

    target: float = Field(default=0.5, gt=0, lt=1)
    limit: float | None = Field(default=None, gt=0)
    steps: int = Field(default=3, ge=1)
    importance: Importance = "l2"
    scope: Scope = "global"
    gains: bool = True
    multiple: int = Field(default=8, ge=1)
    most: float = Field(default=0.8, gt=0, lt=1)
    keep: tuple[str, ...] = ()
    tries: int = Field(default=6, ge=1)


class Cost(Protocol):
    """What a module costs; less is better, and the same module always costs the same."""

    def __call__(self, module: nn.Module) -> float: ...


@runtime_checkable
class MeasuredCost(Protocol):
    """A cost that is measured: never twice the same, and comparable only side by side."""

    def compare(self, modules: Sequence[nn.Module]) -> list[float]:
        """Costs of modules measured in turn, so that what disturbs one disturbs all."""


@dataclass(frozen=True)
class PruneStep:
    """A step of pruning, as `prune`'s ``recover`` hears of it.

    Attributes:
        number: from 1.
        of: how many there are.
        cost: of the module that is to recover.
        folder: for the recovery's own checkpoints; None where none are kept.
    """

    number: int
    of: int
    cost: float
    folder: Path | None


@dataclass(frozen=True)
class Pruned:
    """What pruning did.

    Attributes:
        module: a copy of the module, narrower, in eval mode.
        state: its weights, for `edgekit.compress.state.fit_state`.
        history: one mapping per step, after a first one for the module as it was (``step`` 0):
            ``step``, ``target``, ``cost``, ``parameters`` and, where there was a score, ``score``
            and ``score_cut``, before recovery.
        steps: the channels left after each step, by layer.
        left: why layers were left alone, by name.
        cost: what ``cost`` in the history is: the name that the cost gives itself.
    """

    module: nn.Module
    state: Mapping[str, torch.Tensor]
    history: tuple[Mapping[str, float], ...]
    steps: tuple[Mapping[str, int], ...]
    left: Mapping[str, str]
    cost: str


def prune(
    module: nn.Module,
    examples: Mapping[str, torch.Tensor],
    settings: PruneSettings,
    *,
    cost: Cost | MeasuredCost,
    recover: Callable[[nn.Module, PruneStep], object] | None = None,
    score: Callable[[nn.Module], float] | None = None,
    losses: Losses | None = None,
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Pruned:
    """Cuts channels out of a module until it costs no more than is wanted.

    Layers, or whole heads of attention, that depend on each other are cut together: through
    residual additions, depthwise and grouped convolutions, squeeze-and-excite, concatenation and
    norms. Each such group is tried out before it is used (`edgekit.compress._widths`).

    Args:
        module: what is pruned; it stays as it is.
        examples: one example tensor per input, batch first, named after forward()'s parameters.
        settings: how.
        cost: what is to come down.
        recover: trains a module in place after each cut, such as `edgekit.compress.train.train`.
        score: of a module in eval mode, more is better; it is noted, and decides nothing.
        losses: for importance ``taylor``.
        folder: where finished steps and measured costs are kept, and gone on from where the same
            module is pruned with the same settings. What ``recover`` does is not compared.
        watch: hears of the steps.

    Returns:
        The pruned module. The same inputs give the same weights, bit for bit, also where it was
        interrupted; with a `MeasuredCost` as far as the measurements are those in ``folder``.

    Raises:
        UsageError: the target can't be met, or a setting doesn't suit the model.
        UnsupportedError: the model can't be followed; the message names the layer.
        BadData: weights or costs are not finite, or recovery changed a shape.
        StorageError: no space, or no permission.
    """
    found = survey(module, examples, keep=settings.keep)
    return _Pruning(
        module, found, settings, cost, recover, score, losses, folder, watch or Unwatched()
    ).run(_key(module, examples, settings, cost))


class _Pruning:
    """One call of `prune`."""

    def __init__(
        self,
        module: nn.Module,
        found: Survey,
        settings: PruneSettings,
        cost: Cost | MeasuredCost,
        recover: Callable[[nn.Module, PruneStep], object] | None,
        score: Callable[[nn.Module], float] | None,
        losses: Losses | None,
        folder: Path | None,
        watch: Watch,
    ) -> None:
        self.module = deepcopy(module).eval()
        self.survey, self.settings, self.cost = found, settings, cost
        self.recover, self.score, self.losses = recover, score, losses
        self.folder, self.watch = folder, watch

    def run(self, key: str) -> Pruned:
        settings = self.settings
        self.journal = Journal(self.folder, key)
        for name, why in self.survey.left.items():
            self.watch.note(f"{name} is not pruned: {why}")
        self.base = self._costs("base", [self.module])[0]
        self.watch.note(f"{_name(self.cost)}: {self.base:.6g} before pruning")
        limit = settings.limit or settings.target * self.base
        history = [self._record(self.module, 0, self.base, self.base, self._scored(self.module))]
        module, now = self.module, self.base
        gone: Gone = {}
        steps: list[dict[str, int]] = []
        for number in range(1, settings.steps + 1):
            # The same factor at each step. A target that is met already leaves nothing to do.
            target = max(limit, self.base * (limit / self.base) ** (number / settings.steps))
            done = self.journal.step(str(number))
            if done is None:
                module, gone, record = self._step(module, gone, now, target, number)
            else:
                state, record = done
                module = fit_state(deepcopy(self.module), state)
                gone = {name: frozenset(slots) for name, slots in record.pop("gone").items()}
            now = record["cost"]
            history.append(record)
            steps.append(left_of(self.survey, gone))
            self._tell(record)
        module.eval()
        state = state_of(module)
        left = self.survey.left
        return Pruned(module, state, tuple(history), tuple(steps), left, _name(self.cost))

    def _step(
        self, module: nn.Module, gone: Gone, now: float, target: float, number: int
    ) -> tuple[nn.Module, Gone, dict[str, Any]]:
        """Cuts, and recovers; each half is kept."""
        done = self.journal.step(f"{number}-cut")
        if done is None:
            after, cost = self._choose(module, gone, now, target, number)
            module = cut(module, self.survey, gone, after).eval()
            record = self._record(module, number, target, cost, self._scored(module))
            kept = record | {"gone": {name: sorted(slots) for name, slots in after.items()}}
            self.journal.finish(f"{number}-cut", state_of(module), kept)
            gone = after
        else:
            state, record = done
            module = fit_state(deepcopy(self.module), state)
            gone = {name: frozenset(slots) for name, slots in record.pop("gone").items()}
        if "score" in record:
            record["score_cut"] = record["score"]
        if self.recover is not None:
            module = self._recovered(module, number, record["cost"])
            if self.score is not None:
                record["score"] = self._scored(module)
        kept = record | {"gone": {name: sorted(slots) for name, slots in gone.items()}}
        self.journal.finish(str(number), state_of(module), kept)
        return module, gone, record

    def _recovered(self, module: nn.Module, number: int, cost: float) -> nn.Module:
        shapes = {name: t.shape for name, t in module.state_dict().items()}
        place = None if self.folder is None else self.folder / f"step-{number}-recover"
        assert self.recover is not None
        # What was loaded may be frozen in the module as it was handed in; that is the user's.
        self.recover(module, PruneStep(number, self.settings.steps, cost, place))
        module.eval()
        if {name: t.shape for name, t in module.state_dict().items()} != shapes:
            raise BadData(
                f"recovery after step {number} changed the shapes of the module's weights"
            )
        return module

    def _choose(
        self, module: nn.Module, gone: Gone, now: float, target: float, number: int
    ) -> tuple[Gone, float]:
        """What is to be gone after this step, and what the module costs then."""
        settings = self.settings
        scores = importance(module, self.survey, gone, settings.importance, losses=self.losses)
        weighs = settings.gains and settings.scope == "global"
        gains = self._gains(module, gone, now, scores) if weighs else None
        chunks = order(
            self.survey,
            gone,
            scores,
            gains=gains,
            multiple=settings.multiple,
            most=settings.most,
            scope=settings.scope,
            relative=settings.importance in ("l1", "l2"),
        )
        saved = None
        if isinstance(self.cost, MeasuredCost):
            even = {c.width: 1.0 for c in chunks} if gains is None else gains
            thought = [max(even.get(c.width, 0.0), 0.0) * len(c.slots) for c in chunks]
            # All alike have no unit: as if all that may go saved nearly all of the cost.
            unit = 0.8 * now / max(1.0, sum(thought)) if gains is None else 1.0
            saved = [unit * one for one in thought]

        def costs(count: int) -> float:
            after = gone_with(gone, chunks[:count])
            name = fingerprint(widths=left_of(self.survey, after), step=number)
            return self._costs(name, [cut(module, self.survey, gone, after)])[0]

        count, cost = spend(
            chunks, base=now, target=target, cost=costs, saved=saved, tries=settings.tries
        )
        if cost > target:
            raise UsageError(
                f"a cost of {target:.6g} can't be met: with all of the model gone that may go "
                f"it is {cost:.6g}, of {self.base:.6g}",
                hint="raise target or limit, or most; lower multiple; or keep fewer layers",
            )
        return gone_with(gone, chunks[:count]), cost

    def _gains(
        self, module: nn.Module, gone: Gone, now: float, scores: Mapping[str, torch.Tensor]
    ) -> dict[str, float]:
        """What a slot of each width saves.

        A cost that is computed is asked about one chunk, at each step. A measured one is asked
        about all that may go of a width, once: what a chunk saves drowns in noise.
        """
        settings, measured = self.settings, isinstance(self.cost, MeasuredCost)
        start = {} if measured else gone
        chunks = order(
            self.survey,
            start,
            {name: s if not measured else torch.zeros_like(s) for name, s in scores.items()},
            gains=None,
            multiple=settings.multiple,
            most=settings.most,
            scope="layer",
        )
        mine: dict[str, list[Chunk]] = {}
        for chunk in chunks:
            if measured or chunk.width not in mine:
                mine.setdefault(chunk.width, []).append(chunk)
        whole = self.module if measured else module
        trials = [gone_with(start, some) for some in mine.values()]
        modules = [cut(whole, self.survey, start, after) for after in trials]
        if measured and self.journal.measured("gains") is None:
            self.watch.note(f"measuring what each of {len(modules)} layers saves")
        base = self.base if measured else now
        costs = self._costs("gains", modules) if measured else [self.cost(m) for m in modules]  # type: ignore[operator]
        return {
            name: (base - cost) / sum(len(c.slots) for c in some)
            for (name, some), cost in zip(mine.items(), costs, strict=True)
        }

    def _costs(self, what: str, modules: Sequence[nn.Module]) -> list[float]:
        """Costs of modules; measured ones beside the module as it was, and only once."""
        if not isinstance(self.cost, MeasuredCost):
            costs = [float(self.cost(m)) for m in modules]
        elif (known := self.journal.measured(what)) is not None:
            costs = known
        elif what == "base":
            costs = [float(c) for c in self.cost.compare(modules)]
            self.journal.measure(what, costs)
        else:
            first, *rest = self.cost.compare([self.module, *modules])
            costs = [self.base * float(c) / first for c in rest]
            self.journal.measure(what, costs)
        for value in costs:
            if not (math.isfinite(value) and value > 0):
                raise BadData(f"the cost of a module is {value}; it has to be a number above 0")
        return costs

    def _scored(self, module: nn.Module) -> float | None:
        if self.score is None:
            return None
        with torch.no_grad():
            return float(self.score(module.eval()))

    def _record(
        self, module: nn.Module, number: int, target: float, cost: float, score: float | None
    ) -> dict[str, Any]:
        parameters = float(sum(p.numel() for p in module.parameters()))
        record = {"step": number, "target": target, "cost": cost, "parameters": parameters}
        return record if score is None else record | {"score": score}

    def _tell(self, record: Mapping[str, float]) -> None:
        number = int(record["step"])
        shown = {k: record[k] for k in ("cost", "parameters", "score_cut", "score") if k in record}
        for name, value in shown.items():
            self.watch.metric(f"prune/{name}", value, number)
        self.watch.step(number, self.settings.steps, **shown)


def _name(cost: Cost | MeasuredCost) -> str:
    return str(getattr(cost, "name", "cost"))


def _key(
    module: nn.Module,
    examples: Mapping[str, torch.Tensor],
    settings: PruneSettings,
    cost: Cost | MeasuredCost,
) -> str:
    """Of all that decides what pruning does, but for what is done in the functions given."""
    digest = hashlib.sha256()
    for name, tensor in (*sorted(state_of(module).items()), *sorted(examples.items())):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(data.numpy().tobytes())
    return fingerprint(
        stage="prune",
        module=repr(module),
        tensors=digest.hexdigest(),
        settings=settings.model_dump(mode="json"),
        cost=_name(cost),
        torch=torch.__version__,
        torch_pruning=importlib.metadata.version("torch-pruning"),
    )
