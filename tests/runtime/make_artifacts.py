"""Converts two small models for every runtime: ``python make_artifacts.py FOLDER``.

Run in a process of its own: converters warn, print and set globals. ``net`` is a small convolution
net, ``txt`` an embedding with two int64 inputs and two outputs, ``many`` has twelve inputs;
``net-int8.tflite`` is ``net`` with int8 inside and at its border.
"""

from __future__ import annotations

import sys
from pathlib import Path

import litert_torch
import numpy as np
import openvino
import torch
from ai_edge_quantizer import quantizer, recipe
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch import nn


class Net(nn.Module):
    """Picture [1, 3, 16, 16] to scores [1, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.conv(image)).mean((2, 3)))


class Txt(nn.Module):
    """Ids and mask [1, 6], int64, to scores [1, 3] and the pooled embedding [1, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 4)
        self.linear = nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = mask.unsqueeze(-1).to(torch.float32)
        pooled = (self.embedding(ids) * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return self.linear(pooled), pooled


class Many(nn.Module):
    """Twelve inputs [1, 2], each counted with another factor, so that no two can be swapped."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return sum(x * 10.0**i for i, x in enumerate(inputs, start=-6))


def main(folder: Path) -> None:
    """Writes ``NAME.{tflite,xml,bin,onnx,pte,ptl}`` and ``NAME.npz`` with ``in.i``, ``out.i``."""
    torch.manual_seed(0)
    models = {
        "net": (Net(), (torch.randn(1, 3, 16, 16),), ["image"], ["scores"]),
        "txt": (
            Txt(),
            (torch.randint(0, 50, (1, 6)), torch.ones(1, 6, dtype=torch.int64)),
            ["ids", "mask"],
            ["scores", "pooled"],
        ),
        "many": (Many(), tuple(torch.randn(1, 2) for _ in range(12)), None, None),
    }
    for name, (model, inputs, input_names, output_names) in models.items():
        model.eval()
        program = torch.export.export(model, inputs)
        openvino.save_model(openvino.convert_model(program), folder / f"{name}.xml", False)
        torch.onnx.export(
            model,
            inputs,
            folder / f"{name}.onnx",
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=input_names,
            output_names=output_names,
        )
        traced = torch.jit.trace(model, inputs)
        traced._save_for_lite_interpreter(str(folder / f"{name}.ptl"))
        litert_torch.convert(model, inputs).export(str(folder / f"{name}.tflite"))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        (folder / f"{name}.pte").write_bytes(lowered.to_executorch().buffer)
        outputs = model(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        arrays = {f"in.{i}": x.numpy() for i, x in enumerate(inputs)}
        arrays |= {f"out.{i}": y.detach().numpy() for i, y in enumerate(outputs)}
        np.savez(folder / f"{name}.npz", **arrays)
    quantize(folder / "net.tflite", folder / "net-int8.tflite")


def quantize(source: Path, target: Path) -> None:
    """Makes ``net`` fully integer: int8 at its border too."""
    rng = np.random.default_rng(0)
    samples = [{"args_0": rng.standard_normal((1, 3, 16, 16)).astype("f")} for _ in range(16)]
    work = quantizer.Quantizer(str(source))
    work.load_quantization_recipe(recipe.static_wi8_ai8())
    result = work.quantize(work.calibrate({"serving_default": samples}))
    result.export_model(str(target), overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
