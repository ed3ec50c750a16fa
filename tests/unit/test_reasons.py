"""Why operators of an artifact convert, move or compute in floating point."""

from __future__ import annotations

from edgekit.targets import Placement, Reason
from edgekit.targets._reasons import (
    BOUNDARY,
    CONSTANT,
    LAYOUT,
    MOVED,
    NO_KERNEL,
    PADDING,
    REQUANTIZE,
    Op,
    reasons,
)

NETWORK = [
    Op("Quantize", ("x",), ("a",), "quantize"),
    Op("Transpose", ("a",), ("b",), "move"),
    Op("Conv", ("b", "w"), ("c",), "integer"),
    Op("Dequantize", ("c",), ("d",), "dequantize"),
    Op("Swish", ("d",), ("e",), "float"),
    Op("Quantize", ("e",), ("f",), "quantize"),
    Op("Pad", ("f",), ("g",), "move"),
    Op("Conv", ("g", "w"), ("h",), "integer"),
    Op("Reshape", ("h",), ("i",), "move"),
    Op("Quantize", ("i",), ("j",), "quantize"),
    Op("Conv", ("j", "w2"), ("k",), "integer"),
    Op("Reshape", ("constant",), ("w2",), "move"),
    Op("Softmax", ("k",), ("l",), "float"),
    Op("Dequantize", ("k",), ("y",), "dequantize"),
]


def test_every_operator_that_is_not_an_integer_one_has_its_reason() -> None:
    found = reasons(NETWORK, {"x", "y"}, {"Swish": "slower as integers"})
    assert set(found) == {
        Reason("Quantize", 1, BOUNDARY),
        Reason("Transpose", 1, LAYOUT),
        Reason("Dequantize", 1, "hands integers to Swish, in float"),
        Reason("Swish", 1, "slower as integers"),
        Reason("Quantize", 1, "rounds what Swish gives in float"),
        Reason("Pad", 1, PADDING),
        Reason("Reshape", 1, MOVED),
        Reason("Quantize", 1, REQUANTIZE),
        Reason("Reshape", 1, CONSTANT),
        Reason("Softmax", 1, NO_KERNEL),
        Reason("Dequantize", 1, BOUNDARY),
    }
    assert sum(r.count for r in found) == sum(op.role != "integer" for op in NETWORK)


def test_alike_ones_are_counted_together_and_the_most_come_first() -> None:
    twice = [Op("Softmax", (f"{i}",), (f"{i}s",), "float") for i in range(3)]
    found = reasons([*NETWORK, *twice], {"x", "y"})
    assert found[0] == Reason("Softmax", 4, NO_KERNEL)


def test_a_float_model_has_no_reasons() -> None:
    assert reasons([Op("Conv", ("x",), ("y",), "float")], {"x", "y"}) == ()


def test_a_placement_states_them() -> None:
    placed = Placement({"Softmax": 1}, 1, reasons=(Reason("Softmax", 1, NO_KERNEL),))
    assert placed.to_json()["reasons"] == [{"operator": "Softmax", "count": 1, "why": NO_KERNEL}]
