"""One vendor's own way from a torch module to a quantized file, as its documentation has it.

``python vendor_steps.py TOOL WEIGHTS CALIB OUT`` is what a user of that tool alone would run: build
the network, load its weights and the calibration samples, quantize, convert, write. Nothing here
goes through edgekit but the import of torchvision beside a CPU build of torch. Settings are those
of ``peers.toml``; `export_time.py` runs these scripts and adds up their times.
"""

from __future__ import annotations

import logging
import os
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from edgekit._torchvision import torchvision

Sample = tuple[torch.Tensor]
SETTINGS: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("peers.toml").read_text()
)


def network(weights: Path) -> torch.nn.Module:
    """torchvision's MobileNetV2 with the weights of a file, which tell the number of classes."""
    held = load_file(weights)
    classes = len(held["classifier.1.bias"])
    module: torch.nn.Module = torchvision().models.mobilenet_v2(num_classes=classes)
    module.load_state_dict(held)
    return module.eval()


def litert(module: torch.nn.Module, samples: list[Sample], out: Path) -> None:
    """litert-torch converts, AI Edge Quantizer quantizes the file (both READMEs)."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    settings = SETTINGS["ai-edge-quantizer"]
    source = out / "float.tflite"
    litert_torch.convert(module, samples[0]).export(str(source))
    made = quantizer.Quantizer(str(source))
    algorithm = recipe.AlgorithmName(settings["algorithm"])
    made.load_quantization_recipe(getattr(recipe, settings["recipe"])(algorithm))
    rows = [{"args_0": x.numpy()} for (x,) in samples]
    ranges = made.calibrate({"serving_default": rows})
    made.quantize(ranges).export_model(str(out / "model.tflite"))


def openvino(module: torch.nn.Module, samples: list[Sample], out: Path) -> None:
    """`openvino.convert_model`, `nncf.quantize` ("Basic Quantization Flow")."""
    os.environ.setdefault("NNCF_CI", "1")  # reports nothing to its makers
    import nncf
    import openvino as ov

    settings = SETTINGS["nncf"]
    model = ov.convert_model(module, example_input=samples[0][0], input=[1, 3, 224, 224])
    quantized = nncf.quantize(
        model,
        nncf.Dataset([x.numpy() for (x,) in samples]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        target_device=nncf.TargetDevice(settings["target_device"]),
        fast_bias_correction=settings["fast_bias_correction"],
        subset_size=len(samples),
    )
    ov.save_model(quantized, out / "model.xml")


def onnxruntime(module: torch.nn.Module, samples: list[Sample], out: Path) -> None:
    """`torch.onnx.export`, `quant_pre_process`, `quantize_static` ("Quantize ONNX Models")."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        rows = iter([{"x": x.numpy()} for (x,) in samples])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    settings = SETTINGS["onnxruntime"]
    source, prepared = out / "float.onnx", out / "prepared.onnx"
    torch.onnx.export(module, samples[0], str(source), input_names=["x"], dynamo=True)
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared),
        str(out / "model.onnx"),
        Reader(),
        quant_format=QuantFormat[settings["quant_format"]],
        activation_type=QuantType[settings["activation_type"]],
        weight_type=QuantType[settings["weight_type"]],
        per_channel=settings["per_channel"],
        reduce_range=settings["reduce_range"],
        calibrate_method=CalibrationMethod[settings["calibrate_method"]],
    )


def executorch(module: torch.nn.Module, samples: list[Sample], out: Path) -> None:
    """`XNNPACKQuantizer`, `to_edge_transform_and_lower` ("XNNPACK Backend: Quantization")."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(**SETTINGS["executorch"]))
    prepared = prepare_pt2e(torch.export.export(module, samples[0]).module(), quantizer)
    for sample in samples:
        prepared(*sample)
    exported = torch.export.export(convert_pt2e(prepared), samples[0])
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    (out / "model.pte").write_bytes(program.to_executorch().buffer)


def torch_mobile(module: torch.nn.Module, samples: list[Sample], out: Path) -> None:
    """FX graph mode quantization with qnnpack's settings, script, save for the lite interpreter.

    Without `optimize_for_mobile`: torch's desktop wheels are built without the XNNPACK it asks for.
    """
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "qnnpack"
    prepared = prepare_fx(module, get_default_qconfig_mapping("qnnpack"), samples[0])
    for sample in samples:
        prepared(*sample)
    scripted = torch.jit.script(convert_fx(prepared))
    scripted._save_for_lite_interpreter(str(out / "model.ptl"))


def coreml(module: torch.nn.Module, samples: list[Sample], out: Path) -> None:
    """`LinearQuantizer`, calibrated, traced, `coremltools.convert` (its guide's PyTorch path)."""
    import coremltools as ct
    from coremltools.optimize.torch.quantization import (
        LinearQuantizer,
        LinearQuantizerConfig,
        ModuleLinearQuantizerConfig,
    )

    config = ModuleLinearQuantizerConfig(**SETTINGS["coremltools"])
    quantizer = LinearQuantizer(module, LinearQuantizerConfig(global_config=config))
    prepared = quantizer.prepare(example_inputs=samples[0])
    quantizer.step()
    for sample in samples:
        prepared(*sample)
    prepared.eval()
    traced = torch.jit.trace(quantizer.finalize(), samples[0])
    converted = ct.convert(
        traced,
        inputs=[ct.TensorType(name="x", shape=tuple(samples[0][0].shape))],
        minimum_deployment_target=ct.target.iOS17,
    )
    converted.save(str(out / "model.mlpackage"))


TOOLS: dict[str, Callable[[torch.nn.Module, list[Sample], Path], None]] = {
    "tflite": litert,
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "executorch": executorch,
    "torch-mobile": torch_mobile,
    "coreml": coreml,
}
"""By the target whose file the tool makes."""


def main(argv: list[str]) -> None:
    """Runs one tool."""
    tool, weights, calib, out = argv
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with np.load(calib) as data:
        samples = [(torch.from_numpy(x),) for x in data["x"]]
    with torch.no_grad():
        TOOLS[tool](network(Path(weights)), samples, Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
