"""From a rendered plan to an ML Program, by coremltools."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.plan import QuantPlan
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import _coreml_package
from edgekit.targets._common import converter_error

if TYPE_CHECKING:
    import torch

_OLDEST = {"fp32": "iOS16", "fp16": "iOS16", "w8": "iOS17", "w8a8": "iOS17", "w4": "iOS18"}
"""The oldest system that has the operators of a scheme. The first with ML Programs, iOS 15, lacks
``pixel_unshuffle`` and others that models here are made of; weights of 8 bits would do on iOS 16,
but the converter reads dequantize operators for iOS 17 and later only."""

_LEFT_OUT = (
    # They bring other scales or weights into the file than the plan's.
    "common::distributive_quantized_binary_op_scale_normalization",
    "common::fuse_conv_scale",
    "common::fuse_conv_batchnorm",
    "common::fuse_elementwise_to_batchnorm",
)


def convert(
    program: torch.export.ExportedProgram, plan: QuantPlan, signature: Signature, out: Path
) -> None:
    """Writes the package; see `edgekit.targets.Target.convert`.

    Raises:
        UnsupportedError: the converter refused the model, or changed a weight.
    """
    import torch

    from edgekit.compress.graph import example_args
    from edgekit.compress.render import render
    from edgekit.targets._coreml_graph import restate

    _coreml_package.quiet()
    try:
        module = render(program, plan, "qdq-folded", bare_pads=True, bare_moves=True)
        restate(module)
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
            warnings.simplefilter("ignore")
            rendered = torch.export.export(module, example_args(program), strict=False)
            rendered = rendered.run_decompositions({})
            model = _convert(rendered, plan.scheme, signature, folder)
            _coreml_package.write(model.get_spec(), Path(model.weights_dir), out)
    except Exception as error:
        raise converter_error("coreml", error) from error


def _convert(
    program: torch.export.ExportedProgram, scheme: str, signature: Signature, folder: str
) -> Any:
    import coremltools as ct
    from coremltools.converters.mil import Builder

    Builder.name_count.clear()  # else names tell what the process made before
    half = scheme == "fp16"
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(set(_LEFT_OUT))
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return ct.convert(
            program,
            inputs=[_tensor_type(spec) for spec in signature.inputs],
            outputs=[ct.TensorType(name=spec.name) for spec in signature.outputs],
            minimum_deployment_target=getattr(ct.target, _oldest(program, scheme)),
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            pass_pipeline=pipeline,
            skip_model_load=True,
            package_dir=str(Path(folder) / "made.mlpackage"),
        )


def _oldest(program: torch.export.ExportedProgram, scheme: str) -> str:
    """The system to convert for; what an engine quantized needs no less than a plan does."""
    targets = (str(node.target) for node in program.graph.nodes)
    quantized = any(t.startswith("quantized_decomposed.") for t in targets)
    return max(_OLDEST[scheme], "iOS17") if quantized else _OLDEST[scheme]


def _tensor_type(spec: TensorSpec) -> Any:
    import coremltools as ct

    dtype = np.float32 if spec.dtype.startswith("float") else np.int32
    return ct.TensorType(name=spec.name, shape=spec.shape, dtype=dtype)
