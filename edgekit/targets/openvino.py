"""OpenVINO IR (``.xml`` with its ``.bin``) for Intel CPUs, GPUs and NPUs, and Arm CPUs.

The plan is rendered as quantize and dequantize operators, which the frontend turns into
``FakeQuantize``; saving compresses constant weights to int8.

There is no ``w8a16``: the CPU plug-in (2026.4) computes convolutions in float then, on activations
that it rounds.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.names import FLOAT_IO, PICTURE_IO, WEIGHTS
from edgekit.runtime._silence import silence
from edgekit.signature import Signature
from edgekit.targets import Placement, Stored
from edgekit.targets._common import channel_digest, converter_error, half, unpack_int4

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan
    from edgekit.compress.unrounded import Unrounded
    from edgekit.targets._reasons import Role

silence()

_NOT_COMPUTE = ("Input", "Output", "Const", "Result")
_LAYERS = ("Convolution", "Deconvolution", "FullyConnected")
_MOVES = ("Reorder", "Convert", "Transpose", "FakeQuantize", "Pad")
_KNOWN = {
    "Gather": "an embedding's table is int8, and its rows are read in float",
    "Subgraph": "element-wise operators in one kernel: quantizing at the model's border, or what "
    "the plan keeps in float",
    "MVN": "a norm over a token or picture is computed in float",
}
_JOINED = ("FakeQuantize", "Relu", "Clamp", "Add", "Subtract", "Multiply")
_BORDER = ("Convert", "Multiply", "Add", "Transpose", "Reshape", "StridedSlice", "Reverse")
_NEXT_TO_ZERO = 1e-30


class Openvino:
    """The OpenVINO target."""

    id = "openvino"
    suffix = ".xml"
    extra = "openvino"
    packages = ("openvino",)
    schemes = ("w8a8", "fp32", "w8", "w4", "fp16")
    delegates = ("cpu",)
    ios = (FLOAT_IO, PICTURE_IO)

    def convert(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        signature: Signature,
        out: Path,
    ) -> list[Path]:
        """See `edgekit.targets.Target.convert`."""
        import openvino

        from edgekit.compress.render import Form, render_program
        from edgekit.compress.unrounded import Unrounded
        from edgekit.targets import _openvino_weights

        weights_alone = plan.scheme in WEIGHTS
        form: Form = "fake" if weights_alone else "qdq"
        # The plug-in fuses a SiLU with the layer before it, if nothing is rounded within, and its
        # matrix products give float where float is read.
        plan = Unrounded(gates=True, results=True).without(program, plan)
        plan = plan if weights_alone else _in_full_range(plan)
        try:
            rendered = render_program(program, plan, form, bare_pads=True, bare_moves=True)
            model = openvino.convert_model(rendered)
        except Exception as error:
            raise converter_error("openvino", error) from error
        if weights_alone:
            _openvino_weights.place(model, program, plan)
        else:
            _keep_ranges_per_tensor(model)
            _round_pixels(model)
        for port, spec in zip(model.inputs, signature.inputs, strict=True):
            port.get_tensor().set_names({spec.name})
            port.get_node().set_friendly_name(spec.name)
            port.get_node().set_partial_shape(openvino.PartialShape(list(spec.shape)))
        for port, spec in zip(model.outputs, signature.outputs, strict=True):
            port.get_tensor().set_names({spec.name})
        model.validate_nodes_and_infer_types()
        model.set_friendly_name("edgekit")
        openvino.save_model(model, out, compress_to_fp16=False)
        _drop_conversion_facts(out)
        if weights_alone:
            _openvino_weights.state_float_inputs(out)
        return [out, out.with_suffix(".bin")]

    def inspect(self, path: Path) -> Placement:
        """Operators of the compiled CPU graph by type, and the type they compute in."""
        import openvino

        from edgekit.targets._border import with_joined_border
        from edgekit.targets._reasons import Op, by_dtype, reasons

        core = openvino.Core()
        compiled = core.compile_model(
            str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        )
        ops: collections.Counter[str] = collections.Counter()
        waste: collections.Counter[str] = collections.Counter()
        float_ops = boundary = 0
        first: str | None = None
        made: list[Op] = []
        facts: list[tuple[str, str]] = []
        border: set[str] = set()
        pixels: set[str] = set()
        for node in compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            kind = str(info["layerType"].astype(str))
            precision = str(info["runtimePrecision"].astype(str))
            name = str(node.get_friendly_name())
            sources = tuple(str(v.get_node().get_friendly_name()) for v in node.input_values())
            if kind in _NOT_COMPUTE:
                border |= {name} if kind == "Input" else set()
                pixels |= {name} if kind == "Input" and precision == "u8" else set()
                border |= set(sources) if kind in ("Output", "Result") else set()
                continue
            made.append(Op(kind, sources, (name,), _role(kind, precision)))
            facts.append((precision, name))
        made = with_joined_border(made, pixels, (*_MOVES, "StridedSlice", "Reshape"), "Subgraph")
        for op, (precision, name) in zip(made, facts, strict=True):
            kind = op.kind
            ops[kind] += 1
            if kind in _MOVES:
                waste[kind] += 1
            if kind == "FakeQuantize" or op.role == "border":
                boundary += 1
            elif kind not in ("Reorder", "Convert", "Reshape") and precision in ("f32", "f16"):
                float_ops += 1
                first = first or f"{kind} computes in {precision} ({name})"
        return Placement(
            ops=dict(sorted(ops.items())),
            float_ops=float_ops,
            boundary_ops=boundary,
            undelegated_ops=0,  # compiled for the CPU plug-in alone, which takes all or refuses
            ops_by_dtype=by_dtype(made),
            layers=by_dtype([op for op in made if op.kind in _LAYERS]),
            first_fallback=first,
            bytes_by_dtype=_constant_bytes(core.read_model(str(path))),
            waste=dict(sorted(waste.items())),
            reasons=reasons(made, border, _KNOWN),
        )

    def unrounded(self, path: Path) -> Unrounded:
        """What this processor's kernels fuse away: the compiled graph is asked."""
        import openvino

        from edgekit.compress.unrounded import Unrounded
        from edgekit.targets._openvino_sums import absorbed_convolutions

        core = openvino.Core()
        compiled = core.compile_model(
            str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        )
        whole = any(n.get_type_name() == "Swish" for n in core.read_model(str(path)).get_ops())
        return Unrounded(tuple(absorbed_convolutions(compiled)), gates=whole, results=True)

    def stored(self, path: Path) -> list[Stored]:
        """``FakeQuantize`` ranges as scales, and compressed weights with their integers."""
        import openvino

        model = openvino.Core().read_model(str(path))
        found = []
        for node in model.get_ordered_ops():
            if node.get_type_name() == "FakeQuantize":
                found.append(_fake_quantize(node))
            elif (weight := _compressed_weight(node)) is not None:
                found.append(weight)
            elif node.get_type_name() == "Constant" and _type(node) == "f16":
                found.append(half(node.get_friendly_name(), np.asarray(node.get_data())))
        return found


