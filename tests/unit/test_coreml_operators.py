"""The emulation's operators, against two references that are not ours.

Where coremltools computes an operator itself, to fold constants, that is the reference: Apple's own
numpy, given the same parameters and no others, so that defaults count too. For layers, which it
does not fold, torch is.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekit.errors import BadData, UnsupportedError
from edgekit.targets._coreml_package import quiet
from edgekit.targets._coreml_program import Constant, Operation, Port
from edgekit.targets._coreml_run import evaluate

Array = np.ndarray[Any, Any]

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
Y = RNG.normal(size=(2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.1)
UNIT = np.tanh(X)
IMAGE = RNG.normal(size=(1, 4, 4, 6)).astype(np.float32)
WHOLE = RNG.integers(-5, 6, (2, 3, 4)).astype(np.int32)
TRUE = X > 0
BYTES = RNG.integers(-128, 128, (2, 3, 4)).astype(np.int8)
SCALES = np.array([0.1, 0.25, 0.02], np.float32)

ONE = {
    **dict.fromkeys(["abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor"], X),
    **dict.fromkeys(["relu", "relu6", "round", "sigmoid", "sign", "sin", "sinh", "square"], X),
    **dict.fromkeys(["identity", "softplus", "softsign", "tan", "tanh", "softmax", "gelu"], X),
    **dict.fromkeys(["sqrt", "rsqrt", "log", "inverse"], POSITIVE),
    **dict.fromkeys(["acos", "asin", "atanh"], UNIT),
    **dict.fromkeys(["logical_not"], TRUE),
    **dict.fromkeys(["elu"], X),
}
TWO = ["add", "sub", "mul", "real_div", "maximum", "minimum", "floor_div", "mod"]
COMPARE = ["equal", "not_equal", "greater", "greater_equal", "less", "less_equal"]
REDUCE = ["l1_norm", "l2_norm", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square"]

FOLDED: list[tuple[str, dict[str, Any]]] = [
    *((name, {"x": x, **({"alpha": 0.5} if name == "elu" else {})}) for name, x in ONE.items()),
    *((name, {"x": X, "y": Y[:1]}) for name in TWO),
    *((name, {"x": WHOLE, "y": WHOLE[:, :1]}) for name in COMPARE),
    *((name, {"x": TRUE, "y": Y > 0}) for name in ("logical_and", "logical_or", "logical_xor")),
    *((f"reduce_{n}", {"x": X, "axes": [1, 2], "keep_dims": False}) for n in REDUCE),
    *((f"reduce_{n}", {"x": X}) for n in ("sum", "max", "prod")),
    ("reduce_log_sum", {"x": POSITIVE, "axes": [-1]}),
    ("reduce_argmax", {"x": X, "axis": 1, "keep_dims": True}),
    ("reduce_argmin", {"x": X, "axis": -1}),
    ("pow", {"x": POSITIVE, "y": np.float32(2.5)}),
    ("gelu", {"x": X, "mode": "TANH_APPROXIMATION"}),
    ("gelu", {"x": X, "mode": "SIGMOID_APPROXIMATION"}),
    ("softmax", {"x": X, "axis": 1}),
    ("clip", {"x": X, "alpha": np.float32(-0.5), "beta": np.float32(0.75)}),
    ("threshold", {"x": X, "alpha": np.float32(0.2)}),
    ("thresholded_relu", {"x": X, "alpha": np.float32(0.2)}),
    ("clamped_relu", {"x": X, "alpha": np.float32(0.2), "beta": np.float32(0.5)}),
    ("leaky_relu", {"x": X, "alpha": np.float32(0.1)}),
    ("prelu", {"x": IMAGE, "alpha": np.array([0.1, 0.2, 0.3, 0.4], np.float32)}),
    ("sigmoid_hard", {"x": X, "alpha": np.float32(1 / 6), "beta": np.float32(0.5)}),
    ("scaled_tanh", {"x": X, "alpha": np.float32(1.5), "beta": np.float32(0.5)}),
    ("linear_activation", {"x": X, "alpha": np.float32(2), "beta": np.float32(-1)}),
    ("log", {"x": POSITIVE, "epsilon": np.float32(0.1)}),
    ("cast", {"x": 3 * X, "dtype": "int32"}),
    ("cast", {"x": WHOLE, "dtype": "bool"}),
    ("cast", {"x": WHOLE, "dtype": "fp32"}),
    ("select", {"cond": TRUE, "a": X, "b": Y}),
    ("cumsum", {"x": X, "axis": 1, "reverse": True}),
    ("cumsum", {"x": X, "axis": 2}),
    ("topk", {"x": X, "k": 2, "axis": -1}),
    ("topk", {"x": X, "k": 3, "axis": 2, "ascending": True}),
    ("argsort", {"x": X, "axis": 1}),
    ("argsort", {"x": X, "axis": -1, "ascending": True}),
    ("reshape", {"x": X, "shape": [0, 2, -1]}),
    ("reshape", {"x": X, "shape": [6, -1]}),
    ("transpose", {"x": X, "perm": [2, 0, 1]}),
    ("squeeze", {"x": X[:, :1]}),
    ("squeeze", {"x": X[:1, :1], "axes": [1]}),
    ("expand_dims", {"x": X, "axes": [0, -1]}),
    ("flatten2d", {"x": X, "axis": 2}),
    ("concat", {"values": [X, Y[:, :2]], "axis": 1}),
    ("stack", {"values": [X, Y], "axis": 1}),
    ("split", {"x": X, "num_splits": 2, "axis": 2}),
    ("split", {"x": X, "split_sizes": [1, 2], "axis": 1}),
    ("slice_by_index", {"x": X, "begin": [0, 2, -1], "end": [2, 0, -4], "stride": [1, -1, -2]}),
    (
        "slice_by_index",
        {
            **{"x": X, "begin": [1, 0, 1], "end": [0, 2, 0], "squeeze_mask": [True, False, False]},
            **{"begin_mask": [False, True, False], "end_mask": [False, False, True]},
        },
    ),
    ("slice_by_size", {"x": X, "begin": [0, 1, 1], "size": [1, -1, 2]}),
    ("pad", {"x": X, "pad": [1, 0, 2, 1], "constant_val": np.float32(0.5)}),
    ("pad", {"x": X, "pad": [1, 2], "mode": "reflect"}),
    ("pad", {"x": X, "pad": [3, 1], "mode": "replicate"}),
    ("tile", {"x": X, "reps": [2, 1, 3]}),
    ("reverse", {"x": X, "axes": [0, 2]}),
    ("gather", {"x": X, "indices": np.array([[2, 0], [1, 1]], np.int32), "axis": 1}),
    ("gather", {"x": X, "indices": np.int32(1), "axis": 2}),
    ("gather_along_axis", {"x": X, "indices": WHOLE % 3, "axis": 1}),
    ("fill", {"shape": [2, 3], "value": np.float32(0.25)}),
    ("range_1d", {"start": np.int32(2), "end": np.int32(9), "step": np.int32(3)}),
    ("shape", {"x": X}),
    ("band_part", {"x": X, "lower": 0, "upper": 1}),
    ("band_part", {"x": X, "lower": -1, "upper": 0}),
    ("linear", {"x": X, "weight": RNG.normal(size=(5, 4)).astype(np.float32)}),
    ("matmul", {"x": X, "y": Y, "transpose_y": True}),
    ("matmul", {"x": X, "y": Y, "transpose_x": True}),
    ("layer_norm", {"x": X, "axes": [1, 2], "gamma": Y[0], "beta": Y[1], "epsilon": 1e-3}),
    ("layer_norm", {"x": X, "axes": [-1]}),
    ("quantize", {"input": X, "scale": np.float32(0.01), "output_dtype": "int8"}),
    (
        "quantize",
        {
            **{"input": X, "scale": SCALES, "zero_point": np.array([3, 128, 0], np.uint8)},
            **{"output_dtype": "uint8", "axis": 1},
        },
    ),
]
"""What coremltools folds: operators and their parameters."""

DTYPES = {"fp32": "float32", "fp16": "float16"}


def constant(value: Any) -> Constant:
    if isinstance(value, str):
        return Constant("str", value)
    array = np.asarray(value)
    array = array.astype(
        {"int64": np.int32, "float64": np.float32}.get(str(array.dtype)) or array.dtype
    )
    return Constant(str(array.dtype), array)


def run(kind: str, outputs: Sequence[Port], **given: Any) -> list[torch.Tensor]:
    """Evaluates one operation on constants."""
    several = frozenset({"values"} & given.keys())
    inputs = {
        key: tuple(constant(v) for v in (value if key in several else [value]))
        for key, value in given.items()
    }
    return evaluate(Operation(kind, "y", inputs, several, tuple(outputs)), {})


def one(kind: str, shape: Sequence[int], dtype: str = "float32", **given: Any) -> torch.Tensor:
    """The single result of an operation that has this shape."""
    (result,) = run(kind, [Port("y", dtype, tuple(shape))], **given)
    return result


@pytest.fixture(scope="module")
def builder() -> Iterator[Any]:
    """coremltools' builder of programs, which computes what has constant inputs."""
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools as ct
        from coremltools.converters.mil.mil import Builder, Function

        with Function({}, opset_version=ct.target.iOS17):
            yield Builder


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("kind", "given"), FOLDED, ids=[k for k, _ in FOLDED])
def test_an_operator_is_what_coremltools_computes(
    kind: str, given: dict[str, Any], builder: Any
) -> None:
    made = getattr(builder, kind)(**copy.deepcopy(given))  # some of it works in place
    variables = list(made) if isinstance(made, list | tuple) else [made]
    ports = []
    for i, variable in enumerate(variables):
        dtype = str(np.asarray(variable.val).dtype)
        ports.append(Port(str(i), DTYPES.get(dtype, dtype), tuple(np.shape(variable.val))))
    for variable, result in zip(variables, run(kind, ports, **given), strict=True):
        wanted = np.asarray(variable.val)
        if wanted.dtype.kind == "f":
            np.testing.assert_allclose(result.numpy(), wanted, rtol=2e-5, atol=2e-6)
        else:
            assert np.array_equal(result.numpy(), wanted)


