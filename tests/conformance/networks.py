"""Three networks as teams ship them: a classifier, a detector and a segmenter, torchvision's own.

EfficientNet-B0 (SiLU in squeeze-and-excite), SSDLite with a MobileNetV3-Large (two outputs, twelve
branches that are joined, boxes decoded in the graph) and LR-ASPP (a dictionary, dilated layers,
maps that are enlarged). They are trained for the reason that `models.py` gives: with random weights
and settled statistics EfficientNet-B0's own int8 evaluation moves by 10 dB under rounding noise of
one part in a million, so that nothing can be proven of it. Inputs are small, for the suite's sake.
All three take about two minutes on one core; the weights are kept in pytest's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit._torchvision import torchvision

Arrays = dict[str, np.ndarray[Any, Any]]
SHAPES = 3
"""Kinds of shapes in a picture; class 0 is the background."""
SIDE = 96
SAMPLES = 880
_NEAR = 0.45
_REACH = 4.135
"""The largest logarithm of a box's growth, torchvision's own (that of 1000 / 16)."""


class Detector(nn.Module):
    """SSDLite's backbone and head, and its boxes decoded by tensors' operators.

    Suppression of overlapping boxes is left to the app: how many it leaves depends on the picture.
    """

    centre: torch.Tensor
    size: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        vision = torchvision()
        net = vision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=1 + SHAPES
        )
        self.backbone, self.head = net.backbone, net.head
        picture = torch.zeros(1, 3, SIDE, SIDE)
        with torch.no_grad():
            self.eval()
            maps = list(self.backbone(picture).values())
            images = vision.models.detection.image_list.ImageList(picture, [(SIDE, SIDE)])
            low, high = (net.anchor_generator(images, maps)[0] / SIDE).split(2, -1)
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("size", high - low)

    def raw(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits [n, anchors, classes] and box offsets [n, anchors, 4]."""
        made = self.head(list(self.backbone(x).values()))
        return made["cls_logits"], made["bbox_regression"]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits, offsets = self.raw(x)
        centre = offsets[..., :2] * 0.1 * self.size + self.centre
        size = (offsets[..., 2:] * 0.2).clamp(max=_REACH).exp() * self.size
        boxes = torch.cat([centre - size / 2, centre + size / 2], -1)
        return {"boxes": boxes, "scores": logits.softmax(-1)}

    def loss(self, x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Of anchors near the shape (class, then box; the rest is background).

        Args:
            x: pictures [n, 3, side, side].
            truth: [n, 5], class and box (left, top, right, bottom in 0..1).
        """
        logits, offsets = self.raw(x)
        kinds, boxes = truth[:, 0].long(), truth[:, 1:]
        low, high = self.centre - self.size / 2, self.centre + self.size / 2
        shared = torch.minimum(high, boxes[:, None, 2:]) - torch.maximum(low, boxes[:, None, :2])
        shared = shared.clamp(min=0).prod(-1)
        whole = self.size.prod(-1) + (boxes[:, 2:] - boxes[:, :2]).prod(-1)[:, None]
        overlap = shared / (whole - shared)
        near = overlap >= torch.minimum(overlap.amax(1, keepdim=True), torch.tensor(_NEAR))
        wanted = torch.where(near, kinds[:, None], 0)
        share = torch.tensor([0.1] + [1.0] * SHAPES)
        found = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), share)
        middle, extent = (boxes[:, 2:] + boxes[:, :2]) / 2, boxes[:, 2:] - boxes[:, :2]
        moved = (middle[:, None] - self.centre) / self.size / 0.1
        grown = (extent[:, None] / self.size).log() / 0.2
        aim = torch.cat([moved, grown], -1)
        return found + nn.functional.smooth_l1_loss(offsets[near], aim[near])


class Segmenter(nn.Module):
    """LR-ASPP as torchvision has it, which gives a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision().models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=1 + SHAPES
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = self.net(x)
        return made

    def loss(self, x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Of every pixel; those inside of the shape's box count eight times as much."""
        kinds, boxes = truth[:, 0].long(), truth[:, 1:]
        inside = _inside(boxes) & _drawn(x)
        wanted = torch.where(inside, kinds[:, None, None], 0)
        share = torch.tensor([0.125] + [1.0] * SHAPES)
        return nn.functional.cross_entropy(self(x)["out"], wanted, share)


def _inside(boxes: torch.Tensor) -> torch.Tensor:
    """Pixels [n, side, side] within boxes [n, 4]."""
    grid = (torch.arange(SIDE) + 0.5) / SIDE
    left, top, right, bottom = (edge[:, None] for edge in boxes.unbind(-1))
    across, down = (grid >= left) & (grid < right), (grid >= top) & (grid < bottom)
    return down[:, :, None] & across[:, None, :]


def _drawn(x: torch.Tensor) -> torch.Tensor:
    """Pixels [n, side, side] that are a shape's: those far from the dim background."""
    return x.abs().amax(1) > 1


def shapes() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Pictures [n, 3, side, side] of a disc, a ring or a cross on noise; class and box [n, 5].

    Each has a colour of its own too, so that a short training will do.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    pictures = rng.normal(0, 0.25, (SAMPLES, 3, SIDE, SIDE)).astype(np.float32)
    truth = np.zeros((SAMPLES, 5), np.float32)
    for picture, row in zip(pictures, truth, strict=True):
        kind, radius = rng.integers(SHAPES), rng.uniform(12, 32)
        x, y = rng.uniform(radius, SIDE - radius, 2)
        across, down = np.abs(columns - x), np.abs(rows - y)
        far = np.hypot(across, down)
        drawn = [
            far < radius,
            (far < radius) & (far > 0.55 * radius),
            (np.minimum(across, down) < 0.3 * radius) & (np.maximum(across, down) < radius),
        ][kind]
        colour = rng.uniform(1.5, 2.5, 3) * np.where(np.arange(3) == kind, -1, 1)
        picture[:, drawn] += colour[:, None]
        row[:] = 1 + kind, *np.array([x - radius, y - radius, x + radius, y + radius]) / SIDE
    return {"x": torch.from_numpy(pictures)}, torch.from_numpy(truth)


def detected(outputs: Arrays, truth: np.ndarray[Any, Any]) -> float:
    """Share of pictures whose surest box has the right class and lies half on the shape."""
    scores, boxes = outputs["scores"][:, 0, :, 1:], outputs["boxes"][:, 0]
    surest = scores.max(-1).argmax(-1)
    every = np.arange(len(truth))
    kinds, box = 1 + scores[every, surest].argmax(-1), boxes[every, surest]
    sides = np.minimum(box[:, 2:], truth[:, 3:]) - np.maximum(box[:, :2], truth[:, 1:3])
    shared = sides.clip(0).prod(-1)
    whole = (box[:, 2:] - box[:, :2]).prod(-1) + (truth[:, 3:] - truth[:, 1:3]).prod(-1)
    return float(((kinds == truth[:, 0]) & (shared >= 0.5 * (whole - shared))).mean())


def segmented(outputs: Arrays, truth: np.ndarray[Any, Any]) -> float:
    """Share of pictures in which most pixels that are not background are of the right class."""
    found = outputs["out"][:, 0].argmax(1).reshape(len(truth), -1)
    counts = np.stack([(found == kind).sum(1) for kind in range(1, 1 + SHAPES)], 1)
    return float((1 + counts.argmax(1) == truth[:, 0]).mean())