def _in_full_range(plan: QuantPlan) -> QuantPlan:
    """The plan with all weights' limits those of int8.

    Where an override limits weights, the program's are within its limits already. A FakeQuantize
    with fewer levels would be no int8 to the plug-in.
    """
    edges = tuple(
        dataclasses.replace(e, quant_min=-127, quant_max=127) if e.kind == "weight" else e
        for e in plan.edges
    )
    return dataclasses.replace(plan, edges=edges)


def _role(kind: str, precision: str) -> Role:
    """What an operator of the compiled graph does, by its type and the type that it computes in."""
    if kind == "FakeQuantize":
        return "quantize"
    if kind in ("Reorder", "Transpose", "Pad", "Convert", "Reshape"):
        return "move"
    return "float" if precision in ("f32", "f16") else "integer"


def _keep_ranges_per_tensor(model: Any) -> None:
    """Keeps the CPU plug-in's "MLP" kernel off FakeQuantize with a range per channel.

    OpenVINO 2026.4.1, on x86 with VNNI, joins two or more matrix products of rank 2 (up to 256
    wide, fewer than ten rows, mostly on one thread) into one kernel, in which such a FakeQuantize
    after a product gives garbage. The plan has none, but the plug-in makes one in two ways. It
    moves the scales of the weights into the FakeQuantize unless a bias that differs between
    channels stands between: one channel's bias is moved here by far less than any quantization
    step. And it moves a vector that is multiplied or added after a FakeQuantize into that one:
    an identity that the kernel does not know is put between.
    """
    nodes = model.get_ordered_ops()
    products = [n for n in nodes if n.get_type_name() == "MatMul" and _rank(n) <= 2]
    if len(products) < 2 or not any(map(_is_quantized, products)):
        return
    biases = {_bias(product).get_friendly_name() for product in products}
    for node in nodes:
        follows = _has_vector(node) and _follows_product(node)
        if follows and node.get_friendly_name() not in biases:
            _insert_identity(node)


def _round_pixels(model: Any) -> None:
    """Keeps the rounding of a picture that comes as pixels.

    The plug-in moves one factor and one offset for all channels into the FakeQuantize, and leaves
    that out where its step is a pixel's: the picture is then not rounded as the plan has it. An
    identity that it does not know is put between.
    """
    for parameter in model.get_parameters():
        if str(parameter.get_element_type().get_type_name()) != "u8":
            continue
        node = parameter
        while len(users := list(node.output(0).get_target_inputs())) == 1:
            node = users[0].get_node()
            if node.get_type_name() == "FakeQuantize":
                _insert_identity(node)
                break
            if node.get_type_name() not in _BORDER:
                break


