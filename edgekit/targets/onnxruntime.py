"""ONNX Runtime (``.onnx``) for Android, iOS, Linux, Windows and servers.

The plan is rendered as quantize and dequantize operators with integer weights (QDQ form), exported
through `torch.onnx`, and brought into the form that the runtime fuses: activations as uint8 with
the zero point moved by 128, which stands for the very same values, since its x86 kernels are the
u8 x s8 ones, and biases as int32. The variant for x86 without VNNI stores the weights of layers at
risk as uint8 with zero point 128, again the very same values, for the kernels that widen first.

There is no ``w8a16``: on a CPU the runtime (1.32) takes operators of 16 bits for conversions and
computes between them in float, which took 4.5 times as long as float alone for MobileNetV3-Small.
"""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.arithmetic import PER_TENSOR
from edgekit.names import FLOAT_IO, PICTURE_IO, WEIGHTS
from edgekit.runtime.session_onnxruntime import without_propagation
from edgekit.scratch import scratch
from edgekit.signature import Signature
from edgekit.targets import Placement, Stored
from edgekit.targets._common import channel_digest, converter_error

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan
    from edgekit.compress.unrounded import Unrounded
    from edgekit.targets._reasons import Role

OPSET = 21
_U8_OFFSET = 128
_SWISH = "a hard-swish whose scale does not hold -3 and 3, which has no integer kernel"
_KNOWN = {
    "HardSigmoid": _SWISH,
    "HardSwish": _SWISH,
    "Gather": "an embedding's table is int8, and its rows are read in float",
}
_LAYOUT = ("Transpose", "Pad", "ReorderInput", "ReorderOutput", "Reshape", "Flatten", "Squeeze")
_FLOAT_FREE = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "NhwcMaxPool")
_PRODUCTS = ("QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLinear")
_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvTranspose")
_MATRICES = {
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul"), 1),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), 1),
    **dict.fromkeys(("QGemm", "QLinearMatMul"), 3),
}
"""Matrix products, and the position of the weight where they are a layer."""
_PROVIDER = "CPUExecutionProvider"
_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_ANY_TYPE = (
    *_FLOAT_FREE,
    *("Slice", "Split", "Pad", "Clip", "Concat", "Gather", "Resize"),
    *("DepthToSpace", "SpaceToDepth"),
)
"""Operators that compute in the type they are given."""


