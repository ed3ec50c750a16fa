"""`torchvision:NAME` and `torchvision:NAME@WEIGHTS`: the model zoo of torchvision.

``torchvision:mobilenet_v2`` alone has random weights, the same ones every time; with a
``.safetensors`` file it has those, and with ``@IMAGENET1K_V1`` torchvision's own, from its cache or
the network.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import torch

from edgekit._torchvision import torchvision
from edgekit.errors import StorageError, TrustError, UnsupportedError, UsageError
from edgekit.model import Model
from edgekit.names import unknown
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.sources.weights import apply_weights, load_weights

__all__ = ["load_torchvision"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RANDOM_WEIGHTS = "random weights: accuracy means nothing, speed and size do"

_SIZES = {"inception_v3": (342, 299)}
_SEGMENTATION_SIDE = 520


def load_torchvision(name: str, *, weights: Path | None = None) -> Model:
    """A classification or segmentation model of torchvision.

    Args:
        name: ``NAME`` or ``NAME@WEIGHTS``, such as ``mobilenet_v2@IMAGENET1K_V1``. Named weights
            bring their preprocessing and labels; else both are ImageNet's, without labels.
        weights: a `.safetensors` file. Where it has another number of classes than the model, the
            model is built with that number.

    Raises:
        UsageError: no such model or weights; the nearest name is suggested.
        UnsupportedError: a model of another kind (detection, video, optical flow, quantized).
        BadData: the file does not fit the model.
        StorageError: the named weights can't be fetched or stored.
        TrustError: the file is a pickle, or a download does not have its checksum.
        MissingDependency: torchvision is not installed.
    """
    zoo: ModuleType = torchvision().models
    name, _, tag = name.partition("@")
    segmentation = _kind(zoo, name) == "segmentation"
    entry = _entry(zoo, name, tag) if tag else None
    preprocess = _preprocess(name, entry, segmentation)
    labels = list(entry.meta["categories"]) if entry is not None and not segmentation else None
    notes: list[str] = []
    if weights is not None:
        module, classes = _from_file(zoo, name, entry, segmentation, weights)
        labels = labels if classes is None else None
        notes.append(f"weights from {weights.name}")
    elif entry is not None:
        module = _from_network(zoo, name, entry)
        notes.append(f"weights {entry}")
    else:
        module = _build(zoo, name, segmentation)
        notes.append(RANDOM_WEIGHTS)
    first = next(iter(inspect.signature(module.forward).parameters))
    return Model.from_module(
        module,
        {first: torch.zeros(preprocess.shape)},
        name=name,
        preprocess=preprocess,
        labels=labels,
        notes=notes,
    )


def _kind(zoo: ModuleType, name: str) -> Literal["classification", "segmentation"]:
    if name in zoo.list_models(module=zoo):
        return "classification"
    if name in zoo.list_models(module=zoo.segmentation):
        return "segmentation"
    if name in zoo.list_models():
        raise UnsupportedError(
            f"torchvision's {name!r} is no picture classification or segmentation model",
            hint="wrap it in a function that gives tensors for tensors: file.py:function",
        )
    known = [*zoo.list_models(module=zoo), *zoo.list_models(module=zoo.segmentation)]
    raise UsageError(unknown("torchvision model", name, known))


def _entry(zoo: ModuleType, name: str, tag: str) -> Any:
    """The member of the model's weights enumeration called ``tag``."""
    known = zoo.get_model_weights(name)
    if tag not in known.__members__:
        raise UsageError(unknown(f"weights of {name}", tag, known.__members__))
    return known[tag]


def _build(zoo: ModuleType, name: str, segmentation: bool, **options: Any) -> torch.nn.Module:
    """The model with random weights: the same on every call, whatever the global seed."""
    if segmentation:
        options["weights_backbone"] = None  # or else torchvision fetches one
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        return cast(torch.nn.Module, zoo.get_model(name, weights=None, **options))


def _from_file(
    zoo: ModuleType, name: str, entry: Any, segmentation: bool, path: Path
) -> tuple[torch.nn.Module, int | None]:
    """The model with a file's weights, and its number of classes where that is not the usual."""
    tensors = load_weights(path)
    options: dict[str, Any] = {}
    if entry is not None and name.startswith("vit_"):
        options["image_size"] = entry.meta["min_size"][0]
    module = _build(zoo, name, segmentation, **options)
    classes = _other_classes(module.state_dict(), tensors)
    if classes is not None:
        module = _build(zoo, name, segmentation, num_classes=classes, **options)
    apply_weights(module, tensors, path.name)
    return module, classes


def _other_classes(
    state: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> int | None:
    """The number of classes of a file whose only differences are in the heads' first dimension."""
    counts = set()
    for name, tensor in state.items():
        given = tensors.get(name)
        if given is None or given.shape == tensor.shape:
            continue
        if not given.dim() or given.shape[1:] != tensor.shape[1:]:
            return None
        counts.add(given.shape[0])
    return counts.pop() if len(counts) == 1 else None


def _from_network(zoo: ModuleType, name: str, entry: Any) -> torch.nn.Module:
    """torchvision's own loader, which keeps what it fetched; it may unpickle tensors only."""
    try:
        with _tensors_only(), contextlib.redirect_stdout(sys.stderr):
            return cast(torch.nn.Module, zoo.get_model(name, weights=entry, progress=False))
    except OSError as error:
        raise StorageError(
            f"the weights {entry} cannot be fetched from {entry.url}: {error}",
            hint="offline: convert the file elsewhere to .safetensors and give it with --weights, "
            f"or put it into {torch.hub.get_dir()}/checkpoints",
        ) from error
    except pickle.UnpicklingError as error:
        raise TrustError(
            f"the file of the weights {entry} in {torch.hub.get_dir()}/checkpoints is no set of "
            "tensors: opening it would run code",
            hint="delete it, and it is fetched anew",
        ) from error
    except RuntimeError as error:
        if "hash" not in str(error):
            raise
        raise TrustError(f"the weights {entry} do not have their checksum: {error}") from error


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """torch.load refuses everything but tensors; torchvision leaves no other way to say so."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def _preprocess(name: str, entry: Any, segmentation: bool) -> ImagePreprocess:
    """What the weights' own transform does; ImageNet's for weights without a name."""
    if entry is None:
        resize, side = _SIZES.get(name, (256, 224))
        mean, std, interpolation, antialias = IMAGENET_MEAN, IMAGENET_STD, "bilinear", True
    else:
        preset = entry.transforms()
        side = _SEGMENTATION_SIDE if segmentation else preset.crop_size[0]
        resize = preset.resize_size[0]
        mean, std = tuple(preset.mean), tuple(preset.std)
        interpolation, antialias = preset.interpolation.value, bool(preset.antialias)
    if segmentation:
        side = _SEGMENTATION_SIDE  # the presets keep the picture's shape; a device's input is fixed
    return ImagePreprocess(
        height=side,
        width=side,
        resize=cast(Literal["bilinear", "bicubic", "nearest"], interpolation),
        antialias=antialias,
        resize_mode="stretch" if segmentation else "shorter-side",
        resize_size=None if segmentation else resize,
        mean=mean,
        std=std,
    )
