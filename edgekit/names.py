"""Every fixed name in one place: ids of targets, schemes, devices, extras, and exit codes.

This module imports nothing but the standard library, so that ``--help``, the device side and the
schema conformance test can all read the same tables.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

TARGETS: Final = ("tflite", "openvino", "onnxruntime", "executorch", "torch-mobile", "coreml")
"""Targets that ship with edgekit, in the order reports list them. ``null`` is for tests."""

TEST_TARGET: Final = "null"

DELEGATES: Final = {"executorch": ("xnnpack", "vulkan", "coreml")}
"""Delegates of targets that lower to several, the usual one first. The others are asked for by
``TARGET:DELEGATE`` and have it in their artifacts' ids."""

ENGINES: Final = (
    "ai-edge-quantizer",
    "coremltools",
    "executorch",
    "inc",
    "litert-torch",
    "nncf",
    "onnxruntime",
    "torch-ao",
)
"""Vendors' quantizers that `edgekit export --engine` can call; one file each in edgekit/engines."""

SCHEMES: Final = {
    "w8a8": "int8 weights (per channel) and int8 activations, static",
    "w8a8-dyn": "int8 weights, activations quantized at run time",
    "w8": "int8 weights, float activations",
    "w4": "int4 weights, float activations",
    "w8a16": "int8 weights, int16 activations",
    "fp16": "half precision",
    "fp32": "single precision",
}
"""Quantization schemes: ``w<bits>`` weights, ``a<bits>`` activations, ``-dyn`` dynamic ranges."""

WEIGHTS: Final = ("fp16", "w8", "w4", "w8a8-dyn")
"""Schemes that quantize weights and need no calibration."""

WIDE: Final = "w8a16"
CALIBRATED: Final = ("w8a8", WIDE)
"""Schemes with ranges of activations in the file, which calibration data have to tell."""

METHODS: Final = {
    "equalization": "scale channels between layers so that they fill their ranges",
    "splitting": "copy channels that lose most to rounding before a depthwise convolution",
    "smoothing": "share the size of large features between inputs and weights of linear layers",
    "mse-ranges": "ranges of activations by squared error, not by the largest value seen",
    "bias-correction": "let biases make up for mean errors",
    "rounding": "round the weights of a layer together, not each by itself",
}
"""Methods of the plan maker, each of which can be left out."""

FLOAT_IO: Final = "float32"
PICTURE_IO: Final = "uint8"
NHWC_IO: Final = "float32-nhwc"
BORDERS: Final = {PICTURE_IO: "uint8", NHWC_IO: "float32"}
"""Ios of artifacts that take a picture with its channels last, and the type of that input: pixels,
or what `float32` takes but for the layout and the order of colours (`edgekit.runtime.border`)."""

IOS: Final = (FLOAT_IO, *BORDERS)
"""What an artifact takes at its border: the model's own tensors, or a picture (`BORDERS`)."""

NO_VNNI: Final = "x86-no-vnni"
OVERRIDES: Final = {NO_VNNI: ("openvino", "onnxruntime")}
"""Named overrides of a plan for an instruction set, with the targets whose kernels need them.

``x86-no-vnni``: x86 processors without VNNI, on which these targets' int8 kernels add products of
two u8 x s8 numbers in 16 bits, saturating (`edgekit.compress.saturation`).
"""

SCHEME_ALIASES: Final = {"int8": "w8a8", "float": "fp32", "float32": "fp32", "float16": "fp16"}

WAIVABLE: Final = ("smaller", "faster")
"""Gates of an export that hold an artifact against its float twin, and can be waived."""

EXTRAS: Final = (
    "tflite",
    "torch-mobile",
    "executorch",
    "coreml",
    "openvino",
    "onnxruntime",
    "keras",
    "nncf",
    "inc",
    "coremltools",
    "text",
    "recipes",
    "serve",
    "ray",
    "telemetry",
    "postgresql",
    "ota",
    "mlflow",
    "all",
    "dev",
)

EXIT_CODES: Final = {
    0: "ok",
    1: "a gate failed, or a target failed under --keep-going",
    2: "usage",
    3: "missing extra or tool",
    4: "device unreachable",
    5: "model or operator unsupported",
    6: "trust failure",
    7: "bad data",
    8: "no space or permission",
    9: "locked by another run",
    70: "a bug in edgekit",
    130: "interrupted",
}

VERIFICATIONS: Final = ("runtime", "emulated", "structural", "none")
"""How an artifact was verified, strongest first. ``runtime``: executed by its real runtime."""

STATUSES: Final = ("ok", "failed", "skipped")


def scheme_id(name: str) -> str:
    """The canonical scheme id of ``name``, resolving aliases such as ``int8``.

    Raises:
        ValueError: ``name`` is no scheme; the message suggests the nearest.
    """
    canonical = SCHEME_ALIASES.get(name, name)
    if canonical not in SCHEMES:
        raise ValueError(unknown("scheme", name, [*SCHEMES, *SCHEME_ALIASES]))
    return canonical


def artifact_id(
    target: str,
    scheme: str,
    variant: str | None = None,
    io: str = FLOAT_IO,
    delegate: str | None = None,
) -> str:
    """``<target>-<scheme>``, then delegate, variant and io where they are not the usual ones."""
    through = split_target(through_target(target, delegate))[1]
    parts = (target, scheme, through, variant, None if io == FLOAT_IO else io)
    return "-".join(filter(None, parts))


def through_target(target: str, delegate: str | None) -> str:
    """``TARGET:DELEGATE``, or the target alone where the delegate is its usual or only one."""
    return f"{target}:{delegate}" if delegate in DELEGATES.get(target, ())[1:] else target


def split_target(name: str) -> tuple[str, str | None]:
    """Target and delegate of what `through_target` gives; None for the usual delegate."""
    target, _, delegate = name.partition(":")
    return target, delegate or None


def unknown(kind: str, name: str, allowed: Iterable[str]) -> str:
    """A message for an unknown name: the culprit, the nearest allowed name, and the whole list."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{guess} Known: {', '.join(names) or 'none'}"


def install_command(extra: str) -> str:
    """The command that installs one extra."""
    return f"pip install 'edgekit[{extra}]'"