# -- layers: torch is the reference ---------------------------------------------------------------


def same(result: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(dims: int, groups: int) -> None:
    x = torch.randn(1, 4, *[7] * dims)
    weight, bias = torch.randn(6, 4 // groups, *[3] * dims), torch.randn(6)
    conv = getattr(functional, f"conv{dims}d")
    wanted = conv(x, weight, bias, stride=2, padding=1, dilation=1, groups=groups)
    given = {"x": x.numpy(), "weight": weight.numpy(), "bias": bias.numpy(), "groups": groups}
    strides, pad = [2] * dims, [1] * 2 * dims
    result = one("conv", wanted.shape, strides=strides, pad_type="custom", pad=pad, **given)
    same(result, wanted)
    wide = conv(x, weight, bias, padding=2, dilation=2, groups=groups)
    same(one("conv", wide.shape, pad_type="same", dilations=[2] * dims, **given), wide)


def test_a_convolution_pads_each_side_as_it_says() -> None:
    x, weight = torch.randn(1, 2, 5, 6), torch.randn(3, 2, 3, 4)
    padded = functional.pad(x, (3, 0, 1, 2))  # the last dimension comes first in torch
    wanted = functional.conv2d(padded, weight)
    given = {"x": x.numpy(), "weight": weight.numpy()}
    same(one("conv", wanted.shape, pad_type="custom", pad=[1, 2, 3, 0], **given), wanted)
    for kind, ends in (("same", (1, 2)), ("same_lower", (2, 1))):
        wanted = functional.conv2d(functional.pad(x, (*ends, 1, 1)), weight)
        same(one("conv", wanted.shape, pad_type=kind, **given), wanted)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("extra", [0, 1])
def test_transposed_convolutions(dims: int, extra: int) -> None:
    layer = nn.ConvTranspose1d if dims == 1 else nn.ConvTranspose2d
    made = layer(4, 6, 3, stride=2, padding=1, output_padding=extra, groups=2).eval()
    x = torch.randn(1, 4, *[5] * dims)
    wanted = made(x).detach()
    result = one(
        "conv_transpose",
        wanted.shape,
        x=x.numpy(),
        weight=made.weight.detach().numpy(),
        bias=made.bias.detach().numpy(),
        strides=[2] * dims,
        pad_type="custom",
        pad=[1] * 2 * dims,
        groups=2,
        output_shape=list(wanted.shape),
    )
    same(result, wanted)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_pooling(ceil: bool, counted: bool) -> None:
    x = torch.randn(1, 3, 8, 7)
    settings = {"strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1], "ceil_mode": ceil}
    wanted = functional.avg_pool2d(x, 3, 2, 1, ceil_mode=ceil, count_include_pad=counted)
    given = {"x": x.numpy(), "kernel_sizes": [3, 3], **settings}
    same(one("avg_pool", wanted.shape, exclude_padding_from_average=not counted, **given), wanted)
    largest = functional.max_pool2d(x, 3, 2, 1, ceil_mode=ceil)
    same(one("max_pool", largest.shape, **given), largest)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_upsampling(scale: int, aligned: bool) -> None:
    x = torch.randn(1, 2, 4, 5)
    factors = {"scale_factor_height": scale, "scale_factor_width": scale}
    wanted = functional.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=aligned)
    given = {"x": x.numpy(), "align_corners": aligned, **factors}
    same(one("upsample_bilinear", wanted.shape, **given), wanted)
    nearest = functional.interpolate(x, scale_factor=scale)
    same(one("upsample_nearest_neighbor", nearest.shape, x=x.numpy(), **factors), nearest)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("UNALIGN_CORNERS", [0.0, 0.1, 0.5, 0.9, 1.0]),
        ("STRICT_ALIGN_CORNERS", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("ALIGN_CORNERS", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("DEFAULT", [0.0, 0.4, 0.8, 1.0, 1.0]),
        ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
    ],
)
def test_resizing_samples_where_the_reference_says(mode: str, wanted: list[float]) -> None:
    """The examples in the reference of ``resize_bilinear``: five points between 0 and 1."""
    x = np.array([0, 1], np.float32).reshape(1, 1, 1, 2)
    result = one("resize_bilinear", (1, 1, 1, 5), x=x, sampling_mode=mode)
    same(result.reshape(-1), torch.tensor(wanted))


def test_norms() -> None:
    x = torch.randn(2, 3, 4, 5)
    gamma, beta, mean, variance = torch.randn(3), torch.randn(3), torch.randn(3), torch.rand(3)
    given = {"x": x.numpy(), "gamma": gamma.numpy(), "beta": beta.numpy(), "epsilon": 1e-4}
    wanted = functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-4)
    moments = {"mean": mean.numpy(), "variance": variance.numpy()}
    same(one("batch_norm", x.shape, **given, **moments), wanted, atol=1e-4)
    wanted = functional.instance_norm(x, weight=gamma, bias=beta, eps=1e-4)
    same(one("instance_norm", x.shape, **given), wanted)
    wanted = x / torch.sqrt((x * x).sum((1, 2, 3), keepdim=True) + 1e-4)
    same(one("l2_norm", x.shape, x=x.numpy(), epsilon=1e-4), wanted)


@pytest.mark.parametrize("masked", [None, "bool", "float32"])
def test_attention(masked: str | None) -> None:
    query, key, value = torch.randn(3, 1, 2, 4, 8)
    mask = None if masked is None else torch.rand(1, 1, 4, 4) > 0.3
    mask = mask | torch.eye(4, dtype=torch.bool) if mask is not None else None
    if masked == "float32" and mask is not None:
        mask = torch.where(mask, 0.0, -1e4)
    wanted = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    given = {} if mask is None else {"attn_mask": mask.numpy()}
    arrays = {"query": query.numpy(), "key": key.numpy(), "value": value.numpy(), **given}
    same(one("scaled_dot_product_attention", wanted.shape, **arrays), wanted)


def test_pixels_and_channels_change_places() -> None:
    x = torch.from_numpy(IMAGE)
    wanted = functional.pixel_shuffle(x, 2)
    same(one("pixel_shuffle", wanted.shape, x=IMAGE, upscale_factor=2), wanted)
    wanted = functional.pixel_unshuffle(x, 2)
    same(one("pixel_unshuffle", wanted.shape, x=IMAGE, downscale_factor=2), wanted)
    # As in TensorFlow: of a block's four values the first channels are the upper left ones.
    deep = one("depth_to_space", (1, 1, 8, 12), x=IMAGE, block_size=2)
    assert deep[0, 0, :2, :2].tolist() == IMAGE[0, :, 0, 0].reshape(2, 2).tolist()
    back = one("space_to_depth", IMAGE.shape, x=deep.numpy(), block_size=2)
    assert np.array_equal(back.numpy(), IMAGE)
    cut = one("crop", (1, 4, 2, 5), x=IMAGE, crop_height=[1, 1], crop_width=[0, 1])
    assert np.array_equal(cut.numpy(), IMAGE[:, :, 1:3, :5])


def test_what_coremltools_does_not_fold_or_folds_wrongly() -> None:
    """Examples in the reference of operators, and sums without the element itself."""
    first, second = np.arange(1, 7).reshape(3, 2), np.arange(7, 13).reshape(3, 2)
    mixed = one("concat", (6, 2), "int32", values=[first, second], axis=0, interleave=True)
    assert mixed.tolist() == [[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]]
    x = np.array([1, 2, 4], np.float32)
    assert one("cumsum", (3,), x=x, exclusive=True).tolist() == [0, 1, 3]
    assert one("cumsum", (3,), x=x, exclusive=True, reverse=True).tolist() == [6, 4, 0]
    chosen = one("gather_nd", (2, 4), x=X, indices=np.array([[0, 2], [1, 1]], np.int32))
    assert np.array_equal(chosen.numpy(), np.stack([X[0, 2], X[1, 1]]))
    hot = one("one_hot", (2, 3), "int32", indices=np.array([2, 0]), one_hot_vector_size=3)
    assert hot.tolist() == [[0, 0, 1], [1, 0, 0]]
    given = {"input": BYTES, "scale": SCALES, "zero_point": np.array([1, -2, 0], np.int8)}
    wanted = np.stack([s * (BYTES[:, i].astype(np.float32) - z) for i, (s, z) in enumerate(
        zip(SCALES, [1, -2, 0], strict=True)
    )], 1)  # fmt: skip
    same(one("dequantize", BYTES.shape, axis=1, **given), torch.from_numpy(wanted))
    plain = one("dequantize", BYTES.shape, input=BYTES, scale=np.float32(0.1))
    same(plain, torch.from_numpy(BYTES * np.float32(0.1)))


def test_compressed_constants_are_restored() -> None:
    zero = np.array([1, 0, -2], np.int8)
    wanted = SCALES.reshape(3, 1) * (BYTES[0].astype(np.float32) - zero.reshape(3, 1))
    affine = {"quantized_data": BYTES[0], "scale": SCALES, "zero_point": zero, "axis": 0}
    same(one("constexpr_affine_dequantize", (3, 4), **affine), torch.from_numpy(wanted))
    blocks = np.array([[0.5, 2.0]], np.float32)  # one scale for each two columns
    wanted = BYTES[0].astype(np.float32) * np.array([0.5, 0.5, 2, 2], np.float32)
    result = one("constexpr_blockwise_shift_scale", (3, 4), data=BYTES[0], scale=blocks)
    same(result, torch.from_numpy(wanted))
    shifted = one(
        "constexpr_blockwise_shift_scale", (3, 4), data=BYTES[0], scale=blocks,
        offset=np.array([[1, 0]], np.int8),
    )  # fmt: skip
    same(shifted, torch.from_numpy(wanted - np.array([0.5, 0.5, 0, 0], np.float32)))


# -- dtypes, and what is refused ------------------------------------------------------------------


def test_halves_round_to_even_and_ends_hold() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, 500, -500], np.float32)
    result = one("quantize", x.shape, "int8", input=x, scale=np.float32(1), output_dtype="int8")
    assert result.tolist() == [0, 2, 2, 0, 127, -128] and result.dtype == torch.int8


