"""NNCF, Intel's quantizer for OpenVINO, which also quantizes ONNX files.

Post-training quantization as `nncf.quantize` does it on the runtime's own file: min-max ranges,
bias correction, channel alignment.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.engines._common import calls, float_file, named
from edgekit.runtime._silence import silence
from edgekit.scratch import scratch
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch

    from edgekit.engines import Feeds

silence()

_CURVED = {"elu", "gelu", "hardsigmoid", "hardswish", "leaky_relu", "mish", "prelu", "sigmoid"}
_CURVED |= {"silu", "tanh"}
_ATTENTION = {"scaled_dot_product_attention", "softmax", "_softmax"}


class Nncf:
    """The NNCF engine."""

    id = "nncf"
    extra = "nncf"
    packages = ("nncf",)
    targets = ("openvino", "onnxruntime")
    defaults: Mapping[str, Any] = {
        "preset": "auto",
        "model_type": "auto",
        "target_device": "ANY",
        "fast_bias_correction": True,
        "per_channel_activations": "auto",
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

        ``preset`` is ``performance``, ``mixed`` or ``auto``, and ``model_type`` ``transformer``,
        ``none`` or ``auto``, which is what the documentation says for the model's activations and
        for models with attention. ``per_channel_activations`` is ``auto`` or false: NNCF gives
        the inputs of depthwise convolutions a scale per channel, which OpenVINO's kernels take and
        ONNX Runtime's do not (they would compute in float); ``auto`` leaves it that only for
        OpenVINO. All samples count, whatever their number.
        """
        # NNCF reports its use to its vendor unless this is set before it is imported.
        os.environ.setdefault("NNCF_CI", "1")
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        rows = named(feeds, signature)
        model_type, preset = _choices(program, settings)
        with scratch("nncf") as folder:
            source = float_file(program, signature, target, folder)
            quantized = nncf.quantize(
                _read(target, source),
                nncf.Dataset(rows),
                preset=nncf.QuantizationPreset(preset) if preset else None,
                model_type=nncf.ModelType(model_type) if model_type else None,
                target_device=nncf.TargetDevice(settings["target_device"]),
                subset_size=len(rows),
                fast_bias_correction=settings["fast_bias_correction"],
                advanced_parameters=_advanced(target, settings),
            )
            return _write(target, quantized, out)


def _choices(
    program: torch.export.ExportedProgram, settings: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    from edgekit.compress.graph import graph_module

    called = calls(graph_module(program))
    model_type, preset = settings["model_type"], settings["preset"]
    if model_type == "auto":
        model_type = "transformer" if called & _ATTENTION else "none"
    if preset == "auto":
        preset = "mixed" if called & _CURVED or model_type == "transformer" else "performance"
    return None if model_type == "none" else model_type, preset


def _advanced(target: str, settings: Mapping[str, Any]) -> Any:
    from nncf import AdvancedQuantizationParameters
    from nncf.quantization.advanced_parameters import QuantizationParameters

    if target == "openvino" and settings["per_channel_activations"] == "auto":
        return None
    per_tensor = QuantizationParameters(per_channel=False)
    return AdvancedQuantizationParameters(activations_quantization_params=per_tensor)


def _read(target: str, source: Path) -> Any:
    if target == "openvino":
        import openvino

        return openvino.Core().read_model(str(source))
    import onnx

    return onnx.load(str(source))


def _write(target: str, quantized: Any, out: Path) -> list[Path]:
    if target == "openvino":
        import openvino

        openvino.save_model(quantized, out, compress_to_fp16=False)
        return [out, out.with_suffix(".bin")]
    out.write_bytes(quantized.SerializeToString(deterministic=True))
    return [out]


ENGINE = Nncf()
