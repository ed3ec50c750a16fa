"""Which operators XNNPACK gets from ExecuTorch's partitioner, with those it could have besides.

The partitioner (1.5) gives XNNPACK sigmoids and their like in float alone, between a conversion
from integers and one back. XNNPACK computes any function of one int8 value by a table of 256
entries, made from its own float function and rounded as the plan rounds.
"""

from __future__ import annotations

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