def _bias(product: Any) -> Any:
    """The node that adds a product's bias, made to differ between channels where that matters, or
    the product itself."""
    from openvino import op, opset13

    users = list(product.output(0).get_target_inputs())
    channels = product.get_output_partial_shape(0)[-1].get_length()
    add, bias = product, np.zeros(channels, np.float32)
    if len(users) == 1 and users[0].get_node().get_type_name() == "Add":
        node = users[0].get_node()
        value = _constant(node, 1 - users[0].get_index())
        if value is not None and value.size in (1, channels):
            add = node
            bias = np.broadcast_to(value.reshape(-1), channels).astype(np.float32)
    if not _is_quantized(product) or channels == 1 or np.unique(bias).size > 1:
        return add
    bias[-1] = np.nextafter(bias[-1], np.float32(np.inf)) if bias[-1] else _NEXT_TO_ZERO
    constant = op.Constant(bias.reshape(1, -1))
    if add is not product:
        add.input(1 - users[0].get_index()).replace_source_output(constant.output(0))
        return add
    add = opset13.add(product, constant, name=f"{product.get_friendly_name()}/Bias")
    for user in users:
        user.replace_source_output(add.output(0))
    return add


def _has_vector(node: Any) -> bool:
    if node.get_type_name() not in _JOINED:
        return False
    values = [_constant(node, i) for i in range(len(node.inputs()))]
    return any(v is not None and v.size > 1 for v in values)


def _follows_product(node: Any) -> bool:
    """Whether the node's input is a product with nothing but joined operators between."""
    node = node.input_value(_data(node)).get_node()
    while node.get_type_name() in _JOINED:
        node = node.input_value(_data(node)).get_node()
    return bool(node.get_type_name() == "MatMul" and _rank(node) <= 2)


def _data(node: Any) -> int:
    """The position of the first input that is no constant; 0 where all are."""
    return next((i for i in range(len(node.inputs())) if _constant(node, i) is None), 0)


def _insert_identity(node: Any) -> None:
    from openvino import op, opset13

    source = node.input_value(_data(node))
    slope = op.Constant(np.ones(1, np.float32))
    identity = opset13.prelu(source, slope, name=f"{node.get_friendly_name()}/Identity")
    node.input(_data(node)).replace_source_output(identity.output(0))


def _is_quantized(product: Any) -> bool:
    return _integers(product.input_value(1).get_node()) is not None


def _rank(node: Any) -> int:
    return int(node.get_output_partial_shape(0).rank.get_length())


def _constant(node: Any, position: int) -> np.ndarray[Any, Any] | None:
    source = node.input_value(position).get_node()
    return np.asarray(source.get_data()) if source.get_type_name() == "Constant" else None


def _fake_quantize(node: Any) -> Stored:
    # Not the input's range: the converter moves that to take in a scalar that is added or
    # multiplied before.
    low = float(_values(node, 3).reshape(-1)[0])
    high = float(_values(node, 4).reshape(-1)[0])
    levels = int(node.get_attributes()["levels"])
    scale = (high - low) / (levels - 1)
    zero = int(np.rint(-low / scale)) - 128 if scale else 0
    return Stored(node.get_friendly_name(), "activation", (scale,), (zero,))


def _type(node: Any) -> str:
    return str(node.get_element_type().get_type_name())


def _integers(node: Any) -> Any:
    """The constant of ``Multiply(Convert(i8 or i4 constant), scale)``, which is how quantized
    weights are written; None for any other node."""
    if node.get_type_name() != "Multiply":
        return None
    source = node.input_value(0).get_node()
    if source.get_type_name() != "Convert":
        return None
    constant = source.input_value(0).get_node()
    if constant.get_type_name() != "Constant" or _type(constant) not in ("i8", "i4"):
        return None
    return constant


def _compressed_weight(node: Any) -> Stored | None:
    constant = _integers(node)
    if constant is None:
        return None
    integers = np.asarray(constant.get_data())
    if _type(constant) == "i4":
        integers = unpack_int4(integers, list(constant.get_output_shape(0)))
    scale = np.asarray(_values(node, 1))
    axes = [i for i, n in enumerate(scale.shape) if n != 1]
    axis = axes[0] if axes else 0
    if len(axes) > 1:  # channels in groups
        last = axes[-1] + 1
        integers = integers.reshape(*integers.shape[:axis], -1, *integers.shape[last:])
    count = scale.size
    return Stored(
        constant.get_friendly_name(),
        "weight",
        tuple(float(s) for s in scale.reshape(-1)),
        (0,) * count,
        channel_digest(integers, axis),
    )


def _values(node: Any, position: int) -> np.ndarray[Any, Any]:
    return np.asarray(node.input_value(position).get_node().get_data())


def _constant_bytes(model: Any) -> dict[str, int]:
    sizes: collections.Counter[str] = collections.Counter()
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            data, kind = node.get_data(), _type(node)
            sizes["int4" if kind == "i4" else str(data.dtype)] += int(node.get_byte_size())
    return dict(sorted(sizes.items()))


def _drop_conversion_facts(path: Path) -> None:
    """Removes what is not the model's: converter arguments, and a count of the process's nodes.

    Unnamed nodes are called by their type and the number of nodes that the process had made before;
    their number within the file takes its place.
    """
    text = path.read_text()
    text = re.sub(r"\t?<rt_info>(?:(?!<rt_info>).)*</rt_info>\n(?=</net>)", "", text, flags=re.S)
    path.write_text(re.sub(r'(<layer id="(\d+)" name="[A-Z]\w*?_)\d+"', r'\1\2"', text))


TARGET = Openvino()
