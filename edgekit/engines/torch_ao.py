"""torch's own quantizer for phones: FX graph mode with the defaults of its QNNPACK back end.

Its guide's way to PyTorch Mobile: ``get_default_qconfig_mapping("qnnpack")``, `prepare_fx`, the
samples, `convert_fx`, trace, and a file for the lite interpreter. The guide ends with
`optimize_for_mobile`, which needs a torch built with XNNPACK, and no wheel is: of its passes, the
one that takes modules apart (freezing) is done here, and what it would do to layers left in float
is not.

One thing is mended in what it makes. QNNPACK's kernel for clamps (torch 2.13) mixes up pictures
whose channels lie last, as its convolutions give them, and this quantizer leaves every ReLU6 to it:
two convolutions with one each answered at 12 dB of the float network, and at 41 dB by torch's
kernels for x86. A clamp is given the same numbers with their axes moved.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.engines._common import samples
from edgekit.errors import UnsupportedError
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch
    from torch import fx
    from torch.ao.quantization import QConfigMapping

    from edgekit.engines import Feeds


class TorchAo:
    """The engine of `torch.ao.quantization`'s FX graph mode."""

    id = "torch-ao"
    extra = "torch-mobile"
    packages = ("torch",)
    targets = ("torch-mobile",)
    defaults: Mapping[str, Any] = {"backend": "qnnpack", "version": 0, "per_channel": True}

    def quantize(
        self,
        program: torch.export.ExportedProgram,
        feeds: Feeds,
        signature: Signature,
        target: str,
        out: Path,
        settings: Mapping[str, Any],
    ) -> list[Path]:
        """See `edgekit.engines.Engine.quantize`; ``backend`` and ``version`` as
        `get_default_qconfig_mapping` has them. ``per_channel`` gives each channel's weights a scale
        of its own, where that mapping has one for the whole layer.
        """
        import torch
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        from edgekit.compress.graph import example_args
        from edgekit.engines._layers import layered
        from edgekit.targets._torch_mobile_file import qnnpack, saved

        args = example_args(program)
        with warnings.catch_warnings(), torch.no_grad(), qnnpack():
            warnings.simplefilter("ignore")
            model = layered(program).eval()
            clamps = _clamps(model)
            prepared = prepare_fx(model, _mapping(settings), args)
            for feed in samples(feeds):
                prepared(*feed)
            module = convert_fx(prepared).eval()
            _check(module)
            _move_axes(module, clamps)
            out.write_bytes(saved(module, args, signature, freeze=True))
        return [out]


def _mapping(settings: Mapping[str, Any]) -> QConfigMapping:
    """The vendor's mapping; by channel, but for transposed layers, whose kernels take one scale."""
    from torch.ao.quantization import (
        default_per_channel_weight_observer,
        default_weight_observer,
        get_default_qconfig_mapping,
    )

    mapping = get_default_qconfig_mapping(settings["backend"], settings["version"])
    if settings["per_channel"]:
        given = mapping.global_qconfig
        assert given is not None and given.weight is default_weight_observer
        mapping.set_global(given._replace(weight=default_per_channel_weight_observer))
    return mapping


def _clamps(module: fx.GraphModule) -> set[str]:
    """Names of the layers that clamp pictures."""
    from torch import nn

    return {
        str(node.target)
        for node in module.graph.nodes
        if node.op == "call_module"
        and isinstance(module.get_submodule(str(node.target)), nn.Hardtanh)  # ReLU6 is one
        and node.meta["val"].dim() == 4
    }


def _move_axes(module: fx.GraphModule, clamps: set[str]) -> None:
    """Has ``clamps`` compute with the channels as the last axis; in place."""
    import torch

    for node in list(module.graph.nodes):
        if node.op != "call_module" or node.target not in clamps:
            continue
        with module.graph.inserting_before(node):
            moved = module.graph.call_function(torch.permute, (node.args[0], (0, 2, 3, 1)))
        with module.graph.inserting_after(node):
            back = module.graph.call_function(torch.permute, (node, (0, 3, 1, 2)))
        node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)
        node.args = (moved,)
    module.recompile()


def _check(module: fx.GraphModule) -> None:
    """Refuses a graph without a layer of torch's quantized ones.

    Raises:
        UnsupportedError: nothing that computes was quantized.
    """
    if not any("ao.nn" in type(layer).__module__ for layer in module.modules()):
        raise UnsupportedError("engine 'torch-ao' found nothing to quantize in this model")


ENGINE = TorchAo()