class Onnxruntime:
    """The ONNX Runtime target."""

    id = "onnxruntime"
    suffix = ".onnx"
    extra = "onnxruntime"
    packages = ("onnx", "onnxscript", "onnxruntime")
    schemes = ("w8a8", "fp32", "w8a8-dyn", "w8", "w4", "fp16")
    delegates = ("cpu",)
    ios = (FLOAT_IO, PICTURE_IO)
    dynamic = PER_TENSOR

    def convert(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        signature: Signature,
        out: Path,
    ) -> list[Path]:
        """See `edgekit.targets.Target.convert`."""
        import onnx
        import torch

        from edgekit.compress.dynamic import as_computed
        from edgekit.compress.graph import graph_module
        from edgekit.compress.render import Form, render_program
        from edgekit.targets import _onnx_curves, _onnx_file, _onnx_tables, _onnx_weights

        # Integer matrix products give float where float is read (MatMulIntegerToFloat).
        plan = self._unrounded().without(program, plan)
        weights_alone = plan.scheme in WEIGHTS
        form: Form = "fake" if weights_alone else "qdq-folded"
        still = dataclasses.replace(plan, dynamic=())
        # Its integer convolutions take channels last, its float ones take them first.
        rows = bool(plan.activations())
        rendered = render_program(program, still, form, bare_pads=True, pixel_rows=rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                exported = torch.onnx.export(
                    rendered,
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=[t.name for t in signature.inputs],
                    output_names=[t.name for t in signature.outputs],
                    verbose=False,
                )
            except Exception as error:
                raise converter_error("onnxruntime", error) from error
        assert exported is not None
        model = exported.model_proto
        _onnx_file.strip(model)
        if weights_alone:
            _onnx_weights.place(model, program, as_computed(graph_module(program), plan, self))
        elif plan.edges:
            _onnx_tables.gather_integers(model)
            _onnx_file.row_products(model)
            _onnx_file.unsigned_activations(model)
            _onnx_file.integer_biases(model)
            _onnx_file.global_pooling(model)
            _onnx_file.fold_pads(model)
            _onnx_file.integer_clamps(model)
            _onnx_curves.integer_hard_swish(model)
            _onnx_file.own_zero_points(model)
            if plan.change(self.id).get("weight_dtype") == "uint8":
                _onnx_file.unsigned_weights(model)
        _onnx_file.prune(model)
        out.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(out))
        return [out]

    def inspect(self, path: Path) -> Placement:
        """Operators of the graph that the runtime made of the file, at its highest level."""
        import onnx
        import onnxruntime

        def optimize(into: Path, settings: Mapping[str, str]) -> Any:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.optimized_model_filepath = str(into)
            for name, value in {_ASSIGNMENT: "1", **settings}.items():
                options.add_session_config_entry(name, value)
            return onnxruntime.InferenceSession(str(path), options, providers=[_PROVIDER])

        with scratch("onnxruntime") as folder:
            optimized = folder / "optimized.onnx"
            try:
                session = optimize(optimized, {})
            except Exception as error:  # as the session takes it
                session = optimize(optimized, without_propagation(error))
            graph = onnx.load(str(optimized)).graph
        parts = session.get_provider_graph_assignment_info()
        others = [n.op_type for p in parts if p.ep_name != _PROVIDER for n in p.get_nodes()]
        return dataclasses.replace(
            _placement(graph, onnx.load(str(path)).graph),
            undelegated_ops=len(others) if parts else None,
            undelegated=dict(sorted(collections.Counter(others).items())),
            first_undelegated=f"{others[0]} runs in another provider" if others else None,
        )

    def unrounded(self, path: Path) -> Unrounded:
        """Linear layers give float where float is read."""
        return self._unrounded()

    def _unrounded(self) -> Unrounded:
        from edgekit.compress.unrounded import Unrounded

        return Unrounded(results=True)

    def stored(self, path: Path) -> list[Stored]:
        """Scales and zero points of every quantize and dequantize operator, and of embeddings.

        A tensor that is written with other ones than it is read with is listed with both.
        """
        import onnx
        from onnx import numpy_helper

        from edgekit.targets import _onnx_weights
        from edgekit.targets._onnx_curves import is_gate
        from edgekit.targets._onnx_tables import stored_tables

        graph = onnx.load(str(path)).graph
        values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        maker = {o: n for n in graph.node for o in n.output}
        ours = _onnx_weights.stored(values)
        found: dict[Stored, None] = dict.fromkeys(ours or stored_tables(graph, values))
        for node in graph.node:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            if node.op_type == "DequantizeLinear" and is_gate(node, maker, graph, values):
                continue
            scale = np.asarray(values[node.input[1]], np.float32).reshape(-1)
            zero = np.asarray(values[node.input[2]]).reshape(-1) if len(node.input) > 2 else 0
            zero = np.broadcast_to(zero, scale.shape)
            constant = values.get(node.input[0])
            kind = "activation"
            digest = ""
            integers: tuple[int, ...] = ()
            unsigned = len(node.input) > 2 and values[node.input[2]].dtype == np.uint8
            offset = _U8_OFFSET if unsigned else 0
            if constant is not None:
                kind = "bias" if constant.dtype == np.int32 else "weight"
                if kind == "weight":
                    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                    digest = channel_digest(constant.astype(np.int16) - offset, axis)
                else:
                    integers = tuple(int(v) for v in constant.reshape(-1))
            name = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
            one = Stored(
                name,
                kind,
                tuple(float(s) for s in scale),
                tuple(int(z) - offset for z in zero),
                digest,
                integers,
            )
            found[one] = None
        return list(found)


