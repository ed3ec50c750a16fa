"""Reference answers: the float model's and every plan's, on the samples and on extreme inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Store, fingerprint
from edgekit.data import Samples
from edgekit.errors import BadData
from edgekit.export.planning import Planned
from edgekit.export.request import Listener
from edgekit.keys import code, isa, versions
from edgekit.model import Model
from edgekit.parity import extreme_probes
from edgekit.signature import Signature

if TYPE_CHECKING:
    from torch import fx

__all__ = ["GOLDEN_SAMPLES", "Referenced", "gather", "load_arrays", "refer", "rounding_floors"]

Arrays = dict[str, npt.NDArray[Any]]

FLOOR_SAMPLES: Final = 128
PROBE_DRAWS: Final = 8
"""Probes are a handful: whether a rounding tips on one of them, one draw of noise does not tell."""
GOLDEN_SAMPLES: Final = 8


@dataclass(frozen=True)
class Referenced:
    """The store entry of reference answers, and the samples that they answer.

    Attributes:
        key: of the entry.
        path: holds ``outputs-<name>.npz`` for every plan (``fp32`` is the float model) and
            ``facts.json``.
        samples: the samples; None where there are only made-up inputs.
        n: samples without the probes.
        probes: how many probes follow them.
    """

    key: str
    path: Path
    samples: Samples | None
    n: int
    probes: int

    def facts(self) -> dict[str, Any]:
        """Output steps and rounding floor by the plan's name; of ``fp32``, its numbers too."""
        loaded: dict[str, Any] = json.loads((self.path / "facts.json").read_text())
        return loaded

    def least_bytes(self) -> int:
        """What the float model's numbers take in float32: no float file of it is smaller."""
        return 4 * int(self.facts()["fp32"]["numbers"])

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Class indices [n], or None where a sample has none."""
        if self.samples is None:
            return None
        found = [self.samples.label(i) for i in range(self.n)]
        if any(label is None for label in found):
            return None
        return np.asarray(found, np.int64)


def refer(
    model: Model,
    planned: Planned,
    samples: Samples | None,
    names: Sequence[str],
    store: Store,
    listener: Listener,
    *,
    tick: Callable[[int], None] | None = None,
) -> Referenced:
    """Answers of the float model and of every plan, on the samples and on extreme inputs.

    ``names`` are those of plans (`edgekit.compress.plan.plan_name`). ``tick`` is called now and
    then where no progress is shown; it may raise to end the work.
    """
    key = fingerprint(
        stage="reference",
        plan=planned.key,
        samples=None if samples is None else [samples.digest, len(samples)],
        schemes=sorted(names),
        code=code("compress", "parity", "verify.py", "floors.py"),
        versions=versions("torch", "numpy"),
        isa=isa(),
    )
    n = GOLDEN_SAMPLES if samples is None else len(samples)

    def fill(folder: Path) -> None:
        import torch

        from edgekit.compress import macs
        from edgekit.compress.evaluate import evaluate
        from edgekit.compress.graph import graph_module
        from edgekit.compress.plan import QuantPlan
        from edgekit.compress.render import render
        from edgekit.verify import output_steps

        feeds, _ = gather(model, samples)
        ins = [s.name for s in model.signature.inputs]
        outs = [s.name for s in model.signature.outputs]
        facts: dict[str, Any] = {}
        total = len(feeds[ins[0]])
        for name in dict.fromkeys(["fp32", *names]):
            file = planned.plan(name)
            program = torch.export.load(planned.program(name))
            plan = (
                QuantPlan.from_json(json.loads(file.read_text()))
                if file.exists()
                else QuantPlan("fp32", _digest_of(program))
            )
            module = render(program, plan, "fake")
            with listener.progress(f"evaluating {name} in torch", total) as advance:
                answers = evaluate(module, feeds, ins, outs, progress=advance)
            _check_finite(answers, name)
            np.savez(folder / f"outputs-{name}.npz", **answers)  # type: ignore[arg-type]
            steps = output_steps(program, plan, outs)
            floors: dict[str, Any] = {"floor": None, "probe_floor": None}
            if plan.rounds:
                floors = rounding_floors(
                    model.signature, module, feeds, answers, steps, n, plan.scheme, tick=tick
                )
            facts[name] = {"steps": steps, **floors}
            if name == "fp32":
                facts[name]["numbers"] = macs.numbers(graph_module(program))
        (folder / "facts.json").write_text(json.dumps(facts))

    path = store.make(key, fill, what="reference")
    probes = len(_probes(model, None))
    return Referenced(key, path, samples, n, probes)


def rounding_floors(
    signature: Signature,
    module: fx.GraphModule,
    feeds: Arrays,
    answers: Arrays,
    steps: Mapping[str, float | None],
    n: int,
    scheme: str,
    *,
    times: int = 1,
    tick: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """How far a plan's evaluation moves under rounding noise, on samples and on the probes.

    Of the samples `FLOOR_SAMPLES` are disturbed once, or fewer as often as makes that many. One
    draw over 32 samples of ten outputs misses what moves one element in 154 every eighth time, and
    then demands what no runtime can keep.

    Args:
        signature: of the model.
        module: the plan's ``fake`` rendering.
        feeds: the samples, then the probes.
        answers: of ``module`` to them.
        steps: quantization steps of its outputs.
        n: how many of ``feeds`` are samples.
        scheme: of the plan.
        times: as many times more samples or draws of noise.
        tick: called with the number of samples newly evaluated; it may raise.
    """
    from edgekit.compress.evaluate import batches, evaluate, with_rounding_noise
    from edgekit.verify import rounding_floor

    names, outs = ([s.name for s in side] for side in (signature.inputs, signature.outputs))

    def moved(part: slice, draw: int) -> tuple[Arrays, Arrays]:
        """The answers to some samples, and those under one draw of noise."""
        few, right = ({k: v[part] for k, v in of.items()} for of in (feeds, answers))
        noisy = with_rounding_noise(module, draw=draw)
        return right, evaluate(noisy, few, names, outs, progress=tick, together=together)

    def floor(pairs: Sequence[tuple[Arrays, Arrays]]) -> dict[str, Any]:
        right, disturbed = (
            {k: np.concatenate([pair[i][k] for pair in pairs]) for k in answers} for i in (0, 1)
        )
        return rounding_floor(signature, right, disturbed, steps, scheme)

    # Noise treats samples apart: what is found of the graph holds under every draw.
    together = batches(module, feeds, names)
    count = min(times * FLOOR_SAMPLES, n)
    draws = min(times * PROBE_DRAWS, -(-times * FLOOR_SAMPLES // count))
    probes = slice(n, len(feeds[names[0]]))
    return {
        "floor": floor([moved(slice(0, count), draw) for draw in range(draws)]),
        "probe_floor": _lowest([floor([moved(probes, draw)]) for draw in range(PROBE_DRAWS)]),
    }


def _lowest(floors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The lowest of every figure; None where no draw moved anything."""
    return {
        name: min((f[name] for f in floors if f[name] is not None), default=None)
        for name in floors[0]
    }


