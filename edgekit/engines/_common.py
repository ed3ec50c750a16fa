"""What the engine files share."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import BadData, EdgekitError, UnsupportedError
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch
    from torch import fx


def float_file(
    program: torch.export.ExportedProgram, signature: Signature, target: str, folder: Path
) -> Path:
    """The float artifact, made by edgekit's own target: what tools that take files start from."""
    from edgekit import targets
    from edgekit.compress.graph import program_digest
    from edgekit.compress.plan import QuantPlan

    made = targets.find(target)
    targets.require_installed(made)
    plan = QuantPlan("fp32", program_digest(program))
    return made.convert(program, plan, signature, folder / f"float{made.suffix}")[0]


def samples(
    feeds: Iterable[tuple[torch.Tensor, ...]],
) -> list[tuple[torch.Tensor, ...]]:
    """The calibration samples, all at once: vendors go over them several times.

    Raises:
        BadData: there are none.
    """
    found = list(feeds)
    if not found:
        raise BadData("calibration got no samples", hint="give --calib at least one sample")
    return found


def named(
    feeds: Iterable[tuple[torch.Tensor, ...]], signature: Signature
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """The calibration samples as arrays by input name.

    Raises:
        BadData: there are none.
    """
    names = [spec.name for spec in signature.inputs]
    return [
        {name: np.ascontiguousarray(t.numpy()) for name, t in zip(names, feed, strict=True)}
        for feed in samples(feeds)
    ]


def calls(module: fx.GraphModule) -> set[str]:
    """Names of the operators that a graph calls, such as ``softmax`` for ``aten.softmax.int``."""
    return {
        str(node.target).split(".")[1]
        for node in module.graph.nodes
        if node.op == "call_function" and str(node.target).startswith("aten.")
    }


def labelled(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program as a module whose nodes say which layer they come from.

    torch's and the vendors' annotators look for layers by ``source_fn_stack``, which a graph that
    was rewritten or exported again has lost. Without it they find nothing, and quantize nothing,
    without a word.
    """
    from edgekit.compress.graph import graph_module

    module = graph_module(program)
    sources = _sources()
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in sources:
            node.meta["source_fn_stack"] = [(node.name, sources[node.target])]
    return module


def _sources() -> dict[Any, Any]:
    """The layer or function that an operator stands for."""
    from torch import cat, matmul, nn, ops

    aten = ops.aten
    return {
        aten.conv1d.default: nn.Conv1d,
        aten.conv2d.default: nn.Conv2d,
        aten.linear.default: nn.Linear,
        aten.relu.default: nn.ReLU,
        aten.hardtanh.default: nn.Hardtanh,
        aten.hardswish.default: nn.Hardswish,
        aten.silu.default: nn.SiLU,
        aten.gelu.default: nn.GELU,
        aten.tanh.default: nn.Tanh,
        aten.leaky_relu.default: nn.LeakyReLU,
        aten.max_pool2d.default: nn.MaxPool2d,
        aten.avg_pool2d.default: nn.AvgPool2d,
        aten.adaptive_avg_pool2d.default: nn.AdaptiveAvgPool2d,
        aten.add.Tensor: operator.add,
        aten.mul.Tensor: operator.mul,
        aten.cat.default: cat,
        aten.matmul.default: matmul,
    }


def check_quantized(engine: str, module: fx.GraphModule) -> None:
    """Refuses a graph that its quantizer left in float.

    Raises:
        UnsupportedError: no layer of it was quantized.
    """
    if not any("quantize_per" in str(node.target) for node in module.graph.nodes):
        raise UnsupportedError(f"engine {engine!r} found nothing to quantize in this model")


def store_integers(module: fx.GraphModule) -> None:
    """Quantizes the weights now: OpenVINO does when it saves; ONNX files keep what they get."""
    import torch
    from torchao.quantization.pt2e.constant_fold import constant_fold

    quantize = torch.ops.quantized_decomposed.quantize_per_channel.default
    constant_fold(module, lambda node: node.target == quantize)


def write_litert(
    module: Any,
    args: tuple[torch.Tensor, ...],
    quantizer: Any,
    signature: Signature,
    out: Path,
) -> list[Path]:
    """Converts a graph of quantize and dequantize operators, int8 in all, to a ``.tflite`` file.

    Args:
        module: the graph; an `fx.GraphModule` loses its ``train`` and ``eval``.
        args: example inputs.
        quantizer: litert-torch's `PT2EQuantizer`: how the converter is told that the graph is
            quantized.
        signature: names of the file's inputs and outputs.
        out: the file.
    """
    import litert_torch
    from litert_torch.quantize.quant_config import QuantConfig

    from edgekit.targets import _tflite_file

    # An exported module forbids these two, and the converter calls them.
    module.train = lambda *_, **__: module
    module.eval = lambda *_: module
    module.training = False
    converted = litert_torch.convert(
        module, args, quant_config=QuantConfig(pt2e_quantizer=quantizer)
    )
    converted.export(str(out))
    model = _tflite_file.read(out)
    _tflite_file.rename_boundary(
        model, [t.name for t in signature.inputs], [t.name for t in signature.outputs]
    )
    _tflite_file.write(model, out)
    return [out]


def engine_error(engine: str, target: str, error: Exception) -> EdgekitError:
    """A vendor tool's failure as a clear error that names engine and target."""
    if isinstance(error, EdgekitError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return UnsupportedError(
        f"engine {engine!r} gave up on this model for {target}: "
        f"{type(error).__name__}: {lines[0][:400]}",
        hint="leave --engine out, or leave this target out with --target",
    )