def test_half_precision_is_stored_and_summed_in_single() -> None:
    ones = np.ones((1, 4096), np.float16)
    small = np.full((1, 4096), 2.0**-12, np.float16)
    result = one("linear", (1, 1), "float16", x=ones, weight=small)
    assert result.dtype == torch.float16 and float(result) == 1.0  # in half precision it stalls
    third = one("real_div", (), "float16", x=np.float16(1), y=np.float16(3))
    assert float(third) == float(np.float16(1 / 3))
    assert math.isinf(float(one("exp", (), "float16", x=np.float16(12))))


def test_an_unknown_operator_is_named() -> None:
    with pytest.raises(UnsupportedError, match="'lstm'"):
        one("lstm", (1,), x=X)


def test_another_shape_than_stated_is_refused() -> None:
    with pytest.raises(BadData, match=r"'y' comes out as \(2, 3, 4\), the program says \(2, 3\)"):
        one("relu", (2, 3), x=X)


def test_what_is_half_known_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="batch_dims"):
        one("gather", (2, 3), x=X, indices=WHOLE[:, 0, :1] * 0, axis=1, batch_dims=1)
    with pytest.raises(UnsupportedError, match="mode 'NEW'"):
        one("resize_bilinear", (1, 4, 2, 2), x=IMAGE, sampling_mode="NEW")
    with pytest.raises(UnsupportedError, match="real_div"):
        one("real_div", (2, 3, 4), "int32", x=WHOLE, y=WHOLE)
    with pytest.raises(UnsupportedError, match="lacks its 'weight'"):
        one("linear", (2, 3, 4), x=X)
