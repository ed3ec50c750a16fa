"""What LiteRT's converter is told before it converts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx


def keep_pads_channels_last() -> None:
    """Lets the converter pad pictures in the channels-last layout that it gives to all around them.

    Without a rule for ``constant_pad_nd`` (litert-torch 0.10) it puts a transpose on either side of
    every padding that stands between quantize and dequantize operators.
    """
    import torch

    try:
        from litert_torch._convert.fx_passes.optimize_layout_transposes_pass import layout_rewrite
    except ImportError:  # moved in another version: the file is right, only slower
        return
    pad = torch.ops.aten.constant_pad_nd.default
    if pad not in layout_rewrite.rewriters:
        layout_rewrite.rewriters.register(pad)(_pad_channels_last)


def _pad_channels_last(node: Any) -> None:
    """Ends of [N, C, H, W] given as (W, W, H, H, C, C, N, N) become those of [N, H, W, C]."""
    ends = [*node.args[1], *[0] * (8 - len(node.args[1]))]
    width, height, channels, batch = (ends[i : i + 2] for i in (0, 2, 4, 6))
    node.args = (node.args[0], [*channels, *width, *height, *batch], *node.args[2:])


def one_reader_each(module: fx.GraphModule) -> None:
    """Gives every reader of a quantized tensor a dequantize operator of its own, in place.

    Where the converter (litert-torch 0.10) puts a transpose behind one, for a reader that wants
    another layout, it takes the operator itself to have changed its layout. Its other readers,
    results of the model among them, then got their axes mixed up.
    """
    for node in list(module.graph.nodes):
        if "dequantize_per_tensor" not in str(node.target):
            continue
        for reader in list(node.users)[1:]:
            with module.graph.inserting_before(reader):
                own = module.graph.node_copy(node)
            reader.replace_input_with(node, own)
    module.recompile()
