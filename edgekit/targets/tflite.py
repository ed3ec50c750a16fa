"""TFLite (LiteRT): ``.tflite`` for Android, iOS, Linux and microcontroller-class Linux boards.

The plan is rendered as quantize and dequantize operators around float weights, which the
converter's quantized dialect turns into integer kernels with the plan's own scales; biases become
int32 at ``scale_input * scale_weight``, as the plan has them. Schemes of weights alone go the same
way with float activations (`edgekit.targets._tflite_weights`).
"""

from __future__ import annotations

import collections
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.arithmetic import PER_ROW
from edgekit.names import IOS, WEIGHTS, WIDE
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.signature import Signature
from edgekit.targets import Placement, Stored
from edgekit.targets._common import channel_digest, converter_error, half

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import Edge, QuantPlan
    from edgekit.targets._reasons import Op, Role
    from edgekit.targets._tflite_metadata import Metadata

_KNOWN = {
    "HARD_SWISH": "a scale that does not hold -3 and 3; XNNPACK has no integer kernel for others",
    "EMBEDDING_LOOKUP": "its table is int8, and it gives rows in float",
}
_MOVES = ("TRANSPOSE", "PAD", "PADV2", "CAST", "RESHAPE")
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
_WASTE = ("TRANSPOSE", "PAD", "PADV2", "QUANTIZE", "DEQUANTIZE", "CAST", "RESHAPE")


