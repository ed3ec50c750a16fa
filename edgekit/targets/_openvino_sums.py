"""Which quantizations OpenVINO's CPU plug-in leaves out when it adds a residual.

Where a convolution's output goes into an addition alone, the plug-in may fuse the two: the addition
then takes the convolution's accumulator, kept to the range of the ``FakeQuantize`` between them and
not rounded (observed with 2026.4.1, by comparing each element, of inputs that exceed the range too,
with all three readings of the graph). That is a little more accurate than the plan and not the
plan, so the reference for such an artifact must leave the same roundings out. Which additions are
fused depends on zero points, order and processor: the compiled graph is asked.
"""

from __future__ import annotations

import re
from typing import Any

_CONVOLUTION = re.compile(r"^convolution(?:_(\d+))?/")
_ADDITION = re.compile(r"^add(?:_\d+)?/aten\.add\.Tensor/Add$")


def absorbed_convolutions(compiled: Any) -> list[int]:
    """Ordinals of convolutions (in the program's order) whose own rounding was fused away.

    Args:
        compiled: an `openvino.CompiledModel`.
    """
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if str(info["layerType"].astype(str)) != "Convolution":
            continue
        names = str(info["originalLayersNames"].astype(str)).split(",")
        first = _CONVOLUTION.match(names[0])
        added = next((i for i, name in enumerate(names) if _ADDITION.match(name)), None)
        if first is None or added is None:
            continue
        if any(name.endswith("/FakeQuantize") for name in names[:added]):
            found.append(int(first.group(1) or 0))
    return sorted(found)
