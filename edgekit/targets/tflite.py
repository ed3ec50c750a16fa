"""TFLite (LiteRT): ``.tflite`` for Android, iOS, Linux and microcontroller-class Linux boards.

The plan is rendered as quantize and dequantize operators around float weights, which the
converter's quantized dialect turns into integer kernels with the plan's own scales; biases become
int32 at ``scale_input * scale_weight``, as the plan has them.
"""

from __future__ import annotations

import collections
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.signature import Signature
from edgekit.targets import Placement, Stored
from edgekit.targets._common import channel_digest, converter_error

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan

_WASTE = ("TRANSPOSE", "PAD", "PADV2", "QUANTIZE", "DEQUANTIZE", "CAST", "RESHAPE")


class Tflite:
    """The LiteRT target."""

    id = "tflite"
    suffix = ".tflite"
    extra = "tflite"
    packages = ("litert-torch", "ai-edge-litert")
    schemes = ("w8a8", "fp32")
    delegates = ("xnnpack",)

    def convert(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        signature: Signature,
        out: Path,
    ) -> list[Path]:
        """See `edgekit.targets.Target.convert`."""
        import litert_torch
        from litert_torch.quantize.pt2e_quantizer import (
            PT2EQuantizer,
            get_symmetric_quantization_config,
        )
        from litert_torch.quantize.quant_config import QuantConfig

        from edgekit.compress.graph import example_args
        from edgekit.compress.render import render
        from edgekit.targets import _tflite_file, _tflite_graph

        _tflite_graph.keep_pads_channels_last()
        module = _without_mode_switch(render(program, plan, "qdq"))
        options: dict[str, Any] = {}
        if plan.edges:
            # Only a flag for the converter's quantized dialect: the graph is annotated already.
            config = get_symmetric_quantization_config(is_per_channel=True)
            options["quant_config"] = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(config))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                converted = litert_torch.convert(module, example_args(program), **options)
                converted.export(str(out))
            except Exception as error:
                raise converter_error("tflite", error) from error
        model = _tflite_file.read(out)
        _tflite_file.hard_swish_in_float(model)
        _tflite_file.float_boundary(model)
        _tflite_file.rename_boundary(
            model, [t.name for t in signature.inputs], [t.name for t in signature.outputs]
        )
        _drop_origin(model)
        _tflite_file.write(model, out)
        return [out]

    def inspect(self, path: Path) -> Placement:
        """Operators in the file, by type; the runtime's own delegate decides at load time."""
        from edgekit.targets import _tflite_file

        model = _tflite_file.read(path)
        ops: collections.Counter[str] = collections.Counter()
        waste: collections.Counter[str] = collections.Counter()
        float_ops = boundary = 0
        first: str | None = None
        sizes: collections.Counter[str] = collections.Counter()
        for graph in model.subgraphs:
            border = {*graph.inputs, *graph.outputs}
            for op in graph.operators:
                name = _tflite_file.op_name(model, op)
                ops[name] += 1
                at_border = bool(border & {*op.inputs, *op.outputs})
                if name in ("QUANTIZE", "DEQUANTIZE") and at_border:
                    boundary += 1
                    continue
                if name in _WASTE:
                    waste[name] += 1
                results = [_tflite_file.dtype_name(graph.tensors[i]) for i in op.outputs]
                if "float32" in results:
                    float_ops += 1
                    if first is None:
                        first = f"{name} gives float32 ({_readable(graph.tensors[op.outputs[0]])})"
            for tensor in graph.tensors:
                value = model.buffers[tensor.buffer].data if tensor.buffer else None
                if value is not None and len(value):
                    sizes[_tflite_file.dtype_name(tensor)] += len(value)
        return Placement(
            ops=dict(sorted(ops.items())),
            float_ops=float_ops,
            boundary_ops=boundary,
            first_fallback=first,
            bytes_by_dtype=dict(sorted(sizes.items())),
            waste=dict(sorted(waste.items())),
        )

    def stored(self, path: Path) -> list[Stored]:
        """Every tensor with a scale; constants with the digest of their integers."""
        from edgekit.targets import _tflite_file

        model = _tflite_file.read(path)
        weights = _tflite_file.weights(model)
        found = []
        for index, tensor in enumerate(model.subgraphs[0].tensors):
            params = tensor.quantization
            if params is None or params.scale is None or len(params.scale) == 0:
                continue
            name = _readable(tensor)
            scale = tuple(float(s) for s in params.scale)
            zero = tuple(int(z) for z in params.zeroPoint)
            value = _tflite_file.constant(model, tensor)
            dtype = _tflite_file.dtype_name(tensor)
            if value is None:
                found.append(Stored(name, "activation", scale, zero))
            elif value.size == 1 and index not in weights:
                continue  # a plain number, which one step of any scale holds exactly
            elif dtype == "int32":
                integers = tuple(int(v) for v in value.reshape(-1))
                found.append(Stored(name, "bias", scale, zero, values=integers))
            else:
                axis = int(params.quantizedDimension)
                found.append(Stored(name, "weight", scale, zero, channel_digest(value, axis)))
        return found


def _without_mode_switch(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """An exported module forbids ``train`` and ``eval``, which the converter calls."""
    module.train = lambda *_, **__: module  # type: ignore[method-assign]
    module.eval = lambda *_: module  # type: ignore[method-assign]
    module.training = False
    return module


def _drop_origin(model: Any) -> None:
    """Drops source-location metadata: it differs between runs and names the author's classes."""
    kept = [m for m in model.metadata or [] if bytes(m.name) in (b"min_runtime_version",)]
    model.metadata = kept or None


def _readable(tensor: Any) -> str:
    name = bytes(tensor.name).decode(errors="replace")
    return name.rsplit("/", 1)[-1].split(";")[0] or name


TARGET = Tflite()