class Tflite:
    """The LiteRT target."""

    id = "tflite"
    suffix = ".tflite"
    extra = "tflite"
    packages = ("litert-torch", "ai-edge-litert")
    schemes = ("w8a8", "fp32", "w8a8-dyn", "w8", "fp16", "w8a16")
    delegates = ("xnnpack",)
    ios = IOS
    dynamic = PER_ROW

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
        from edgekit.compress.picture import find_prelude
        from edgekit.compress.render import render
        from edgekit.targets import (
            _tflite_curves,
            _tflite_file,
            _tflite_graph,
            _tflite_picture,
            _tflite_transposed,
            _tflite_weights,
            _tflite_wide,
        )
        from edgekit.targets._prelude import cut
        from edgekit.targets._weights import Weights

        _tflite_graph.keep_pads_channels_last()
        weights_alone = plan.scheme in WEIGHTS
        written = _tflite_weights.carrier(program, plan) if weights_alone else plan
        module = _without_mode_switch(render(program, written, "qdq"))
        position, args, prelude = 0, example_args(program), find_prelude(module)
        if prelude is not None:
            position, args = cut(module, prelude, args, behind=prelude.result)
        _tflite_wide.shield(module, plan.activations())
        _tflite_transposed.prepare(module)
        _tflite_graph.one_reader_each(module)
        options: dict[str, Any] = {}
        if plan.edges:
            # Only a flag for the converter's quantized dialect: the graph is annotated already.
            config = get_symmetric_quantization_config(
                is_per_channel=True, is_dynamic=weights_alone
            )
            options["quant_config"] = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(config))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                converted = litert_torch.convert(module, args, **options)
                converted.export(str(out))
            except Exception as error:
                raise converter_error("tflite", error) from error
        model = _tflite_file.read(out)
        if written.edges:
            _tflite_transposed.store_weights(model, Weights(program, written))
        if weights_alone:
            _tflite_weights.place(model, program, plan, written)
        else:
            _tflite_transposed.compute_on_integers(model)
            _tflite_file.integer_tables(model, _tables(program, plan))
        _tflite_curves.hard_swish(model)
        _tflite_file.float_boundary(model)
        if plan.scheme == WIDE:
            _tflite_wide.widen(model)
        if prelude is not None:
            _tflite_picture.take_picture(model, position, prelude)
        _tflite_file.rename_boundary(
            model, [t.name for t in signature.inputs], [t.name for t in signature.outputs]
        )
        _drop_origin(model)
        _tflite_file.write(model, out)
        return [out]

    def describe(self, path: Path, signature: Signature, about: Mapping[str, Any]) -> None:
        """Writes TFLite Metadata; see `edgekit.targets.worker` and `_tflite_metadata`."""
        from edgekit.targets import _tflite_metadata_file

        _tflite_metadata_file.write(path, _metadata(signature, about))

    def metadata(self, path: Path) -> dict[str, Any] | None:
        """What the file's TFLite Metadata tells an app; None where there is none."""
        from edgekit.targets import _tflite_metadata_file

        found = _tflite_metadata_file.read(path)
        return None if found is None else found.to_json()

    def metadata_faults(
        self, path: Path, signature: Signature, about: Mapping[str, Any]
    ) -> list[str]:
        """Where the file's TFLite Metadata is not what `describe` writes, in words."""
        from edgekit.targets import _tflite_metadata, _tflite_metadata_file

        found = _tflite_metadata_file.read(path)
        return _tflite_metadata.differences(found, _metadata(signature, about))

    def inspect(self, path: Path) -> Placement:
        """Operators in the file, by type, and which XNNPACK takes when it is loaded here."""
        from edgekit.targets import _tflite_delegate, _tflite_file, _tflite_picture, _tflite_wide
        from edgekit.targets._reasons import by_dtype, reasons

        model = _tflite_file.read(path)
        ops: collections.Counter[str] = collections.Counter()
        waste: collections.Counter[str] = collections.Counter()
        float_ops = boundary = 0
        first: str | None = None
        sizes: collections.Counter[str] = collections.Counter()
        pixels = _tflite_picture.border(model)
        for graph in model.subgraphs:
            border = {*graph.inputs, *graph.outputs}
            for op in graph.operators:
                name = _tflite_file.op_name(model, op)
                ops[name] += 1
                at_border = bool(border & {*op.inputs, *op.outputs})
                converts = name in ("QUANTIZE", "DEQUANTIZE") and at_border
                if converts or any(op is one for one in pixels):
                    boundary += 1
                    continue
                if name in _WASTE:
                    waste[name] += 1
                results = [_tflite_file.dtype_name(graph.tensors[i]) for i in op.outputs]
                if "float32" in results and not _quantizes_its_input(model, name, op):
                    float_ops += 1
                    if first is None:
                        where = _tflite_file.readable(graph.tensors[op.outputs[0]])
                        first = f"{name} gives float32 ({where})"
            for tensor in graph.tensors:
                value = model.buffers[tensor.buffer].data if tensor.buffer else None
                if value is not None and len(value):
                    sizes[_tflite_file.dtype_name(tensor)] += len(value)
        made, border_names = _graph_of(model)
        left = _tflite_delegate.outside(path)
        kinds = collections.Counter(made[i].kind for i in left or ())
        return Placement(
            ops=dict(sorted(ops.items())),
            float_ops=float_ops,
            boundary_ops=boundary,
            undelegated_ops=None if left is None else len(left),
            undelegated=dict(sorted(kinds.items())),
            first_undelegated=_tflite_delegate.told(model, left[0]) if left else None,
            ops_by_dtype=by_dtype(made),
            layers=by_dtype([op for op in made if op.kind in _LAYERS and op.role != "border"]),
            first_fallback=first,
            bytes_by_dtype=dict(sorted(sizes.items())),
            waste=dict(sorted(waste.items())),
            reasons=reasons(made, border_names, {**_KNOWN, **_tflite_wide.known(model)}),
        )

    def stored(self, path: Path) -> list[Stored]:
        """Every tensor with a scale; constants with the digest of their integers."""
        from edgekit.targets import _tflite_curves, _tflite_file, _tflite_wide

        model = _tflite_file.read(path)
        weights = _tflite_file.weights(model)
        derived = _tflite_curves.derived(model) | _tflite_wide.derived(model)
        found = []
        for index, tensor in enumerate(model.subgraphs[0].tensors):
            params = tensor.quantization
            if _tflite_file.dtype_name(tensor) == "float16":
                values = _tflite_file.constant(model, tensor)
                if values is not None:
                    found.append(half(_tflite_file.readable(tensor), values))
                continue
            if params is None or params.scale is None or len(params.scale) == 0:
                continue
            name = _tflite_file.readable(tensor)
            scale = tuple(float(s) for s in params.scale)
            zero = tuple(int(z) for z in params.zeroPoint)
            value = _tflite_file.constant(model, tensor)
            dtype = _tflite_file.dtype_name(tensor)
            if index in derived or dtype == "uint8":  # pixels, which are no plan's
                continue
            if value is None:
                found.append(Stored(name, "activation", scale, zero))
            elif value.size == 1 and index not in weights:
                continue  # a plain number, which one step of any scale holds exactly
            elif dtype in ("int32", "int64"):
                integers = tuple(int(v) for v in value.reshape(-1))
                found.append(Stored(name, "bias", scale, zero, values=integers))
            else:
                axis = int(params.quantizedDimension)
                found.append(Stored(name, "weight", scale, zero, channel_digest(value, axis)))
        return found


