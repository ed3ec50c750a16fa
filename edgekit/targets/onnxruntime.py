"""ONNX Runtime (``.onnx``) for Android, iOS, Linux, Windows and servers.

The plan is rendered as quantize and dequantize operators with integer weights (QDQ form), exported
through `torch.onnx`, and brought into the form that the runtime fuses: activations as uint8 with
the zero point moved by 128, which stands for the very same values, since its x86 kernels are the
u8 x s8 ones, and biases as int32.
"""

from __future__ import annotations

import collections
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.signature import Signature
from edgekit.targets import Placement, Stored
from edgekit.targets._common import channel_digest, converter_error

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan

OPSET = 21
_U8_OFFSET = 128
_FLOAT_FREE = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "NhwcMaxPool")
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
    schemes = ("w8a8", "fp32")
    delegates = ("cpu",)

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

        from edgekit.compress.render import RESULTS, render_program, without_convolutions
        from edgekit.targets import _onnx_file

        # Integer matrix products give float where float is read (MatMulIntegerToFloat).
        plan = without_convolutions(program, plan, [RESULTS])
        rendered = render_program(program, plan, "qdq-folded", bare_pads=True)
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
        if plan.edges:
            _onnx_file.row_products(model)
            _onnx_file.unsigned_activations(model)
            _onnx_file.integer_biases(model)
            _onnx_file.global_pooling(model)
            _onnx_file.fold_pads(model)
            _onnx_file.integer_clamps(model)
        _onnx_file.prune(model)
        out.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(out))
        return [out]

    def inspect(self, path: Path) -> Placement:
        """Operators of the graph that the runtime made of the file, at its highest level."""
        import onnx
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            options.optimized_model_filepath = str(optimized)
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            graph = onnx.load(str(optimized)).graph
        return _placement(graph, onnx.load(str(path)).graph)

    def absorbed(self, path: Path) -> list[int]:
        """Linear layers give float where float is read."""
        from edgekit.compress.render import RESULTS

        return [RESULTS]

    def stored(self, path: Path) -> list[Stored]:
        """Scales and zero points of every quantize and dequantize operator.

        A tensor that is written with other ones than it is read with is listed with both.
        """
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(str(path)).graph
        values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        found: dict[Stored, None] = {}
        for node in graph.node:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            scale = np.asarray(values[node.input[1]], np.float32).reshape(-1)
            zero = np.asarray(values[node.input[2]]).reshape(-1) if len(node.input) > 2 else 0
            zero = np.broadcast_to(zero, scale.shape)
            constant = values.get(node.input[0])
            kind = "activation"
            digest = ""
            integers: tuple[int, ...] = ()
            offset = 0
            if constant is not None:
                kind = "bias" if constant.dtype == np.int32 else "weight"
                if kind == "weight":
                    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                    digest = channel_digest(constant, axis)
                else:
                    integers = tuple(int(v) for v in constant.reshape(-1))
            elif len(node.input) > 2 and values[node.input[2]].dtype == np.uint8:
                offset = _U8_OFFSET
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


def _placement(optimized: Any, written: Any) -> Placement:
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
    for node in optimized.node:
        integer = "QLinear" in node.op_type or node.op_type in ("QuantizeLinear", "QGemm")
        if integer or (node.op_type in _ANY_TYPE and node.input[0] in integers):
            integers.update(node.output)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            boundary += bool(starts & set(node.input)) or bool(results & set(node.output))
            continue
        if "QLinear" in node.op_type or node.op_type in ("QGemm", "MatMulIntegerToFloat"):
            continue
        if node.op_type in _FLOAT_FREE or node.output[0] in integers:
            continue
        float_ops += 1
        first = first or f"{node.op_type} computes in float ({node.name or node.output[0]})"
    sizes: collections.Counter[str] = collections.Counter()
    from onnx import numpy_helper

    for initializer in written.initializer:
        array = numpy_helper.to_array(initializer)
        sizes[str(array.dtype)] += int(array.nbytes)
    return Placement(
        ops=dict(sorted(ops.items())),
        float_ops=float_ops,
        boundary_ops=boundary,
        first_fallback=first,
        bytes_by_dtype=dict(sorted(sizes.items())),
        waste=dict(sorted(waste.items())),
    )


TARGET = Onnxruntime()
