"""PyTorch Mobile (``.ptl``), for apps that have its lite interpreter already.

ExecuTorch is its successor, for which new apps should export: torch (2.13) deprecates the
interpreter in its favour, and announces the end of the quantized tensors that it computes with.

The plan is rendered as operators of QNNPACK, the engine of phones' builds: activations are uint8
with the zero point moved by 128, which stands for the very same values, and weights int8 for each
channel. Its kernels add products of 16 bits in 32, so nothing saturates on a processor without
VNNI, and round every exact sum to the nearest integer. They leave nothing of the plan unrounded;
only pooling windows and resizing let a tie fall their own way.

Under ``w8a8-dyn`` linear layers quantize their input with one scale for the whole tensor; other
weights are stored as int8 and unpacked whenever they are read. There is no ``w8``, ``w4`` or
``fp16``, for which the interpreter has no kernels: all weights would be unpacked in every run.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.compress.arithmetic import PER_TENSOR
from edgekit.names import FLOAT_IO, PICTURE_IO
from edgekit.runtime.ptl import Program, operators_of, read_program
from edgekit.signature import Signature
from edgekit.targets import Placement, Stored
from edgekit.targets._common import converter_error

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan


class TorchMobile:
    """The PyTorch Mobile target."""

    id = "torch-mobile"
    suffix = ".ptl"
    extra = "torch-mobile"
    packages = ("torch",)
    schemes = ("w8a8", "fp32", "w8a8-dyn")
    delegates = ("qnnpack",)
    ios = (FLOAT_IO, PICTURE_IO)
    dynamic = PER_TENSOR

    def convert(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        signature: Signature,
        out: Path,
    ) -> list[Path]:
        """See `edgekit.targets.Target.convert`."""
        import torch

        from edgekit.compress.dynamic import as_computed
        from edgekit.compress.graph import example_args, graph_module
        from edgekit.targets._torch_mobile_file import qnnpack, saved
        from edgekit.targets._torch_mobile_lower import lower

        try:
            with warnings.catch_warnings(), torch.no_grad(), qnnpack():
                warnings.simplefilter("ignore")
                module = lower(program, as_computed(graph_module(program), plan, self))
                written = saved(module.eval(), example_args(program), signature)
        except Exception as error:
            raise converter_error(self.id, error) from error
        out.write_bytes(written)
        return [out]

    def inspect(self, path: Path) -> Placement:
        """The instructions of the file, which the runtime executes as they are."""
        from edgekit.targets import _torch_mobile_facts

        return _torch_mobile_facts.placement(_read(path))

    def stored(self, path: Path) -> list[Stored]:
        """Scales and zero points of every operator that gives integers, and packed weights."""
        from edgekit.targets import _torch_mobile_facts

        return _torch_mobile_facts.stored(_read(path))


def _read(path: Path) -> Program:
    import torch

    return read_program(path, operators_of(torch))


TARGET = TorchMobile()