def _metadata(signature: Signature, about: Mapping[str, Any]) -> Metadata:
    from edgekit.targets._tflite_metadata import describe

    preprocess = ImagePreprocess.from_json(about["preprocess"])
    licence = about["licence"] or ""
    return describe(signature, preprocess, name=about["name"], licence=licence)


def _without_mode_switch(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """An exported module forbids ``train`` and ``eval``, which the converter calls."""
    module.train = lambda *_, **__: module  # type: ignore[method-assign]
    module.eval = lambda *_: module  # type: ignore[method-assign]
    module.training = False
    return module


def _graph_of(model: Any) -> tuple[list[Op], set[str]]:
    """The operators of the main subgraph, and its border."""
    from edgekit.targets import _tflite_file, _tflite_picture
    from edgekit.targets._reasons import Op

    graph = model.subgraphs[0]
    pixels = _tflite_picture.border(model)
    roles: dict[str, Role] = {"QUANTIZE": "quantize", "DEQUANTIZE": "dequantize"}
    found = []
    for op in graph.operators:
        kind = _tflite_file.op_name(model, op)
        floats = any(_tflite_file.dtype_name(graph.tensors[i]) == "float32" for i in op.outputs)
        floats = floats and not _quantizes_its_input(model, kind, op)
        role = roles.get(kind, "float" if floats else "integer")
        if kind in _MOVES:
            role = "move"
        if any(op is one for one in pixels):
            role = "border"
        found.append(Op(kind, _names(op.inputs), _names(op.outputs), role))
    return found, {*_names(graph.inputs), *_names(graph.outputs)}


def _quantizes_its_input(model: Any, kind: str, op: Any) -> bool:
    """Whether a layer takes float and int8 weights: LiteRT's "dynamic range" kernels."""
    from edgekit.targets import _tflite_file

    if kind not in ("CONV_2D", "FULLY_CONNECTED"):
        return False
    tensors = [model.subgraphs[0].tensors[i] for i in op.inputs[:2]]
    return [_tflite_file.dtype_name(t) for t in tensors] == ["float32", "int8"]


def _names(indexes: Any) -> tuple[str, ...]:
    return tuple(str(int(i)) for i in indexes if i >= 0)


def _tables(
    program: torch.export.ExportedProgram, plan: QuantPlan
) -> list[tuple[np.ndarray[Any, Any], Edge]]:
    """Embeddings' tables as int8, and how the plan quantizes them."""
    from edgekit.compress._nodes import TABLES, weight_of
    from edgekit.compress.graph import graph_module, tensor_of

    module, constants = graph_module(program), plan.constants()
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in TABLES:
            continue
        edge, value = constants.get(weight_of(node).name), tensor_of(module, weight_of(node))
        if edge is not None and value is not None:
            found.append((edge.quantize(value.numpy()), edge))
    return found


def _drop_origin(model: Any) -> None:
    """Drops source-location metadata: it differs between runs and names the author's classes."""
    kept = [m for m in model.metadata or [] if bytes(m.name) in (b"min_runtime_version",)]
    model.metadata = kept or None


TARGET = Tflite()
