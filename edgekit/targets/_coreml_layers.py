"""Operators of ML Programs in torch, by their published definitions: layers and quantization.

See `edgekit.targets._coreml_operators`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from edgekit.errors import UnsupportedError
from edgekit.targets._coreml_operators import OPERATORS, Arguments, operator
from edgekit.targets._coreml_program import Port

__all__ = ["OPERATORS"]

Tensor = torch.Tensor

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}

Pads = list[tuple[int, int]]
"""Elements before and after, for each spatial dimension."""


def _pads(a: Arguments, sizes: Sequence[int], windows: Sequence[int], strides: list[int]) -> Pads:
    """What ``pad_type`` and ``pad`` say for windows that reach so far."""
    kind = a.text("pad_type", "valid")
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        pad = a.ints("pad", [0] * 2 * len(sizes))
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(sizes))]
    pads = []
    for size, window, stride in zip(sizes, windows, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
        less, more = total // 2, total - total // 2
        pads.append((more, less) if kind == "same_lower" else (less, more))
    return pads


def _padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    flat = [n for pair in reversed(pads) for n in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


@operator("conv")
def _conv(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, weight = a["x"], a["weight"]
    spatial = x.ndim - 2
    ones = [1] * spatial
    strides, dilations = a.ints("strides", ones), a.ints("dilations", ones)
    windows = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pads = _pads(a, x.shape[2:], windows, strides)
    # Padding on both sides alike is left to the convolution, which makes no copy for it.
    even = [before if before == after else 0 for before, after in pads]
    rest = [(b - e, f - e) for (b, f), e in zip(pads, even, strict=True)]
    return _CONV[spatial](
        _padded(x, rest), weight, a.get("bias"), strides, even, dilations, a.whole("groups", 1)
    )


@operator("conv_transpose")
def _conv_transpose(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, weight = a["x"], a["weight"]
    spatial = x.ndim - 2
    ones = [1] * spatial
    strides, dilations = a.ints("strides", ones), a.ints("dilations", ones)
    whole = _TRANSPOSED[spatial](x, weight, None, strides, 0, 0, a.whole("groups", 1), dilations)
    kind = a.text("pad_type", "valid")
    cut: list[int] = [0] * spatial
    if kind == "custom":
        cut = a.ints("pad", [0] * 2 * spatial)[::2]
    elif kind != "valid":
        wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        cut = [(n - w) // 2 for n, w in zip(whole.shape[2:], wanted, strict=True)]
    for axis, (first, size) in enumerate(zip(cut, out[0].shape[2:], strict=True), 2):
        missing = first + size - whole.shape[axis]
        if missing > 0:  # an output shape that reaches beyond what the windows touch
            ends = [(0, missing if axis == 2 + i else 0) for i in range(spatial)]
            whole = _padded(whole, ends)
        whole = whole.narrow(axis, first, size)
    bias = a.get("bias")
    return whole if bias is None else whole + bias.reshape(-1, *ones)


@operator("linear")
def _linear(a: Arguments, out: Sequence[Port]) -> Tensor:
    return functional.linear(a["x"], a["weight"], a.get("bias"))


@operator("matmul")
def _matmul(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, y = a["x"], a["y"]
    x = x.transpose(-1, -2) if a.flag("transpose_x") else x
    return torch.matmul(x, y.transpose(-1, -2) if a.flag("transpose_y") else y)


@operator("scaled_dot_product_attention")
def _attention(a: Arguments, out: Sequence[Port]) -> Tensor:
    query, key = a["query"], a["key"]
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    mask = a.get("attn_mask")
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ a["value"]


# -- pooling --------------------------------------------------------------------------------------


def _pool_pads(a: Arguments, out: Sequence[Port]) -> tuple[list[int], list[int], Pads, Pads]:
    """Windows, strides, padding, and what lies beyond it under ``ceil_mode``."""
    x, kernel = a["x"], a.ints("kernel_sizes")
    strides = a.ints("strides", [1] * len(kernel))
    pads = _pads(a, x.shape[2:], kernel, strides)
    beyond = []
    for i, (before, after) in enumerate(pads):
        reach = (out[0].shape[2 + i] - 1) * strides[i] + kernel[i]
        beyond.append((0, max(0, reach - x.shape[2 + i] - before - after)))
    return kernel, strides, pads, beyond


@operator("max_pool")
def _max_pool(a: Arguments, out: Sequence[Port]) -> Tensor:
    kernel, strides, pads, beyond = _pool_pads(a, out)
    x = _padded(_padded(a["x"], pads, -math.inf), beyond, -math.inf)
    result: Tensor = _MAX[len(kernel)](x, kernel, strides)
    return result


@operator("avg_pool")
def _avg_pool(a: Arguments, out: Sequence[Port]) -> Tensor:
    kernel, strides, pads, beyond = _pool_pads(a, out)
    average = _AVERAGE[len(kernel)]
    x = _padded(_padded(a["x"], pads), beyond)
    excluded = a.flag("exclude_padding_from_average")
    if not any(any(pair) for pair in beyond) and not (excluded and any(map(any, pads))):
        return average(x, kernel, strides)
    # What is counted is another mean: of ones where there is something, and zeros elsewhere.
    counted = torch.ones_like(a["x"][:1, :1])
    counted = _padded(_padded(counted, pads, 0.0 if excluded else 1.0), beyond)
    return average(x, kernel, strides) / average(counted, kernel, strides)


# -- resizing -------------------------------------------------------------------------------------


@operator("upsample_nearest_neighbor", "resize_nearest_neighbor")
def _nearest(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    for axis in (-2, -1):
        size, wanted = x.shape[axis], out[0].shape[axis]
        places = (torch.arange(wanted) * size) // wanted
        x = x.index_select(axis, places.clamp(0, size - 1))
    return x


def _sampled(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """Linear interpolation between neighbours along an axis."""
    last = x.shape[axis] - 1
    places = places.clamp(0, last)
    low = places.floor().long()
    high = (low + 1).clamp(max=last)
    share = (places - low).reshape(-1, *[1] * (-1 - axis)).to(x.dtype)
    lower, upper = x.index_select(axis, low), x.index_select(axis, high)
    return lower * (1 - share) + upper * share


@operator("upsample_bilinear")
def _upsample_bilinear(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, aligned = a["x"], a.flag("align_corners", True)
    halves = a.flag("half_pixel_centers", not aligned)
    for axis in (-2, -1):
        size, wanted = x.shape[axis], out[0].shape[axis]
        steps = torch.arange(wanted, dtype=torch.float64)
        if aligned:
            places = steps * ((size - 1) / max(wanted - 1, 1))
        else:
            spacing = size / wanted
            places = steps * spacing + (0.5 * spacing - 0.5 if halves else 0.0)
        x = _sampled(x, axis, places)
    return x


@operator("resize_bilinear")
def _resize_bilinear(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, mode = a["x"], a.text("sampling_mode", "DEFAULT")
    for axis in (-2, -1):
        size, wanted = x.shape[axis], out[0].shape[axis]
        x = _sampled(x, axis, _grid(mode, size, wanted))
    return x


def _grid(mode: str, size: int, wanted: int) -> Tensor:
    """Where the samples of ``resize_bilinear`` lie, before they are held within the input."""
    steps = torch.arange(wanted, dtype=torch.float64)
    gaps = max(wanted - 1, 1)
    if mode == "ALIGN_CORNERS" and wanted == 1:
        return steps + (size - 1) / 2
    if mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        return steps * ((size - 1) / gaps)
    if mode == "DEFAULT":
        return steps * ((size - size / wanted) / gaps)
    if mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / wanted
        return 0.5 * delta + steps * delta
    if mode == "UNALIGN_CORNERS":
        spacing = size / wanted
        return steps * spacing + 0.5 * spacing - 0.5
    raise UnsupportedError(f"coreml: the emulation has no 'resize_bilinear' in mode {mode!r}")


# -- norms ----------------------------------------------------------------------------------------


@operator("layer_norm")
def _layer_norm(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    axes = [axis % x.ndim for axis in a.ints("axes", range(x.ndim))]
    shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
    centred = x - x.mean(axes, keepdim=True)
    variance = (centred * centred).mean(axes, keepdim=True)
    return _scaled(a, centred / torch.sqrt(variance + a.number("epsilon", 1e-5)), shape)


@operator("instance_norm")
def _instance_norm(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    axes = list(range(2, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    variance = (centred * centred).mean(axes, keepdim=True)
    shape = [1, x.shape[1], *[1] * len(axes)]
    return _scaled(a, centred / torch.sqrt(variance + a.number("epsilon", 1e-5)), shape)


@operator("batch_norm")
def _batch_norm(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    shape = [1, x.shape[1], *[1] * (x.ndim - 2)]
    mean, variance = a["mean"].reshape(shape), a["variance"].reshape(shape)
    return _scaled(a, (x - mean) / torch.sqrt(variance + a.number("epsilon", 1e-5)), shape)


def _scaled(a: Arguments, x: Tensor, shape: list[int]) -> Tensor:
    gamma, beta = a.get("gamma"), a.get("beta")
    x = x if gamma is None else x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


@operator("l2_norm")
def _l2_norm(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    total = (x * x).sum(tuple(range(-3, 0)), keepdim=True)
    return x / torch.sqrt(total + a.number("epsilon", 1e-6))


# -- quantization ---------------------------------------------------------------------------------

_LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(value: Tensor, rank: int, axis: int | None) -> Tensor:
    """A scale or zero point, shaped to meet a tensor of that rank."""
    if value.ndim == 0 or axis is None:
        return value
    return value.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _axis(a: Arguments) -> int | None:
    return None if a.get("axis") is None else a.whole("axis")


@operator("quantize")
def _quantize(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, zero = a["input"], a.get("zero_point")
    low, high = _LIMITS[a.text("output_dtype", "int8")]
    steps = torch.round(x / _along(a["scale"], x.ndim, _axis(a)))  # halves to even
    if zero is not None:
        steps = steps + _along(zero.float(), x.ndim, _axis(a))
    return steps.clamp(low, high)


@operator("dequantize")
def _dequantize(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, zero = a["input"].float(), a.get("zero_point")
    if zero is not None:
        x = x - _along(zero.float(), x.ndim, _axis(a))
    return x * _along(a["scale"], x.ndim, _axis(a))


@operator("constexpr_affine_dequantize")
def _constexpr_affine(a: Arguments, out: Sequence[Port]) -> Tensor:
    data = a["quantized_data"].float()
    zero = _along(a["zero_point"].float(), data.ndim, _axis(a))
    return _along(a["scale"], data.ndim, _axis(a)) * (data - zero)


@operator("constexpr_blockwise_shift_scale")
def _constexpr_blocks(a: Arguments, out: Sequence[Port]) -> Tensor:
    data, scale, offset = a["data"].float(), a["scale"], a.get("offset")
    for axis in range(data.ndim):
        if scale.shape[axis] in (1, data.shape[axis]):
            continue
        block = data.shape[axis] // scale.shape[axis]
        scale = scale.repeat_interleave(block, axis)
        offset = None if offset is None else offset.repeat_interleave(block, axis)
    return scale * (data if offset is None else data - offset.float())


@operator("constexpr_cast")
def _constexpr_cast(a: Arguments, out: Sequence[Port]) -> Tensor:
    return a["source_val"]
