"""The loop of `edgekit.compress.train`, in one process of a team.

Every draw (the order of an epoch, a batch's augmentation, a step's dropout) has a seed of its own,
made of the settings' seed and of where in the training it is. So where a training stands is told by
a number of steps and by tensors, and going on from there gives the bits of one never interrupted.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from edgekit.compress._amp import Precision
from edgekit.compress._checkpoint import (
    Checkpoint,
    digest_of_set,
    read_checkpoint,
    write_checkpoint,
)
from edgekit.compress._classes import mixed, seed_of, seeded
from edgekit.compress._optimize import (
    Average,
    Frozen,
    Schedule,
    copies_of,
    fill,
    memory_of,
    remember,
    rule_of,
    tensors_of,
)
from edgekit.compress._team import Team, objective_of
from edgekit.compress._train_types import Loss, Trained, TrainSet, TrainSettings
from edgekit.errors import BadData, UsageError
from edgekit.protocols import Watch

__all__ = ["Task", "Training"]

EachEpoch = Callable[[nn.Module, int], None]
Score = Callable[[nn.Module], float]

_TOLD_EVERY_S: Final = 0.1
_LOOKED_AT: Final = {"cpu": 1, "cuda": 16}
"""After how many steps losses are looked at: on a GPU each look waits for the device."""


@dataclass(frozen=True)
class Task:
    """What each process of a team trains.

    Attributes:
        data: the set.
        rows: which of its samples are learned from.
        settings: how.
        loss: what is made small.
        each_epoch: called with the module and the epoch, counted from 1, before each.
        scored: whether the leader scores the module after each epoch.
    """

    data: TrainSet
    rows: torch.Tensor
    settings: TrainSettings
    loss: Loss
    each_epoch: EachEpoch | None
    scored: bool


class Training:
    """A training under way.

    Args:
        module: what is trained, on ``device``.
        task: see `Task`.
        team: this process among others.
        device: where it computes.
        score: the leader's, where the task is scored.
        folder: the leader's, for checkpoints.
        watch: hears of progress, in the leader.
        started: digest of the module's tensors as they came.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        team: Team,
        device: torch.device,
        *,
        score: Score | None,
        folder: Path | None,
        watch: Watch,
        started: str,
    ) -> None:
        self._module, self._task, self._team, self._device = module, task, team, device
        self._score, self._folder, self._watch = score, folder, watch
        s = task.settings
        self._stride = s.batch * s.accumulate * team.size
        self._steps = len(task.rows) // self._stride
        if not self._steps:
            raise BadData(
                f"{len(task.rows)} samples to learn from; one step takes {self._stride}",
                hint="lower batch, accumulate or processes, or give more samples",
            )
        self._precision = Precision(s, device)
        self._rule = rule_of(module, s)
        self._schedule = Schedule(s, s.epochs * self._steps)
        self._average = Average(module, s.ema) if s.ema else None
        self._objective = objective_of(module, task.loss, team)
        self._done = 0
        self._curve: list[dict[str, float]] = []
        self._sum = 0.0
        self._best: dict[str, torch.Tensor] = {}
        self._best_score: float | None = None
        self._waited = 0
        self._stopped = False
        self._started = started
        self._identity: dict[str, Any] = {}
        self._pending: list[torch.Tensor] = []
        self._written = self._told = time.monotonic()
        self._begun = (time.monotonic(), 0)

    def run(self, frozen: Frozen) -> Trained:
        """Trains to the end, and gives the weights that are kept."""
        self._resume()
        self._begun = (time.monotonic(), self._done)
        for epoch in range(len(self._curve), self._task.settings.epochs):
            if self._stopped:
                break
            self._module.train()
            frozen.hold()
            if self._task.each_epoch is not None:
                self._task.each_epoch(self._module, epoch + 1)
            self._epoch(epoch)
            self._finish_epoch(epoch)
        return self._kept()

    # -- steps ------------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> None:
        first = self._done - epoch * self._steps
        order = torch.randperm(
            len(self._task.rows), generator=seeded(self._task.settings.seed, "order", epoch)
        )
        for batches in self._batches(epoch, first, self._task.rows[order]):
            self._step(batches)
            self._done += 1
            if len(self._pending) >= _LOOKED_AT[self._device.type]:
                self._look()
            self._tell()
            self._save(due=self._task.settings.checkpoint_s)
        self._look()

    def _batches(
        self, epoch: int, first: int, rows: torch.Tensor
    ) -> Iterator[list[dict[str, torch.Tensor]]]:
        """What each step from ``first`` on takes in this process."""
        s, team = self._task.settings, self._team

        def make(step: int) -> list[dict[str, torch.Tensor]]:
            made = []
            for micro in range(s.accumulate):
                start = step * self._stride + (micro * team.size + team.rank) * s.batch
                seed = seed_of(s.seed, "batch", epoch, step, micro, team.rank)
                batch = self._task.data.batch(rows[start : start + s.batch], seeded(seed))
                made.append(mixed(batch, s.mixup, seed) if s.mixup else batch)
            return made

        steps = range(first, self._steps)
        if not getattr(self._task.data, "threaded", False):
            yield from map(make, steps)
            return
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(make, first) if first < self._steps else None
            for step in steps:
                assert coming is not None
                now = coming.result()
                coming = pool.submit(make, step + 1) if step + 1 < self._steps else None
                yield now

    def _step(self, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        s, scaler = self._task.settings, self._precision.scaler
        self._schedule.set(self._rule, self._done)
        total = torch.zeros((), device=self._device)
        for micro, batch in enumerate(batches):
            torch.manual_seed(seed_of(s.seed, "step", self._done, micro, self._team.rank))
            last = micro == len(batches) - 1
            with self._alone(not last), self._precision():
                value = self._objective(self._moved(batch))
            if value.dim():
                raise UsageError(f"the loss gives a tensor {tuple(value.shape)}, not one number")
            with self._alone(not last):
                scaler.scale(value / len(batches)).backward()
            total += value.detach() / len(batches)
        if s.clip is not None:
            scaler.unscale_(self._rule)
            nn.utils.clip_grad_norm_(self._module.parameters(), s.clip)
        scaler.step(self._rule)
        scaler.update()
        self._rule.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self._done)
        self._pending.append(self._team.mean(total))

    def _alone(self, whether: bool) -> contextlib.AbstractContextManager[None]:
        """Keeps gradients in this process while more batches of the step are to come."""
        if whether and isinstance(self._objective, DistributedDataParallel):
            return self._objective.no_sync()
        return contextlib.nullcontext()

    def _moved(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out = {}
        for name, value in batch.items():
            lay = self._task.settings.channels_last and value.dim() == 4
            form = torch.channels_last if lay else torch.preserve_format
            out[name] = value.to(self._device, non_blocking=True, memory_format=form)
        return out

    def _look(self) -> None:
        """Adds up losses that were not looked at yet.

        Raises:
            BadData: one is NaN or infinite; says of which step.
        """
        if not self._pending:
            return
        values = torch.stack(self._pending).cpu().tolist()
        first = self._done - len(values)
        self._pending.clear()
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise self._diverged("the loss became", value, first + i)
            self._sum += value

    def _diverged(self, what: str, value: object, step: int) -> BadData:
        epoch = step // self._steps
        s = self._task.settings
        tries = [f"lower rate ({s.rate:g})", "set clip=1" if s.clip is None else "lower clip"]
        tries += ["set amp=bf16 or off"] * (s.amp == "fp16")
        return BadData(
            f"{what} {value} in epoch {epoch + 1}, step {step - epoch * self._steps + 1} of "
            f"{self._steps}; the weights are as they were before training",
            hint=f"{', '.join(tries)}, warm up longer, or look for NaN in the data",
        )

    # -- epochs -----------------------------------------------------------------------------------

    def _finish_epoch(self, epoch: int) -> None:
        for name, parameter in self._module.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._diverged(f"{name} became", "NaN or infinite", self._done - 1)
        rate = self._schedule.rate(self._done - 1)
        point = {"epoch": epoch + 1, "loss": self._sum / self._steps, "rate": rate}
        self._module.eval()
        if self._score is not None:
            point |= self._scores(epoch)
        self._curve.append(point)
        self._sum = 0.0
        self._plot(point)
        self._stopped = self._team.told(self._stopped)
        self._save(due=0.0)

    def _plot(self, point: Mapping[str, float]) -> None:
        """An epoch's figures, as points of curves."""
        if self._team.leads:
            for name, value in point.items():
                if name != "epoch":
                    self._watch.metric(name, value, int(point["epoch"]))

    def _scores(self, epoch: int) -> dict[str, float]:
        """Scores the weights, and their average; keeps the best."""
        s = self._task.settings
        found = {"score": self._scored(epoch)}
        candidates = [(found["score"], tensors_of(self._module))]
        if self._average is not None:
            live = {n: v.clone() for n, v in tensors_of(self._module).items()}
            self._module.load_state_dict(self._average.state, strict=False)
            found["score_ema"] = self._scored(epoch)
            self._module.load_state_dict(live, strict=False)
            candidates.append((found["score_ema"], self._average.state))
        value, state = max(candidates, key=lambda c: c[0])
        if self._best_score is None or value > self._best_score:
            self._best_score, self._waited = value, 0
            self._best = copies_of(state)
        else:
            self._waited += 1
            self._stopped = 0 < s.patience <= self._waited
            if self._stopped:
                self._watch.note(
                    f"no better score than {self._best_score:.6g} in {s.patience} epochs: stopped "
                    f"after epoch {epoch + 1} of {s.epochs}"
                )
        return found

    def _scored(self, epoch: int) -> float:
        assert self._score is not None
        self._module.eval()
        with torch.no_grad():
            value = float(self._score(self._module))
        if math.isnan(value):
            raise BadData(f"the score after epoch {epoch + 1} is NaN")
        return value

    def _kept(self) -> Trained:
        s, best = self._task.settings, self._best_score
        if self._best and s.keep == "best":
            state = self._best
        else:
            average = None if self._average is None else self._average.state
            state = copies_of(tensors_of(self._module) if average is None else average)
            if self._curve and best is not None:
                last = self._curve[-1]
                best = last.get("score_ema", last["score"])
        return Trained(state, tuple(self._curve), best)

    def _tell(self) -> None:
        now, total = time.monotonic(), self._task.settings.epochs * self._steps
        if not self._team.leads or (now - self._told < _TOLD_EVERY_S and self._done < total):
            return
        self._told = now
        since, before = self._begun
        inside = (self._done - 1) % self._steps + 1 - len(self._pending)
        figures = {"loss": self._sum / inside} if inside else {}
        speed = (self._done - before) * self._stride / max(1e-9, now - since)
        rate = self._schedule.rate(self._done - 1)
        self._watch.step(self._done, total, **figures, rate=rate, samples_s=speed)

    # -- checkpoints ------------------------------------------------------------------------------

    def _belongs(self) -> dict[str, Any]:
        loss = self._task.loss
        about = getattr(loss, "__qualname__", type(loss).__qualname__)
        return {
            "settings": self._task.settings.model_dump(mode="json", exclude={"checkpoint_s"}),
            "initial weights": self._started,
            "data": digest_of_set(self._task.data, self._task.rows),
            "loss": f"{about} {getattr(loss, 'digest', '')}".strip(),
            "torch": torch.__version__,
            "processes": self._team.size,
            "device": self._device.type,
        }

    def _save(self, due: float) -> None:
        if self._folder is None or time.monotonic() - self._written < due:
            return
        self._look()
        tensors = {f"module/{n}": v for n, v in tensors_of(self._module).items()}
        tensors |= {f"best/{n}": v for n, v in self._best.items()}
        if self._average is not None:
            tensors |= {f"average/{n}": v for n, v in self._average.state.items()}
        tensors |= {f"rule/{n}": v for n, v in memory_of(self._rule).items()}
        progress = {
            "done": self._done,
            "sum": self._sum,
            "curve": self._curve,
            "best": self._best_score,
            "waited": self._waited,
            "stopped": self._stopped,
            "scaler": self._precision.scaler.state_dict(),
        }
        write_checkpoint(self._folder, Checkpoint(self._identity, progress, tensors))
        self._written = time.monotonic()

    def _resume(self) -> None:
        kept: Checkpoint | None = None
        if self._folder is not None:
            self._identity = self._belongs()
            kept, why = read_checkpoint(self._folder, self._identity)
            if why:
                self._watch.note(f"{why}: training begins anew")
        kept = self._team.told(kept)
        if kept is None:
            return
        fill(tensors_of(self._module), kept.part("module"))
        self._best = kept.part("best")
        if self._average is not None:
            self._average.load(kept.part("average"))
        remember(self._rule, kept.part("rule"))
        progress = kept.progress
        self._done, self._sum = progress["done"], progress["sum"]
        self._curve, self._best_score = progress["curve"], progress["best"]
        self._waited, self._stopped = progress["waited"], progress["stopped"]
        if progress["scaler"]:
            self._precision.scaler.load_state_dict(progress["scaler"])
        if self._team.leads:
            self._watch.note(f"goes on from step {self._done}")
        # What the process that was killed had heard went with it.
        for point in self._curve:
            self._plot(point)
