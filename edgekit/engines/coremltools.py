"""Core ML Tools' optimizer, Apple's quantizer of PyTorch models: `LinearQuantizer`, calibrated.

coremltools 9.0 has three ways to int8 weights and activations. `LinearQuantizer` is the one that
its guide gives for calibration data and the one that runs here. `CoreMLQuantizer`, which takes
exported programs, imports `torch.ao.quantization.quantizer`, which torch no longer has.
`linear_quantize_activations` takes Core ML files and needs macOS, whose runtime it has compute the
activations.

Its result is a torch module of float layers between quantize and dequantize operators, meant for
conversion to Core ML. Here it goes through edgekit's own converters, and litert-torch's for LiteRT,
so that it runs where the others run. What scales it has is Apple's doing; where they stand is too:
a convolution and the activation behind it are one to Core ML, with nothing quantized between them.
A runtime without such a kernel computes both in float, so an artifact tells Apple's accuracy, and
not the speed of Core ML.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.engines._common import check_quantized, samples, store_integers, write_litert
from edgekit.errors import UnsupportedError
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch
    from torch import fx

    from edgekit.engines import Feeds


class Coremltools:
    """The engine of `coremltools.optimize.torch.quantization`."""

    id = "coremltools"
    extra = "coremltools"
    packages = ("coremltools", "torchao")
    targets = ("tflite", "openvino", "onnxruntime", "coreml")
    defaults: Mapping[str, Any] = {
        "quantization_scheme": "symmetric",
        "milestones": [0, 1000, 1000, 0],
        "weight_per_channel": True,
        "weight_observer": "moving_average_min_max",
        "activation_observer": "moving_average_min_max",
    }

    def quantize(
        self,
        program: torch.export.ExportedProgram,
        feeds: Feeds,
        signature: Signature,
        target: str,
        out: Path,
        settings: Mapping[str, Any],
    ) -> list[Path]:
        """See `edgekit.engines.Engine.quantize`; settings as `ModuleLinearQuantizerConfig` has
        them.

        Its activations are uint8. LiteRT's kernels take int8: the same steps, counted from -128.
        """
        import torch

        from edgekit import targets
        from edgekit.compress.graph import example_args, graph_module, program_digest
        from edgekit.compress.plan import QuantPlan

        rows = samples(feeds)
        made = targets.find(target)
        targets.require_installed(made)
        args = example_args(program)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            module = _quantized(program, rows, settings)
            _decompose(module, signed=target == "tflite")
            flat = graph_module(torch.export.export(module, args, strict=False))
            check_quantized(self.id, flat)
            if target == "tflite":
                return _write_tflite(flat, args, signature, out)
            if target in ("onnxruntime", "coreml"):
                store_integers(flat)
            result = torch.export.export(flat, args, strict=False)
        # It holds its quantization already: for the converter it is a program like any other.
        return made.convert(result, QuantPlan("fp32", program_digest(result)), signature, out)


def _quantized(
    program: torch.export.ExportedProgram,
    rows: list[tuple[torch.Tensor, ...]],
    settings: Mapping[str, Any],
) -> fx.GraphModule:
    """As Apple's guide has it: one step, which starts the observers, then the samples."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    from coremltools.optimize.torch.quantization import (
        LinearQuantizer,
        LinearQuantizerConfig,
        ModuleLinearQuantizerConfig,
    )

    from edgekit.compress.graph import example_args
    from edgekit.engines._layers import layered

    config = LinearQuantizerConfig(global_config=ModuleLinearQuantizerConfig(**settings))
    quantizer = LinearQuantizer(layered(program), config)
    prepared = quantizer.prepare(example_inputs=example_args(program))
    quantizer.step()
    for feed in rows:
        prepared(*feed)
    prepared.eval()
    made: fx.GraphModule = quantizer.finalize()
    return made


def _decompose(module: fx.GraphModule, *, signed: bool) -> None:
    """Writes quantized tensors, which nothing exports, as integers; in place.

    The scales, zero points and rounding stay. ``signed`` counts uint8 from -128, as int8.
    """
    import torch
    from torch.ao.nn.quantized.reference.modules.utils import ReferenceQuantizedModule

    from edgekit.compress.graph import tensor_of

    ops = torch.ops.quantized_decomposed
    for layer in module.modules():
        if isinstance(layer, ReferenceQuantizedModule):
            layer.is_decomposed = True
    graph, shift = module.graph, 128 if signed else 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not torch.quantize_per_tensor:
            continue
        value, scale, zero, dtype = node.args
        scales, zeros = tensor_of(module, scale), tensor_of(module, zero)
        readers = list(node.users)
        odd = dtype is not torch.quint8 or any(r.target != "dequantize" for r in readers)
        if odd or scales is None or zeros is None:
            raise UnsupportedError(f"coremltools quantized {value} in an unknown way: {dtype}")
        numbers = (
            float(scales),
            int(zeros) - shift,
            -shift,
            255 - shift,
            torch.int8 if signed else torch.uint8,
        )
        node.target, node.args = ops.quantize_per_tensor.default, (value, *numbers)
        for reader in readers:
            reader.op, reader.target = "call_function", ops.dequantize_per_tensor.default
            reader.args = (node, *numbers)
    graph.eliminate_dead_code()
    module.recompile()


def _write_tflite(
    module: fx.GraphModule, args: tuple[torch.Tensor, ...], signature: Signature, out: Path
) -> list[Path]:
    from litert_torch.quantize.pt2e_quantizer import (
        PT2EQuantizer,
        get_symmetric_quantization_config,
    )

    # Only a flag for the converter's quantized dialect: the graph is annotated already.
    flag = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    return write_litert(module, args, flag, signature, out)


ENGINE = Coremltools()
