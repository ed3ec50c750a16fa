"""From a rendered plan to an ML Program, by coremltools."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.plan import QuantPlan
from edgekit.scratch import scratch
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import _coreml_classifier, _coreml_package
from edgekit.targets._common import converter_error

if TYPE_CHECKING:
    import torch
    from torch import fx

    from edgekit.compress.picture import Prelude

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

    A picture border becomes an image input, and a model with labels behind one a classifier.

    Raises:
        UnsupportedError: the converter refused the model, or changed a weight.
    """
    import torch

    from edgekit.compress.graph import example_args
    from edgekit.compress.picture import find_prelude
    from edgekit.compress.render import render
    from edgekit.targets._coreml_graph import restate

    _coreml_package.quiet()
    try:
        module = render(program, plan, "qdq-folded", bare_pads=True, bare_moves=True)
        args, prelude = example_args(program), find_prelude(module)
        if prelude is not None:
            args = _take_image(module, prelude, args)
        restate(module)
        with warnings.catch_warnings(), scratch("coreml") as folder, torch.no_grad():
            warnings.simplefilter("ignore")
            rendered = torch.export.export(module, args, strict=False)
            rendered = rendered.run_decompositions({})
            model = _convert(rendered, plan.scheme, signature, folder, prelude)
            spec = model.get_spec()
            scores = None if prelude is None else _coreml_classifier.labelled(signature)
            if scores is not None:
                _coreml_classifier.add(spec, scores)
            _coreml_package.write(spec, Path(model.weights_dir), out)
    except Exception as error:
        raise converter_error("coreml", error) from error


def _convert(
    program: torch.export.ExportedProgram,
    scheme: str,
    signature: Signature,
    folder: Path,
    prelude: Prelude | None,
) -> Any:
    import coremltools as ct
    from coremltools.converters.mil import Builder

    Builder.name_count.clear()  # else names tell what the process made before
    precision: Any = ct.precision.FLOAT32
    if scheme == "fp16":
        # Pixels of 0..255 are scaled in float32: in half precision a step of them would be lost.
        precision = ct.transform.FP16ComputePrecision(lambda op: not _scales(op, prelude))
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(set(_LEFT_OUT))
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return ct.convert(
            program,
            inputs=[_input_type(spec, prelude) for spec in signature.inputs],
            outputs=[ct.TensorType(name=spec.name) for spec in signature.outputs],
            minimum_deployment_target=getattr(ct.target, _oldest(program, scheme)),
            compute_precision=precision,
            pass_pipeline=pipeline,
            skip_model_load=True,
            package_dir=str(folder / "made.mlpackage"),
        )


def _oldest(program: torch.export.ExportedProgram, scheme: str) -> str:
    """The system to convert for; what an engine quantized needs no less than a plan does."""
    targets = (str(node.target) for node in program.graph.nodes)
    quantized = any(t.startswith("quantized_decomposed.") for t in targets)
    return max(_OLDEST[scheme], "iOS17") if quantized else _OLDEST[scheme]


def _input_type(spec: TensorSpec, prelude: Prelude | None) -> Any:
    import coremltools as ct

    if spec.dtype == "uint8" and prelude is not None:
        _, height, width, channels = spec.shape
        colors = "G" if channels == 1 else "RGB" if prelude.flip is None else "BGR"
        return ct.ImageType(
            name=spec.name,
            shape=(1, channels, height, width),
            color_layout=getattr(ct.colorlayout, "GRAYSCALE" if colors == "G" else colors),
        )
    dtype = np.float32 if spec.dtype.startswith("float") else np.int32
    return ct.TensorType(name=spec.name, shape=spec.shape, dtype=dtype)


def _take_image(
    module: fx.GraphModule, prelude: Prelude, args: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Gives a graph the input that Core ML makes of an image: float32 ``[1, C, H, W]`` of 0..255 in
    the model's order of colours. Gives example inputs."""
    import torch

    from edgekit.targets._prelude import cut

    position, args = cut(module, prelude, args, behind=prelude.convert)
    if prelude.permute is not None:
        return args
    image = [n for n in module.graph.nodes if n.op == "placeholder"][position]
    image.meta = {}
    with module.graph.inserting_after(image):
        last = module.graph.call_function(torch.ops.aten.permute.default, (image, [0, 2, 3, 1]))
    image.replace_all_uses_with(last, delete_user_cb=lambda user: user is not last)
    module.recompile()
    fed = args[position].permute(0, 3, 1, 2).contiguous()
    return (*args[:position], fed, *args[position + 1 :])


def _scales(operation: Any, prelude: Prelude | None) -> bool:
    """Whether an operation of coremltools' own program belongs to the picture border."""
    if prelude is None:
        return False
    constants = {"mul": prelude.factor, "add": prelude.offset}
    if operation.op_type not in constants:
        return False
    wanted = constants[operation.op_type]
    values = [operation.x.val, operation.y.val]
    return any(v is not None and np.array_equal(np.ravel(v), wanted) for v in values)
