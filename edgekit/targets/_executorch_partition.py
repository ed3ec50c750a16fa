"""Which operators XNNPACK gets from ExecuTorch's partitioner, and by which passes over them.

The partitioner (1.5) gives XNNPACK sigmoids and their like in float alone, between a conversion
from integers and one back. XNNPACK computes any function of one int8 value by a table of 256
entries, made from its own float function and rounded as the plan rounds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

CURVES = ("SigmoidConfig", "HardswishConfig", "TanhConfig", "GeluConfig", "LeakyReLUConfig")


def partitioner() -> Any:
    """ExecuTorch's XNNPACK partitioner, integers allowed wherever XNNPACK has a kernel for them."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    both = [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]

    def widened(config: Any) -> Any:
        if config.__name__ not in CURVES:
            return config
        return type(config.__name__, (config,), {"supported_precision_types": lambda self: both})

    return XnnpackPartitioner(configs=[widened(c) for c in ALL_PARTITIONER_CONFIGS])


_WORKS_ON = {
    "ConvertToUpsampleBilinear2d": ("index",),
    "ConvertToSDPAPass": ("_softmax",),
    "FuseBatchNormPass": ("batch_norm",),
    "DecomposeBatchNorm": ("batch_norm",),
    "DecomposeConcatenate": ("aten.cat",),
    "RemoveGetItemPass": ("max_pool2d_with_indices", "max.dim"),
    "PReLUReshapePass": ("prelu",),
}
"""Parts of the names of the operators that a pass looks for."""


@contextlib.contextmanager
def needed_passes() -> Iterator[None]:
    """Leaves out XNNPACK's passes over a graph that holds nothing for them to work on.

    Each traces the whole graph again whether it finds something or not, and two first export models
    to look for: together a fifth to a quarter of what converting a MobileNetV3 took. The file stays
    the same, to the byte.
    """
    from executorch.backends.xnnpack import xnnpack_preprocess as preprocess

    manager: Any = preprocess.XNNPACKPassManager

    def needed(program: Any, passes: Any = None) -> Any:
        made = manager(program, passes)
        kinds = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
        made.passes = [p for p in made.passes if _finds_something(p.__name__, kinds)]
        return made

    preprocess.XNNPACKPassManager = needed
    try:
        yield
    finally:
        preprocess.XNNPACKPassManager = manager


def _finds_something(name: str, kinds: list[str]) -> bool:
    parts = _WORKS_ON.get(name)
    return parts is None or any(part in kind for part in parts for kind in kinds)
