"""ONNX Runtime's own static quantization of ONNX files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.engines._common import float_file, named
from edgekit.scratch import scratch
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch

    from edgekit.engines import Feeds


class Onnxruntime:
    """The `onnxruntime.quantization` engine."""

    id = "onnxruntime"
    extra = "onnxruntime"
    packages = ("onnxruntime", "onnx", "sympy")
    targets = ("onnxruntime",)
    defaults: Mapping[str, Any] = {
        "pre_process": True,
        "quant_format": "QDQ",
        "activation_type": "QInt8",
        "weight_type": "QInt8",
        "per_channel": True,
        "reduce_range": False,
        "calibrate_method": "MinMax",
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
        """See `edgekit.engines.Engine.quantize`; settings have their names in `quantize_static`."""
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        rows = named(feeds, signature)
        with scratch("ort") as folder:
            source = float_file(program, signature, target, folder)
            if settings["pre_process"]:
                prepared = folder / "prepared.onnx"
                try:
                    quant_pre_process(str(source), str(prepared))
                except TypeError:
                    # Symbolic shape inference, an optional step, fails on some transformers with
                    # fixed shapes, which do not need it (len() of None, ONNX Runtime 1.32).
                    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
                source = prepared
            quantize_static(
                str(source),
                str(out),
                _Reader(rows),
                quant_format=QuantFormat[settings["quant_format"]],
                activation_type=QuantType[settings["activation_type"]],
                weight_type=QuantType[settings["weight_type"]],
                per_channel=settings["per_channel"],
                reduce_range=settings["reduce_range"],
                calibrate_method=CalibrationMethod[settings["calibrate_method"]],
            )
        return [out]


class _Reader:
    """A `CalibrationDataReader`: one sample after the other, then None."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = iter(rows)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)


ENGINE = Onnxruntime()
