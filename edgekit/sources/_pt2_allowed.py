"""What a `.pt2` graph may say: operators, names, weight names and symbolic sizes.

Allow-lists, not block-lists: whatever is not known is refused.
"""

from __future__ import annotations

import ast
import importlib
import re
from typing import Any

import torch

from edgekit.errors import TrustError, UnsupportedError

__all__ = [
    "check_attribute",
    "check_expression",
    "check_identifier",
    "check_operator",
    "check_power",
    "is_symbol",
]

_NAMESPACES = ("aten", "prims", "quantized_decomposed", "torchvision")
_HIGHER_ORDER = (
    "cond",
    "map_impl",
    "scan",
    "while_loop",
    "wrap_with_autocast",
    "wrap_with_set_grad_enabled",
)
_PYTHON = """
_operator.add _operator.and_ _operator.eq _operator.floordiv _operator.ge _operator.gt
_operator.le _operator.lt _operator.mod _operator.mul _operator.ne _operator.neg
_operator.or_ _operator.pos _operator.pow _operator.sub _operator.truediv math.trunc
torch.sym_float torch.sym_int torch.sym_ite torch.sym_max torch.sym_min torch.sym_not
torch.sym_sqrt
"""
# Operators take text for modes and messages only; aten.save and aten.from_file take a path.
_TEXT_ARGUMENTS = """
UPLO activation algorithm approximate assert_msg device_type driver equation indexing
interpolation mode norm ord p pad_mode padding padding_side reduce rounding_mode side
"""
_FUNCTIONS = """
Abs Add And CeilDiv CeilToInt CleanDiv Equality FloatTrueDiv FloorDiv FloorToInt
GreaterThan Identity IntTrueDiv LessThan Max Min Mod ModularIndexing Mul Not Or
Piecewise Pow PythonMod RoundToInt StrictGreaterThan StrictLessThan ToFloat TruncToFloat
TruncToInt Unequality Where ceiling floor
"""
_CONSTANTS = ("true", "false", "int_oo", "oo")
_SYMBOL = re.compile(r"z?[su]f?\d{1,9}")
_MAX_EXPRESSION = 20_000
_MAX_POWER = 8
_MAX_NESTED_POWERS = 3


def is_symbol(name: str) -> bool:
    """Whether torch would give a dynamic size this name."""
    return _SYMBOL.fullmatch(name) is not None


def check_power(node: dict[str, Any], what: str) -> None:
    power = node["inputs"][1]["arg"].get("as_int")
    if type(power) is not int or abs(power) > _MAX_POWER:
        raise TrustError(f"{what} raises a size to the power {power!r}")


def check_identifier(name: str, what: str) -> None:
    # Positional arguments have an empty name; Python's keywords are names in operator schemas.
    if name and not (name.isidentifier() and name.isascii()):
        raise TrustError(f"{what} holds the name {name!r}; torch would run it as Python")


def check_attribute(name: str, what: str) -> None:
    if any(part.startswith("__") for part in name.split(".")):
        raise TrustError(f"{what} stores a weight under the name {name!r}")


def check_expression(text: str, what: str) -> None:
    """Accepts what sympy's srepr() gives for a symbolic size: known functions of known things."""
    try:
        if len(text) > _MAX_EXPRESSION:
            raise ValueError("too long")
        _check_tree(ast.parse(text, mode="eval").body, 0)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise TrustError(
            f"{what} holds the size expression {text[:80]!r}, which torch would run as Python: "
            f"{error}"
        ) from error


def _check_tree(node: ast.expr, powers: int) -> None:
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"{ast.unparse(node)[:40]!r} is no size")
    function, args = node.func.id, node.args
    if function in ("Integer", "Rational", "Float", "Symbol"):
        options = [keyword.value for keyword in node.keywords]
        values = [ast.literal_eval(value) for value in args + options]
        named = function == "Symbol" and isinstance(values[0], str) and _SYMBOL.fullmatch(values[0])
        digits = function == "Float" and re.fullmatch(r"-?[\d.]{1,40}(e[-+]?\d\d?)?", values[0])
        rest = values[1:] if named or digits else values
        if function in ("Symbol", "Float") and rest is values:
            raise ValueError(f"{ast.unparse(node)[:40]!r} is no size")
        if not all(isinstance(value, int) and abs(value) < 2**64 for value in rest):
            raise ValueError(f"{ast.unparse(node)[:40]!r} is no number")
        return
    if function not in _FUNCTIONS.split() or node.keywords:
        raise ValueError(f"{function!r} is no function of sizes")
    if function == "Pow":
        # A tower of powers of constants would take all memory there is.
        powers += 1
        power = ast.unparse(args[1]) if len(args) == 2 else ""
        found = re.fullmatch(r"Integer\((-?\d)\)|Rational\(-?1, 2\)", power)
        if not found or int(found[1] or 0) > _MAX_POWER or powers > _MAX_NESTED_POWERS:
            raise ValueError(f"power {power[:40]!r}")
    for value in args:
        _check_tree(value, powers)


def check_operator(target: str, what: str) -> None:
    """Accepts an operator that is registered and computes; see `_NAMESPACES`.

    Raises:
        TrustError: torch would look the name up outside of its operators.
        UnsupportedError: an operator of another library.
    """
    if target in _PYTHON.split():
        return
    parts = target.split(".")
    if parts[:2] != ["torch", "ops"] or len(parts) not in (4, 5) or not target.isascii():
        raise TrustError(f"{what} calls {target!r}, which is no tensor operator")
    if parts[2] == "higher_order":
        if len(parts) != 4 or parts[3] not in _HIGHER_ORDER:
            raise UnsupportedError(f"{what} uses {target!r}, which no target takes")
        return
    if parts[2] not in _NAMESPACES:
        raise UnsupportedError(
            f"{what} uses the custom operator {'.'.join(parts[2:])!r}",
            hint=f"build the model from operators of {', '.join(_NAMESPACES)}",
        )
    if parts[2] == "quantized_decomposed":
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers them
    packet = getattr(getattr(torch.ops, parts[2]), parts[3], None)
    overload = getattr(packet, parts[4], None) if len(parts) == 5 else None
    if not isinstance(packet, torch._ops.OpOverloadPacket) or not isinstance(
        overload, torch._ops.OpOverload
    ):
        raise UnsupportedError(
            f"{what} uses {target!r}, which this torch ({torch.__version__}) does not have",
            hint="export it again with this torch",
        )
    for argument in overload._schema.arguments:
        if "str" in str(argument.type) and argument.name not in _TEXT_ARGUMENTS.split():
            raise TrustError(f"{what} calls {target!r}, which reaches outside of the model")
