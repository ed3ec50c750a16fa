"""What a module costs: multiply-accumulates, parameters, or latency measured in a real runtime.

These are handed to `edgekit.compress.prune.prune`, which stands below and must not know runtimes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import nn

from edgekit import cores
from edgekit.bench.measure import BenchRequest, bench
from edgekit.device import load, plan_targets
from edgekit.errors import BadData, MissingDependency, UsageError
from edgekit.export.converted import artifacts_of
from edgekit.model import Model
from edgekit.paired import MIN_RATIO_PAIRS
from edgekit.runtime.session import unavailable
from edgekit.scratch import scratch

__all__ = ["Latency", "Macs", "Parameters"]

_HOST = "host"


class Macs:
    """Multiply-accumulates of one call: convolutions, matrix products and attention.

    Args:
        examples: one tensor per input, batch first; the first sample is run.
    """

    name = "multiply-accumulates"

    def __init__(self, examples: Mapping[str, torch.Tensor]) -> None:
        self._examples = {name: tensor[:1] for name, tensor in examples.items()}

    def __call__(self, module: nn.Module) -> float:
        """How many there are; the module is run in eval mode, which it keeps."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
        # As plain products: the counter doesn't know attention's own operator for processors.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            module.eval()(**self._examples)
        return counter.get_total_flops() / 2


class Parameters:
    """Numbers that a module's parameters hold, shared ones once."""

    name = "parameters"

    def __call__(self, module: nn.Module) -> float:
        """How many there are."""
        return float(sum(p.numel() for p in module.parameters()))


class Latency:
    """Latency of one call in a runtime, in milliseconds, measured on this machine.

    A module is quantized (without the methods that only choose better numbers), converted in the
    target's worker process, and timed in fresh processes, in turn with those that it is compared
    with (`edgekit.bench.measure`).

    Args:
        device: id or path of a profile; its threads are used, as far as this machine has them.
        target: the runtime.
        scheme: such as ``w8a8`` or ``fp32``; None takes the one that the device prefers.
        examples: one tensor per input, batch first; the first sample is timed.
        calib: calibration samples by input name, ``[n, ...]``; None takes ``examples``.
        threads: None takes the device's.
        rounds: fresh processes per module; at least `edgekit.paired.MIN_RATIO_PAIRS`.
        seconds: timed seconds per module, over all rounds.

    Attributes:
        name: what is measured and where, for people. For any device but ``host`` it says that this
            machine stands in: the figures are no measurement of that device.
        stand_in: whether it does.

    Raises:
        UsageError: no such device, target or scheme, or too few rounds.
        UnsupportedError: the device does not run that.
        MissingDependency: the runtime is not installed here.
    """

    def __init__(
        self,
        device: str,
        target: str,
        scheme: str | None = None,
        *,
        examples: Mapping[str, torch.Tensor],
        calib: Mapping[str, torch.Tensor] | None = None,
        threads: int | None = None,
        rounds: int = 8,
        seconds: float = 2.0,
    ) -> None:
        if rounds < MIN_RATIO_PAIRS:
            raise UsageError(f"rounds is {rounds}; {MIN_RATIO_PAIRS} are needed to compare")
        profile = load(device)
        self._job = plan_targets([profile], [target], [scheme] if scheme else [])[0]
        reason = unavailable(self._job.through)
        if reason is not None:
            raise MissingDependency(f"latency in {target} can't be measured here: {reason}")
        self._examples = {name: tensor[:1].cpu() for name, tensor in examples.items()}
        given = examples if calib is None else calib
        self._calib = {name: tensor.cpu() for name, tensor in given.items()}
        self._rounds, self._seconds = rounds, seconds
        self.threads = min(threads or self._job.threads, cores.usable())
        self.stand_in = profile.id != _HOST
        where = f"on this machine with {self.threads} thread{'s'[: self.threads > 1]}"
        if self.stand_in:
            where += f", which stands in for {profile.id}: no measurement of that device"
        self.name = f"latency in ms, {self._job.target} {self._job.scheme}, {where}"

    def __call__(self, module: nn.Module) -> float:
        """The median latency of one module, in ms."""
        return self.compare([module])[0]

    def compare(self, modules: Sequence[nn.Module]) -> list[float]:
        """Latencies in ms, paired with the first module's.

        The first figure is the median of the calls. Each other one is that times the median ratio
        of the rounds, in which both were timed one after the other: what slows the machine for a
        while slows both.

        Raises:
            UnsupportedError: a module can't be exported or converted.
            WorkerCrashed: the converter or the runtime died.
        """
        with scratch("cost") as folder:
            # Copies, as a module may be in training, and anywhere.
            own = [deepcopy(module).cpu().eval() for module in modules]
            models = [Model.from_module(m, self._examples, name="cost") for m in own]
            calib = {name: tensor.numpy() for name, tensor in self._calib.items()}
            paths = artifacts_of(models, self._job, calib, folder)
            sample = {name: tensor.numpy() for name, tensor in self._examples.items()}
            requests = [
                BenchRequest(
                    artifact=str(i),
                    target=self._job.through,
                    path=path,
                    signature=model.signature,
                    scheme=self._job.scheme,
                    delegate=self._job.delegate,
                    feeds={s.name: sample[s.name] for s in model.signature.inputs},
                )
                for i, (model, path) in enumerate(zip(models, paths, strict=True))
            ]
            document = bench(
                requests,
                threads=self.threads,
                max_seconds=self._seconds,
                runs=max(self._rounds, 400),
                rounds=self._rounds,
                compare=[("0", str(i)) for i in range(1, len(models))],
                # A search needs a figure for every one; rounds take turns, so heat is shared.
                force=True,
            )
        figures = document["results"][0]["latency_ms"]
        if figures is None:
            raise BadData("a call took 0 ms or less: this machine's clock can't be pruned by")
        first = float(figures["p50"])
        return [first, *(first * float(c["ratio"]) for c in document["comparisons"])]
