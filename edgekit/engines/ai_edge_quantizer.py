"""AI Edge Quantizer, Google's quantizer of ``.tflite`` files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.engines._common import float_file, named
from edgekit.errors import UsageError
from edgekit.scratch import scratch
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch

    from edgekit.engines import Feeds


class AiEdgeQuantizer:
    """The AI Edge Quantizer engine."""

    id = "ai-edge-quantizer"
    extra = "tflite"
    packages = ("ai-edge-quantizer", "litert-torch", "ai-edge-litert")
    targets = ("tflite",)
    defaults: Mapping[str, Any] = {
        "recipe": "static_wi8_ai8",
        "algorithm": "min_max_uniform_quantize",
    }

    def quantize(
        self,
        program: torch.export.ExportedProgram,
        feeds: Feeds,
        signature: Signature,
        target: str,
        out: Path,
        settings: Mapping[str, Any],
    ) -> list[Path]:
        """See `edgekit.engines.Engine.quantize`.

        ``recipe`` is the name of a static recipe in `ai_edge_quantizer.recipe`, ``algorithm`` what
        it takes as such.
        """
        import torch
        from ai_edge_quantizer import quantizer, recipe

        from edgekit.runtime.session import read_signature

        make = getattr(recipe, settings["recipe"], None)
        if make is None or not settings["recipe"].startswith("static_"):
            raise UsageError(f"ai-edge-quantizer has no static recipe {settings['recipe']!r}")
        rows = named(feeds, signature)
        with scratch("aeq") as folder:
            source = float_file(program, signature, target, folder)
            # LiteRT narrows int64 ids to int32: the file says what it takes.
            dtypes = {s.name: s.dtype for s in read_signature(target, source).inputs}
            rows = [{k: v.astype(dtypes[k], copy=False) for k, v in r.items()} for r in rows]
            made = quantizer.Quantizer(str(source))
            made.load_quantization_recipe(make(recipe.AlgorithmName(settings["algorithm"])))
            ranges = made.calibrate({_key(source): rows}, num_threads=torch.get_num_threads())
            made.quantize(ranges, enable_progress_report=False).export_model(str(out))
        return [out]


def _key(path: Path) -> str:
    """The name of the file's only signature."""
    from ai_edge_litert.interpreter import Interpreter

    return str(next(iter(Interpreter(model_path=str(path)).get_signature_list())))


ENGINE = AiEdgeQuantizer()
