"""Core ML (``.mlpackage``, an ML Program) for iOS, iPadOS and macOS.

The plan is rendered as quantize and dequantize operators with integer weights, which the converter
keeps: ``quantize`` and ``dequantize`` for activations and ``constexpr_affine_dequantize`` for
weights, with the plan's scales and zero points. Core ML may compute what lies between them on
integers where the hardware has such kernels. Weights alone (``w8``, ``w4``) are restored from
``constexpr_affine_dequantize`` and ``constexpr_blockwise_shift_scale``. All of these compute in
float32, since scales of half precision would be others than the plan's; ``fp16`` computes in half
precision throughout, as Core ML does by default.

A package asks for the oldest system that has what its scheme needs, or that the converter writes it
for: iOS 16 (``fp32``, ``fp16``), iOS 17 (``w8a8``, ``w8``), iOS 18 (``w4``), and the other systems
of those years. Targets hear nothing of the devices that an artifact is for.

An artifact of io ``uint8`` takes an image, as Xcode and Vision know it: Core ML hands over pixels
of 0..255 in the model's order of colours, and scale and offset of each channel are operations of
the program (those of ``ImageType`` are one scale for all channels). With labels, it is a classifier
(`edgekit.targets._coreml_classifier`).

Core ML runs on macOS. Elsewhere a package is loaded by an emulation (`edgekit.targets._coreml_run`)
that evaluates its own operations, and what it proves is called ``emulated``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.names import FLOAT_IO, PICTURE_IO
from edgekit.signature import Signature
from edgekit.targets import Placement, Stored

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan
    from edgekit.runtime.session import Session
    from edgekit.targets._coreml_program import MilProgram


class Coreml:
    """The Core ML target."""

    id = "coreml"
    suffix = ".mlpackage"
    extra = "coreml"
    packages = ("coremltools",)
    schemes = ("w8a8", "fp16", "w8", "w4", "fp32")
    delegates = ("coreml",)
    ios = (FLOAT_IO, PICTURE_IO)
    systems: ClassVar[dict[str, tuple[str, ...]]] = {
        "fp32": ("iOS 16", "macOS 13"),
        "fp16": ("iOS 16", "macOS 13"),
        "w8": ("iOS 17", "macOS 14"),
        "w8a8": ("iOS 17", "macOS 14"),
        "w4": ("iOS 18", "macOS 15"),
    }
    """The oldest systems that load a package of a scheme."""

    def convert(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        signature: Signature,
        out: Path,
    ) -> list[Path]:
        """See `edgekit.targets.Target.convert`."""
        from edgekit.targets._coreml_convert import convert

        convert(program, plan, signature, out)
        return [out]

    def metadata(self, path: Path) -> dict[str, Any] | None:
        """The images that a package takes and the labels it gives; None where there are none."""
        from edgekit.targets._coreml_inspect import told

        return told(_program(path))

    def metadata_faults(
        self, path: Path, signature: Signature, about: Mapping[str, Any]
    ) -> list[str]:
        """Where images and labels are not those of the model, in words."""
        from edgekit.targets._coreml_inspect import told_otherwise

        return told_otherwise(_program(path), signature, about["preprocess"])

    def inspect(self, path: Path) -> Placement:
        """Operations of the program as it stands in the file; on a Mac, where they would run too.

        Core ML is the delegate itself: what it has a plan for, it runs.
        """
        from edgekit.runtime.coreml_plan import units
        from edgekit.targets._coreml_inspect import placement

        found, planned = placement(_program(path)), units(path)
        if not planned:
            return found
        return dataclasses.replace(found, ops_by_unit=planned, undelegated_ops=0)

    def stored(self, path: Path) -> list[Stored]:
        """Scales and zero points of the program's operations, and its compressed weights."""
        from edgekit.targets._coreml_inspect import stored

        return stored(_program(path))

    def open_session(self, path: Path, signature: Signature, threads: int) -> Session:
        """Core ML itself on macOS, elsewhere the emulation."""
        from edgekit.runtime import session

        if session.unavailable(self.id) is None:
            return session.open_session(self.id, path, signature, threads=threads)
        from edgekit.targets._coreml_run import EmulatedSession

        return EmulatedSession(path, signature, threads)


def _program(path: Path) -> MilProgram:
    from edgekit.targets._coreml_package import read
    from edgekit.targets._coreml_program import program_of

    return program_of(read(path))


TARGET = Coreml()
