"""Trains the CIFAR-10 networks that the benchmarks quantize, and freezes them as safetensors.

Run once; the checkpoints are kept under ``tests/benchmarks/checkpoints``, so that every benchmark
starts from the same weights::

    python tests/benchmarks/train_cifar10.py mobilenet_v2 --data cifar10.zip --epochs 15 --half 9 \
        --optimizer adamw --rate 0.003

``--data`` is a zip of pictures, ``train/<class>/*`` and ``test/<class>/*``. The networks are
torchvision's with a stride of 1 in the first convolution, which suits 32 x 32 pictures. The first
``--half`` epochs see pictures of half the size, which takes less than half the time. What an epoch
left is kept under ``out/train``, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

CHECKPOINTS = Path(__file__).parent / "checkpoints"
MEAN, STD = 0.5, 0.25
WARM_UP = 0.15
"""The part of the training in which the rate rises to its highest, from a tenth of it."""
NETWORKS = ("mobilenet_v2", "mobilenet_v3_small")


def network(name: str) -> nn.Module:
    """torchvision's network for 10 classes of 32 x 32 pictures, untrained."""
    from edgekit._torchvision import torchvision

    model: nn.Module = getattr(torchvision().models, name)(num_classes=10)
    model.features[0][0].stride = (1, 1)  # type: ignore[index, union-attr, operator]
    return model


def quieten(model: nn.Module) -> None:
    """Residual branches start at nothing (Goyal et al. 2017, arXiv:1706.02677, 5.1).

    MobileNetV2's first gradients are four times as large otherwise, and AdamW gets a loss of 2.07
    in 160 steps instead of 1.97.
    """
    from torchvision.models.mobilenetv2 import InvertedResidual

    for block in model.modules():
        if isinstance(block, InvertedResidual) and block.use_res_connect:
            nn.init.zeros_(block.conv[-1].weight)  # type: ignore[arg-type]


def checkpoint(name: str) -> Path:
    """Where the trained weights of a network are kept."""
    return CHECKPOINTS / f"cifar10_{name}.safetensors"


def load(name: str) -> nn.Module:
    """The trained network, in eval mode.

    Raises:
        FileNotFoundError: it was not trained yet.
    """
    from safetensors.torch import load_file

    model = network(name)
    model.load_state_dict(load_file(checkpoint(name)))
    return model.eval()


def read_split(data: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 [n, 3, 32, 32] and class indices int64 [n], classes in alphabetical order."""
    pictures, labels = [], []
    with zipfile.ZipFile(data) as archive:
        names = sorted(
            n for n in archive.namelist() if f"{split}/" in n and n.endswith((".jpg", ".png"))
        )
        classes = sorted({n.split("/")[-2] for n in names})
        for name in names:
            picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            pictures.append(np.asarray(picture))
            labels.append(classes.index(name.split("/")[-2]))
    stack = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return stack, torch.tensor(labels)


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as float32 with the mean and deviation that the networks are trained on."""
    return (pictures.float() / 255 - MEAN) / STD


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random shifts of up to 4 pixels and mirror images, one draw per picture."""
    count = len(pictures)
    padded = nn.functional.pad(pictures, (4, 4, 4, 4))
    shift = torch.randint(0, 9, (count, 2), generator=generator)
    rows = shift[:, :1] + torch.arange(32)
    columns = shift[:, 1:] + torch.arange(32)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns[mirrored] = columns[mirrored].flip(1)
    which = torch.arange(count)
    return padded[
        which[:, None, None, None],
        torch.arange(3)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


@torch.no_grad()
def accuracy(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 on [n, 3, 32, 32] uint8 pictures, 0 to 1."""
    model.eval()
    right = 0
    for start in range(0, len(pictures), 500):
        answer = model(normalise(pictures[start : start + 500])).argmax(1)
        right += int((answer == labels[start : start + 500]).sum())
    return right / len(pictures)


def optimizer_of(name: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """SGD, or AdamW: with SGD at a rate of 0.1 MobileNetV2's loss went up, not down."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    decay = {"sgd": 5e-4, "adamw": 0.05}[name]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def train(
    model: nn.Module,
    data: Path,
    epochs: int,
    batch: int,
    rate: float,
    *,
    optimizer: str,
    half: int,
    bf16: bool,
    state: Path,
) -> float:
    """Trains in place with a one-cycle rate; gives the test accuracy at the end.

    The first ``half`` epochs see pictures of 16 x 16 pixels. ``bf16`` pays only on processors that
    multiply in it (AMX); elsewhere it is slower than single precision. ``state`` is written after
    every epoch and, if it is there, gone on from.
    """
    generator = torch.Generator().manual_seed(0)
    pictures, labels = read_split(data, "train")
    test = read_split(data, "test")
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rule = optimizer_of(optimizer, model, rate)
    steps = len(pictures) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        rule, max_lr=rate, total_steps=epochs * steps, pct_start=WARM_UP, div_factor=10
    )
    found, done = 0.0, 0
    parts = {"model": model, "rule": rule, "schedule": schedule}
    if state.exists():
        kept = torch.load(state)
        done, found = kept["done"], kept["found"]
        for name, part in parts.items():
            part.load_state_dict(kept[name])  # type: ignore[attr-defined]
        generator.set_state(kept["generator"])
        torch.set_rng_state(kept["random"])
    for epoch in range(done, epochs):
        model.train()
        start, order = time.time(), torch.randperm(len(pictures), generator=generator)
        total = 0.0
        for i in range(steps):
            chosen = order[i * batch : (i + 1) * batch]
            feed = normalise(augment(pictures[chosen], generator))
            if epoch < half:
                feed = nn.functional.avg_pool2d(feed, 2)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                answer = model(feed.to(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(answer.float(), labels[chosen], label_smoothing=0.1)
            rule.zero_grad(set_to_none=True)
            loss.backward()
            rule.step()
            schedule.step()
            total += float(loss.detach())
        if epoch >= half:
            found = accuracy(model, *test)
        took = time.time() - start
        print(
            f"epoch {epoch + 1}: loss {total / steps:.3f} test {found:.4f} {took:.0f} s", flush=True
        )
    return found


def main() -> None:
    """Trains one network and writes its checkpoint beside a note of how it was made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--half", type=int, default=0, help="epochs at half the size, the first")
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    arguments = parser.parse_args()
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = network(arguments.network)
    quieten(model)
    found = train(
        model,
        arguments.data,
        arguments.epochs,
        arguments.batch,
        arguments.rate,
        optimizer=arguments.optimizer,
        half=arguments.half,
        bf16=arguments.bf16,
        state=Path("out/train") / f"{arguments.network}.pt",
    )
    CHECKPOINTS.mkdir(exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, checkpoint(arguments.network))
    note = {
        "network": f"torchvision {arguments.network}, first stride 1",
        "test_top1": found,
        "epochs": arguments.epochs,
        "epochs_at_half_size": arguments.half,
        "batch": arguments.batch,
        "rate": arguments.rate,
        "optimizer": arguments.optimizer,
        "warm_up": WARM_UP,
        "residuals_start_at_nothing": True,
        "torch": torch.__version__,
    }
    checkpoint(arguments.network).with_suffix(".json").write_text(json.dumps(note, indent=2) + "\n")


if __name__ == "__main__":
    main()
