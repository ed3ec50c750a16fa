"""Operators of ML Programs in torch, by their published definitions: arithmetic and data movement.

What each of them computes is taken from the reference of MIL operators ("MIL Ops" in the guide of
coremltools), not from what a converter made them of. Tensors of half precision come as float32,
and what comes out is stored in the type that the program states (`edgekit.targets._coreml_run`).
Layers with weights, pooling, norms and quantization are in `edgekit.targets._coreml_layers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from edgekit.errors import UnsupportedError
from edgekit.targets._coreml_program import Port

__all__ = ["OPERATORS", "Arguments", "Operator", "operator"]

Tensor = torch.Tensor


class Arguments:
    """What one operation is given, by parameter: tensors, lists of them, or texts."""

    def __init__(self, kind: str, values: Mapping[str, Any]) -> None:
        self.kind = kind
        self._values = values

    def __getitem__(self, name: str) -> Tensor:
        """A tensor that has to be there."""
        value = self.get(name)
        if value is None:
            raise UnsupportedError(f"coreml: operator {self.kind!r} lacks its {name!r}")
        return value

    def get(self, name: str) -> Tensor | None:
        """A tensor, or None where it is not given."""
        value = self._values.get(name)
        return value if isinstance(value, Tensor) else None

    def many(self, name: str) -> list[Tensor]:
        """A list of tensors."""
        value = self._values[name]
        return list(value) if isinstance(value, list) else [value]

    def ints(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """Whole numbers; of a single one a list of one."""
        value = self.get(name)
        if value is None and default is not None:
            return list(default)
        return [int(v) for v in self[name].reshape(-1).tolist()]

    def whole(self, name: str, default: int | None = None) -> int:
        """One whole number."""
        return self.ints(name, None if default is None else [default])[0]

    def number(self, name: str, default: float) -> float:
        """One number."""
        value = self.get(name)
        return default if value is None else float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value."""
        value = self.get(name)
        return default if value is None else bool(value)

    def text(self, name: str, default: str) -> str:
        """A text."""
        return str(self._values.get(name, default))


Operator = Callable[[Arguments, Sequence[Port]], Tensor | Sequence[Tensor]]