def _role(node: Any, integers: set[str]) -> Role:
    """What a node of the optimized graph does, given the tensors that hold integers."""
    kinds: dict[str, Role] = {
        "QuantizeLinear": "quantize",
        "DequantizeLinear": "dequantize",
        "DynamicQuantizeLinear": "quantize",
    }
    if node.op_type in kinds:
        return kinds[node.op_type]
    if node.op_type in _LAYOUT:
        return "move"
    if "QLinear" in node.op_type or node.op_type in _PRODUCTS:
        return "integer"
    return "integer" if node.output[0] in integers else "float"


def _border(optimized: Any) -> tuple[set[int], set[int]]:
    """The places of the nodes of a picture border, and of those that quantize behind it."""
    from onnx import TensorProto

    from edgekit.targets._border import with_border_roles
    from edgekit.targets._reasons import Op

    pixels = {i.name for i in optimized.input if i.type.tensor_type.elem_type == TensorProto.UINT8}
    nodes = [
        Op(n.op_type, tuple(n.input), tuple(n.output), _role(n, set())) for n in optimized.node
    ]
    made, ends = with_border_roles(nodes, pixels, (*_CONVOLUTIONS, *_MATRICES))
    return {i for i, op in enumerate(made) if op.role == "border"}, ends


def _placement(optimized: Any, written: Any) -> Placement:
    from edgekit.targets._reasons import Op, by_dtype, reasons

    ops = collections.Counter(n.op_type for n in optimized.node)
    waste = collections.Counter(
        n.op_type
        for n in optimized.node
        if n.op_type
        in (
            "QuantizeLinear",
            "DequantizeLinear",
            "Transpose",
            "Pad",
            "ReorderInput",
            "ReorderOutput",
        )
    )
    results = {o.name for o in optimized.output}
    starts = {i.name for i in optimized.input}
    boundary = float_ops = 0
    first: str | None = None
    integers: set[str] = set()
    made: list[Op] = []
    layers: list[Op] = []
    constants = {i.name for i in optimized.initializer}
    border, quantizing = _border(optimized)
    for place, node in enumerate(optimized.node):
        integer = "QLinear" in node.op_type or node.op_type in ("QuantizeLinear", "QGemm")
        if integer or (node.op_type in _ANY_TYPE and node.input[0] in integers):
            integers.update(node.output)
        role = "border" if place in border else _role(node, integers)
        made.append(Op(node.op_type, tuple(node.input), tuple(node.output), role))
        if place in border:
            boundary += 1
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            constants.add(node.output[0])
        weight = _MATRICES.get(node.op_type)
        if node.op_type in _CONVOLUTIONS or (weight and node.input[weight] in constants):
            layers.append(made[-1])
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            at_border = bool(starts & set(node.input)) or bool(results & set(node.output))
            boundary += at_border or place in quantizing
            continue
        if "QLinear" in node.op_type or node.op_type in (
            "QGemm",
            "MatMulIntegerToFloat",
            "DynamicQuantizeMatMul",
        ):
            continue
        if node.op_type in _FLOAT_FREE or node.output[0] in integers:
            continue
        float_ops += 1
        first = first or f"{node.op_type} computes in float ({node.name or node.output[0]})"
    sizes: collections.Counter[str] = collections.Counter()
    from onnx import numpy_helper

    for initializer in written.initializer:
        array = numpy_helper.to_array(initializer)
        packed = str(array.dtype) == "int4"
        sizes[str(array.dtype)] += (array.size + 1) // 2 if packed else int(array.nbytes)
    return Placement(
        ops=dict(sorted(ops.items())),
        float_ops=float_ops,
        boundary_ops=boundary,
        first_fallback=first,
        bytes_by_dtype=dict(sorted(sizes.items())),
        waste=dict(sorted(waste.items())),
        reasons=reasons(made, starts | results, _KNOWN),
        ops_by_dtype=by_dtype(made),
        layers=by_dtype(layers),
    )


TARGET = Onnxruntime()
