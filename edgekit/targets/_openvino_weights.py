"""Weights of OpenVINO files that compute in float: int8, int4 and half precision.

A stored weight is converted to float and multiplied with its scales, and the CPU plug-in restores
it: those of 1 x 1 convolutions in every call, as its compiled graph shows (2026.4.1). With such
weights the plug-in may by itself quantize the inputs of matrix products in groups as well, on
processors that have the instructions; the file says that it shall not
(``DYNAMIC_QUANTIZATION_GROUP_SIZE`` 0), since activations are float in these schemes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.plan import QuantPlan
from edgekit.errors import UnsupportedError
from edgekit.targets._common import pack_int4
from edgekit.targets._weights import Weight, Weights

if TYPE_CHECKING:
    import torch


def place(model: Any, program: torch.export.ExportedProgram, plan: QuantPlan) -> None:
    """Stores the plan's weights, found by their float values, in place.

    Raises:
        UnsupportedError: a weight is not in the graph.
    """
    weights = Weights(program, plan)
    stored: set[str] = set()
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().to_dtype() != np.float32:
            continue
        weight = weights.find(np.asarray(node.get_data()))
        if weight is None:
            continue
        stored.add(weight.edge.node)
        readers = list(node.output(0).get_target_inputs())
        real = _restored(weight, weight.edge.edge)
        for reader in readers:
            reader.replace_source_output(real.output(0))
    for edge in plan.edges:
        if edge.node not in stored:
            raise UnsupportedError(
                f"openvino: the converter does not keep the weight {edge.edge}",
                hint="use --scheme fp32, or leave this target out with --target",
            )


def state_float_inputs(path: Path) -> None:
    """Writes into the file that no input is to be quantized at run time."""
    option = '<DYNAMIC_QUANTIZATION_GROUP_SIZE value="0" />'
    said = f"\t<rt_info>\n\t\t<runtime_options>{option}</runtime_options>\n\t</rt_info>\n"
    text = path.read_text()
    path.write_text(text.replace("</net>", f"{said}</net>"))


def _restored(weight: Weight, name: str) -> Any:
    import openvino
    from openvino import op, opset13

    if weight.edge.dtype == "int4":
        shape = openvino.Shape(list(weight.stored.shape))
        tensor = openvino.Tensor(openvino.Type.i4, shape)
        tensor.data.reshape(-1)[:] = pack_int4(weight.stored).view(tensor.data.dtype)
        constant = op.Constant(tensor)
    else:
        constant = op.Constant(np.ascontiguousarray(weight.stored))
    constant.set_friendly_name(name)
    real = opset13.convert(constant, "f32", name=f"{name}/real")
    if weight.scale is None:
        return real
    scale = op.Constant(np.ascontiguousarray(weight.scale))
    scale.set_friendly_name(f"{name}/scale")
    return opset13.multiply(real, scale, name=f"{name}/scaled")