OPERATORS: dict[str, Operator] = {}
"""By name; filled by `operator`."""


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Registers a function as the operators of these names."""

    def register(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = function
        return function

    return register


# -- one value at a time --------------------------------------------------------------------------

_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": lambda x: x.clamp(0, 6),
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": lambda x: x * torch.sigmoid(x),
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": torch.nn.functional.softplus,
    "softsign": torch.nn.functional.softsign,
    "sqrt": torch.sqrt,
    "square": lambda x: x * x,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "sub": torch.sub,
}


def _plain(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda a, out: function(a["x"])


def _pair(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda a, out: function(a["x"], a["y"])


OPERATORS.update({name: _plain(function) for name, function in _ONE.items()})
OPERATORS.update({name: _pair(function) for name, function in _TWO.items()})


@operator("real_div")
def _real_div(a: Arguments, out: Sequence[Port]) -> Tensor:
    if not a["x"].is_floating_point():
        raise UnsupportedError("coreml: the emulation has no 'real_div' of whole numbers")
    return a["x"] / a["y"]


@operator("cast")
def _cast(a: Arguments, out: Sequence[Port]) -> Tensor:
    return a["x"]  # stored in the output's type, to which numbers are cut off


@operator("clip")
def _clip(a: Arguments, out: Sequence[Port]) -> Tensor:
    return a["x"].clamp(a.number("alpha", -math.inf), a.number("beta", math.inf))


@operator("threshold")
def _threshold(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.clamp(a["x"], min=a.number("alpha", 0.0))


@operator("thresholded_relu")
def _thresholded_relu(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.where(a["x"] >= a.number("alpha", 1.0), a["x"], torch.zeros_like(a["x"]))


@operator("clamped_relu")
def _clamped_relu(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    return torch.where(x >= 0, x, x * a.number("alpha", 1.0)).clamp(max=a.number("beta", math.inf))


@operator("rsqrt")
def _rsqrt(a: Arguments, out: Sequence[Port]) -> Tensor:
    return 1 / torch.sqrt(a["x"] + a.number("epsilon", 1e-12))


@operator("inverse")
def _inverse(a: Arguments, out: Sequence[Port]) -> Tensor:
    return 1 / (a["x"] + a.number("epsilon", 1e-4))


@operator("log")
def _log(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.log(a["x"] + a.number("epsilon", 1e-45))


@operator("leaky_relu")
def _leaky_relu(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.where(a["x"] > 0, a["x"], a["x"] * a.number("alpha", 0.01))


@operator("prelu")
def _prelu(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    alpha = a["alpha"].reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, x * alpha)


@operator("elu")
def _elu(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.where(a["x"] > 0, a["x"], a.number("alpha", 1.0) * torch.expm1(a["x"]))


@operator("gelu")
def _gelu(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, mode = a["x"], a.text("mode", "EXACT")
    if mode == "EXACT":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if mode == "TANH_APPROXIMATION":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + torch.tanh(inner))
    return x * torch.sigmoid(1.702 * x)


@operator("sigmoid_hard")
def _sigmoid_hard(a: Arguments, out: Sequence[Port]) -> Tensor:
    return (a.number("alpha", 0.2) * a["x"] + a.number("beta", 0.5)).clamp(0, 1)


@operator("scaled_tanh")
def _scaled_tanh(a: Arguments, out: Sequence[Port]) -> Tensor:
    return a.number("alpha", 1.0) * torch.tanh(a["x"] * a.number("beta", 1.0))


@operator("linear_activation")
def _linear_activation(a: Arguments, out: Sequence[Port]) -> Tensor:
    return a["x"] * a.number("alpha", 1.0) + a.number("beta", 0.0)


@operator("select")
def _select(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.where(a["cond"].bool(), a["a"], a["b"])


# -- over axes ------------------------------------------------------------------------------------

_OVER_AXES: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: (x * x).sum(axes, keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "reduce_max": lambda x, axes, keep: torch.amax(x, axes, keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keep),
    "reduce_min": lambda x, axes, keep: torch.amin(x, axes, keep),
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keep),
    "reduce_sum_square": lambda x, axes, keep: (x * x).sum(axes, keep),
}


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def reduce(a: Arguments, out: Sequence[Port]) -> Tensor:
        axes = a.ints("axes", range(a["x"].ndim))
        return function(a["x"], axes, a.flag("keep_dims"))

    return reduce


OPERATORS.update({name: _reduction(function) for name, function in _OVER_AXES.items()})


@operator("reduce_prod")
def _reduce_prod(a: Arguments, out: Sequence[Port]) -> Tensor:
    result = a["x"]
    for axis in a.ints("axes", range(result.ndim)):
        result = result.prod(axis, keepdim=True)
    return result.reshape(out[0].shape)


@operator("reduce_argmax", "reduce_argmin")
def _reduce_argmax(a: Arguments, out: Sequence[Port]) -> Tensor:
    find = torch.argmax if a.kind == "reduce_argmax" else torch.argmin
    return find(a["x"], dim=a.whole("axis", -1), keepdim=a.flag("keep_dims"))


@operator("softmax")
def _softmax(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.softmax(a["x"], a.whole("axis", -1))


@operator("cumsum")
def _cumsum(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, axis = a["x"], a.whole("axis", 0)
    x = x.flip(axis) if a.flag("reverse") else x
    summed = x.cumsum(axis)
    summed = summed - x if a.flag("exclusive") else summed
    return summed.flip(axis) if a.flag("reverse") else summed


@operator("topk")
def _topk(a: Arguments, out: Sequence[Port]) -> Sequence[Tensor]:
    largest, axis = not a.flag("ascending"), a.whole("axis", -1)
    values, indices = torch.topk(a["x"], a.whole("k", 1), dim=axis, largest=largest)
    return values, indices


@operator("argsort")
def _argsort(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.sort(
        a["x"], dim=a.whole("axis", -1), descending=not a.flag("ascending"), stable=True
    ).indices


# -- where values lie -----------------------------------------------------------------------------


@operator("reshape")
def _reshape(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    shape = [x.shape[i] if n == 0 else n for i, n in enumerate(a.ints("shape"))]
    return x.reshape(shape)


@operator("transpose")
def _transpose(a: Arguments, out: Sequence[Port]) -> Tensor:
    return a["x"].permute(a.ints("perm"))


@operator("squeeze")
def _squeeze(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    ones = [i for i, n in enumerate(x.shape) if n == 1]
    return x.squeeze(tuple(a.ints("axes", ones)))


@operator("expand_dims")
def _expand_dims(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, axes = a["x"], a.ints("axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("flatten2d")
def _flatten2d(a: Arguments, out: Sequence[Port]) -> Tensor:
    axis = a.whole("axis", 1) % (a["x"].ndim + 1)
    return a["x"].reshape(math.prod(a["x"].shape[:axis]), -1)


@operator("concat")
def _concat(a: Arguments, out: Sequence[Port]) -> Tensor:
    values, axis = a.many("values"), a.whole("axis")
    if not a.flag("interleave"):
        return torch.cat(values, axis)
    return torch.stack(values, axis % values[0].ndim + 1).reshape(out[0].shape)


@operator("stack")
def _stack(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.stack(a.many("values"), a.whole("axis"))


@operator("split")
def _split(a: Arguments, out: Sequence[Port]) -> Sequence[Tensor]:
    axis = a.whole("axis")
    sizes = a.get("split_sizes")
    if sizes is not None:
        return torch.split(a["x"], a.ints("split_sizes"), axis)
    return torch.chunk(a["x"], a.whole("num_splits"), axis)


@operator("slice_by_index")
def _slice_by_index(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    rank = x.ndim
    begin, end, stride = a.ints("begin"), a.ints("end"), a.ints("stride", [1] * rank)
    none = [0] * rank
    masks = [a.ints(m, none) for m in ("begin_mask", "end_mask", "squeeze_mask")]
    for i, (from_, to, one) in enumerate(zip(*masks, strict=True)):
        if one:
            chosen = torch.tensor([begin[i] % x.shape[i]])
        else:
            first, last = None if from_ else begin[i], None if to else end[i]
            chosen = torch.tensor(range(x.shape[i])[first : last : stride[i]], dtype=torch.int64)
        x = x.index_select(i, chosen)
    return x.squeeze(tuple(i for i, one in enumerate(masks[2]) if one)) if any(masks[2]) else x


@operator("slice_by_size")
def _slice_by_size(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    for i, (begin, size) in enumerate(zip(a.ints("begin"), a.ints("size"), strict=True)):
        begin = begin % x.shape[i] if begin < 0 else begin
        x = x.narrow(i, begin, x.shape[i] - begin if size == -1 else size)
    return x


@operator("crop")
def _crop(a: Arguments, out: Sequence[Port]) -> Tensor:
    x = a["x"]
    for axis, name in ((-2, "crop_height"), (-1, "crop_width")):
        before, after = a.ints(name)
        x = x.narrow(axis, before, x.shape[axis] - before - after)
    return x


@operator("pad")
def _pad(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, mode = a["x"], a.text("mode", "constant")
    pairs = [tuple(a.ints("pad")[i : i + 2]) for i in range(0, len(a.ints("pad")), 2)]
    turned = [n for pair in reversed(pairs) for n in pair]
    if mode == "constant":
        return torch.nn.functional.pad(x, turned, value=a.number("constant_val", 0.0))
    for axis, (before, after) in zip(range(x.ndim - len(pairs), x.ndim), pairs, strict=True):
        places = torch.arange(-before, x.shape[axis] + after)
        last = x.shape[axis] - 1
        if mode == "reflect":
            places = last - (last - places.abs()).abs()
        x = x.index_select(axis, places.clamp(0, last))
    return x


@operator("tile")
def _tile(a: Arguments, out: Sequence[Port]) -> Tensor:
    return a["x"].repeat(a.ints("reps"))


@operator("reverse")
def _reverse(a: Arguments, out: Sequence[Port]) -> Tensor:
    return a["x"].flip(a.ints("axes", range(a["x"].ndim)))


@operator("gather")
def _gather(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, indices = a["x"], a["indices"].long()
    if a.whole("batch_dims", 0):
        raise UnsupportedError("coreml: the emulation has no 'gather' with batch_dims")
    axis = a.whole("axis", 0) % x.ndim
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    chosen = x.index_select(axis, indices.reshape(-1))
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("gather_along_axis")
def _gather_along_axis(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, indices, axis = a["x"], a["indices"].long(), a.whole("axis", 0)
    return torch.take_along_dim(x, torch.where(indices < 0, indices + x.shape[axis], indices), axis)


@operator("gather_nd")
def _gather_nd(a: Arguments, out: Sequence[Port]) -> Tensor:
    if a.whole("batch_dims", 0):
        raise UnsupportedError("coreml: the emulation has no 'gather_nd' with batch_dims")
    chosen: Tensor = a["x"][tuple(a["indices"].long().unbind(-1))]
    return chosen


@operator("one_hot")
def _one_hot(a: Arguments, out: Sequence[Port]) -> Tensor:
    classes = torch.arange(a.whole("one_hot_vector_size"))
    axis = a.whole("axis", -1) % (a["indices"].ndim + 1)
    hot = (a["indices"].long().unsqueeze(-1) == classes).movedim(-1, axis)
    return torch.where(hot, a.number("on_value", 1), a.number("off_value", 0))


@operator("fill")
def _fill(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.full(tuple(a.ints("shape")), a.number("value", 0.0))


@operator("fill_like")
def _fill_like(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.full(a["ref_tensor"].shape, a.number("value", 0.0))


@operator("range_1d")
def _range_1d(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.arange(a.number("start", 0), a.number("end", 0), a.number("step", 1))


@operator("shape")
def _shape(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.tensor(a["x"].shape)


@operator("band_part")
def _band_part(a: Arguments, out: Sequence[Port]) -> Tensor:
    x, lower, upper = a["x"], a.whole("lower", -1), a.whole("upper", -1)
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
    kept = (lower < 0) | (rows - columns <= lower)
    kept = torch.as_tensor(kept) & torch.as_tensor((upper < 0) | (columns - rows <= upper))
    return torch.where(kept, x, torch.zeros_like(x))


@operator("pixel_shuffle")
def _pixel_shuffle(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.pixel_shuffle(a["x"], a.whole("upscale_factor"))


@operator("pixel_unshuffle")
def _pixel_unshuffle(a: Arguments, out: Sequence[Port]) -> Tensor:
    return torch.pixel_unshuffle(a["x"], a.whole("downscale_factor"))


@operator("depth_to_space")
def _depth_to_space(a: Arguments, out: Sequence[Port]) -> Tensor:
    n, c, h, w = a["x"].shape
    b = a.whole("block_size")
    blocks = a["x"].reshape(n, b, b, c // b**2, h, w)  # depth in the order of TensorFlow
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


@operator("space_to_depth")
def _space_to_depth(a: Arguments, out: Sequence[Port]) -> Tensor:
    n, c, h, w = a["x"].shape
    b = a.whole("block_size")
    blocks = a["x"].reshape(n, c, h // b, b, w // b, b)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)
