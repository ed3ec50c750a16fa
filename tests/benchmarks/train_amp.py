"""What mixed precision costs or saves on this machine: `train` with ``amp`` off, bf16 and fp16.

    python tests/benchmarks/train_amp.py --out out/bench/train_amp.json

Two networks learn from noise: MobileNetV2 on pictures of 64 x 64, with channels last, and a
transformer of MiniLM-L6's shape (6 layers, 384 features, 12 heads) on 64 tokens. One round trains
each side for the same steps, every round in another order; a ratio is the median of the rounds'
ratios with its 95 % interval (`edgekit.paired`), once of wall time and once of this process's
processor time, which hardly depends on what else the machine does. Torch has as many threads as
``OMP_NUM_THREADS`` gives it. A side that torch refuses here is listed with its reason.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit._torchvision import torchvision
from edgekit.bench.facts import host_facts
from edgekit.compress.train import TrainSettings, train
from edgekit.errors import UnsupportedError
from edgekit.paired import MIN_RATIO_PAIRS, paired_ratio

SIDES = ("off", "bf16", "fp16")
STEPS, BATCH = 6, 16
SIDE, TOKENS, FEATURES = 64, 64, 384


class Noise:
    """Samples that are the same in every round."""

    def __init__(self, *shape: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(STEPS * BATCH, *shape, generator=generator)
        self.labels = torch.arange(len(self.x)) % 10

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: torch.Tensor, generator: torch.Generator | None) -> dict[str, Any]:
        return {"x": self.x[rows], "y": self.labels[rows], "row": rows}


def mobilenet() -> nn.Module:
    """torchvision's MobileNetV2 for 10 classes."""
    network: nn.Module = torchvision().models.mobilenet_v2(num_classes=10)
    return network


class Encoder(nn.Module):
    """Six layers of MiniLM-L6's size; the first position answers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(FEATURES, 12, 4 * FEATURES, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.layers(x)[:, 0])
        return answer


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenet_v2": (mobilenet, (3, SIDE, SIDE)),
    "transformer": (Encoder, (TOKENS, FEATURES)),
}


def trained(make: Callable[[], nn.Module], data: Noise, amp: str) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and the loss of one epoch."""
    torch.manual_seed(0)
    module = make()
    settings = TrainSettings(epochs=1, batch=BATCH, channels_last=data.x.dim() == 4, amp=amp)
    wall, cpu = time.perf_counter(), time.process_time()
    made = train(module, data, settings)
    return time.perf_counter() - wall, time.process_time() - cpu, made.curve[0]["loss"]


def measured(name: str, rounds: int, wanted: Sequence[str]) -> dict[str, Any]:
    """Every side's times over the rounds, and their ratios to ``off``."""
    make, shape = NETWORKS[name]
    data, sides, refused = Noise(*shape), [], {}
    for amp in wanted:
        try:
            trained(make, data, amp)  # also warms up
            sides.append(amp)
        except UnsupportedError as error:
            refused[amp] = error.message
    times: dict[str, list[tuple[float, float, float]]] = {amp: [] for amp in sides}
    for i in range(rounds):
        for amp in sides[i % len(sides) :] + sides[: i % len(sides)]:
            times[amp].append(trained(make, data, amp))
    out: dict[str, Any] = {"refused": refused, "sides": {}}
    for amp in sides:
        walls, cpus, losses = zip(*times[amp], strict=True)
        base_walls, base_cpus, _ = zip(*times["off"], strict=True)
        side = {"wall_s": walls, "cpu_s": cpus, "loss": losses[0]}
        if amp != "off":
            for kind, base, own in (("wall", base_walls, walls), ("cpu", base_cpus, cpus)):
                ratio = paired_ratio(base, own)
                side[f"{kind}_ratio"] = {
                    "ratio": ratio.ratio, "low": ratio.low, "high": ratio.high,
                    "verdict": ratio.verdict,
                }  # fmt: skip
                print(
                    f"{name} {amp}: {kind} time x {ratio.ratio:.2f} "
                    f"({ratio.low:.2f} to {ratio.high:.2f}), {ratio.verdict}",
                    flush=True,
                )
        out["sides"][amp] = side
    for amp, reason in refused.items():
        print(f"{name} {amp}: refused: {reason}", flush=True)
    return out


def main() -> None:
    """Measures both networks and writes the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--network", choices=tuple(NETWORKS), action="append")
    parser.add_argument("--beside", choices=SIDES[1:], action="append", help="default: both")
    arguments = parser.parse_args()
    if arguments.rounds < MIN_RATIO_PAIRS:
        parser.error(f"--rounds: at least {MIN_RATIO_PAIRS}")
    sides = (SIDES[0], *(arguments.beside or SIDES[1:]))
    document = {
        "facts": host_facts(),
        "threads": torch.get_num_threads(),
        "steps": STEPS,
        "batch": BATCH,
        "networks": {
            n: measured(n, arguments.rounds, sides) for n in arguments.network or NETWORKS
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
