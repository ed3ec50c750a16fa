"""LiteRT Torch's own PT2E quantizer: torch's observers, placed by the vendor's annotator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.engines._common import check_quantized, labelled, samples, write_litert
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch

    from edgekit.engines import Feeds


class LitertTorch:
    """The engine of `litert_torch.quantize`."""

    id = "litert-torch"
    extra = "tflite"
    packages = ("litert-torch", "torchao", "ai-edge-litert")
    targets = ("tflite",)
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
        has them."""
        import torch
        from litert_torch.quantize.pt2e_quantizer import (
            PT2EQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        from edgekit.compress.graph import example_args

        quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(**settings))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            prepared = prepare_pt2e(labelled(program), quantizer)
            for feed in samples(feeds):
                prepared(*feed)
            module = convert_pt2e(prepared, fold_quantize=False)
            check_quantized(self.id, module)
            return write_litert(module, example_args(program), quantizer, signature, out)


ENGINE = LitertTorch()