def gather(model: Model, samples: Samples | None) -> tuple[Arrays, int]:
    """Feeds [n + probes, *shape] by input name, and the number of probes.

    Without samples, the model's own example inputs under several seeds stand in for them.
    """
    if samples is None:
        rows = [
            {
                s.name: t.numpy()
                for s, t in zip(model.signature.inputs, model.example_inputs(seed), strict=True)
            }
            for seed in range(GOLDEN_SAMPLES)
        ]
    else:
        rows = [samples.feed(i) for i in range(len(samples))]
    ranges = {
        s.name: (
            min(float(r[s.name].min()) for r in rows),
            max(float(r[s.name].max()) for r in rows),
        )
        for s in model.signature.inputs
        if s.dtype.startswith("float")
    }
    extra = _probes(model, ranges)
    rows.extend(extra)
    feeds = {s.name: np.stack([r[s.name] for r in rows]) for s in model.signature.inputs}
    return feeds, len(extra)


def load_arrays(path: Path) -> Arrays:
    """The arrays of an ``.npz`` of our own."""
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def _probes(model: Model, ranges: Mapping[str, tuple[float, float]] | None) -> list[Arrays]:
    return [dict(p.feeds) for p in extreme_probes(model.signature, ranges=ranges)]


def _check_finite(answers: Arrays, scheme: str) -> None:
    for name, value in answers.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            bad = int(np.argwhere(~np.isfinite(value))[0][0])
            raise BadData(
                f"the model's own output {name!r} is NaN or infinite at sample {bad} ({scheme})",
                hint="check the weights and the data's scale",
            )


def _digest_of(program: Any) -> str:
    from edgekit.compress.graph import program_digest

    return program_digest(program)
