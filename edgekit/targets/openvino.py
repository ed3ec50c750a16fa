"""OpenVINO IR (``.xml`` with its ``.bin``) for Intel CPUs, GPUs and NPUs, and Arm CPUs.

The plan is rendered as quantize and dequantize operators, which the frontend turns into
``FakeQuantize``; saving compresses constant weights to int8.
"""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.signature import Signature
from edgekit.targets import Placement, Stored
from edgekit.targets._common import channel_digest, converter_error

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan

_NOT_COMPUTE = ("Input", "Output", "Const", "Result")
_MOVES = ("Reorder", "Convert", "Transpose", "FakeQuantize", "Pad")


class Openvino:
    """The OpenVINO target."""

    id = "openvino"
    suffix = ".xml"
    extra = "openvino"
    packages = ("openvino",)
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
        import openvino

        from edgekit.compress.render import render_program

        try:
            model = openvino.convert_model(render_program(program, plan, "qdq"))
        except Exception as error:
            raise converter_error("openvino", error) from error
        for port, spec in zip(model.inputs, signature.inputs, strict=True):
            port.get_tensor().set_names({spec.name})
            port.get_node().set_friendly_name(spec.name)
            port.get_node().set_partial_shape(openvino.PartialShape(list(spec.shape)))
        for port, spec in zip(model.outputs, signature.outputs, strict=True):
            port.get_tensor().set_names({spec.name})
        model.validate_nodes_and_infer_types()
        model.set_friendly_name("edgekit")
        openvino.save_model(model, out, compress_to_fp16=False)
        _drop_conversion_facts(out)
        return [out, out.with_suffix(".bin")]

    def inspect(self, path: Path) -> Placement:
        """Operators of the compiled CPU graph by type, and the type they compute in."""
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(
            str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        )
        ops: collections.Counter[str] = collections.Counter()
        waste: collections.Counter[str] = collections.Counter()
        float_ops = boundary = 0
        first: str | None = None
        for node in compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            kind = str(info["layerType"].astype(str))
            precision = str(info["runtimePrecision"].astype(str))
            if kind in _NOT_COMPUTE:
                continue
            ops[kind] += 1
            if kind in _MOVES:
                waste[kind] += 1
            if kind == "FakeQuantize":
                boundary += 1
            elif kind not in ("Reorder", "Convert", "Reshape") and precision in ("f32", "f16"):
                float_ops += 1
                first = first or f"{kind} computes in {precision} ({node.get_friendly_name()})"
        return Placement(
            ops=dict(sorted(ops.items())),
            float_ops=float_ops,
            boundary_ops=boundary,
            first_fallback=first,
            bytes_by_dtype=_constant_bytes(core.read_model(str(path))),
            waste=dict(sorted(waste.items())),
        )

    def stored(self, path: Path) -> list[Stored]:
        """``FakeQuantize`` ranges as scales, and compressed weights with their integers."""
        import openvino

        model = openvino.Core().read_model(str(path))
        found = []
        for node in model.get_ordered_ops():
            kind = node.get_type_name()
            if kind == "FakeQuantize":
                found.append(_fake_quantize(node))
            elif kind == "Multiply":
                weight = _compressed_weight(node)
                if weight is not None:
                    found.append(weight)
        return found


def _fake_quantize(node: Any) -> Stored:
    low = float(_values(node, 1).reshape(-1)[0])
    high = float(_values(node, 2).reshape(-1)[0])
    levels = int(node.get_attributes()["levels"])
    scale = (high - low) / (levels - 1)
    zero = int(np.rint(-low / scale)) - 128 if scale else 0
    return Stored(node.get_friendly_name(), "activation", (scale,), (zero,))


def _compressed_weight(node: Any) -> Stored | None:
    """``Multiply(Convert(i8 constant), scale)``, as saving writes quantized weights."""
    source = node.input_value(0).get_node()
    if source.get_type_name() != "Convert":
        return None
    constant = source.input_value(0).get_node()
    if constant.get_type_name() != "Constant" or str(constant.get_element_type()) not in (
        "<Type: 'int8_t'>",
        "<Type: 'int8'>",
    ):
        return None
    integers = np.asarray(constant.get_data())
    scale = np.asarray(_values(node, 1))
    axes = [i for i, n in enumerate(scale.shape) if n != 1]
    axis = axes[0] if axes else 0
    count = scale.size
    return Stored(
        constant.get_friendly_name(),
        "weight",
        tuple(float(s) for s in scale.reshape(-1)),
        (0,) * count,
        channel_digest(integers, axis),
    )


def _values(node: Any, position: int) -> np.ndarray[Any, Any]:
    return np.asarray(node.input_value(position).get_node().get_data())


def _constant_bytes(model: Any) -> dict[str, int]:
    sizes: collections.Counter[str] = collections.Counter()
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            data = node.get_data()
            sizes[str(data.dtype)] += int(data.nbytes)
    return dict(sorted(sizes.items()))


def _drop_conversion_facts(path: Path) -> None:
    """Removes run-time information such as converter arguments, which is not the model's."""
    text = path.read_text()
    path.write_text(re.sub(r"\t?<rt_info>(?:(?!<rt_info>).)*</rt_info>\n(?=</net>)", "", text, flags=re.S))


TARGET = Openvino()
