"""ExecuTorch's own quantizer for XNNPACK: torch's observers, placed by the vendor's annotator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.engines._common import check_quantized, labelled, samples
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch

    from edgekit.engines import Feeds


class Executorch:
    """The engine of ExecuTorch's ``XNNPACKQuantizer``."""

    id = "executorch"
    extra = "executorch"
    packages = ("executorch", "torchao")
    targets = ("executorch",)
    defaults: Mapping[str, Any] = {"is_per_channel": True, "is_dynamic": False}

    def quantize(
        self,
        program: torch.export.ExportedProgram,
        feeds: Feeds,
        signature: Signature,
        target: str,
        out: Path,
        settings: Mapping[str, Any],
    ) -> list[Path]:
        """See `edgekit.engines.Engine.quantize`; settings as `get_symmetric_quantization_config`
        has them. The graph is lowered by the vendor's partitioner as it comes, not by edgekit's.
        """
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        from edgekit.compress.graph import example_args
        from edgekit.targets._executorch_file import quiet
        from edgekit.targets.executorch import lowered

        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**settings))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            prepared = prepare_pt2e(labelled(program), quantizer)
            for feed in samples(feeds):
                prepared(*feed)
            module = convert_pt2e(prepared)
            check_quantized(self.id, module)
            exported = torch.export.export(module, example_args(program), strict=False)
            with quiet():
                out.write_bytes(lowered(exported, XnnpackPartitioner()))
        return [out]


ENGINE = Executorch()
