"""Classifiers in Core ML packages: what is made of a program's output, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.errors import BadData, UnsupportedError
from edgekit.signature import Signature, TensorSpec
from edgekit.targets._coreml_classifier import LABEL, PROBABILITIES, add, labelled, read, unique
from edgekit.targets._coreml_package import quiet

SCORES = TensorSpec("scores", (1, 3), labels=("ant", "bee", "cat"))


def program(*kinds: str) -> Any:
    """A model whose operations stand in a row, each reading the one before it."""
    quiet()
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    function = spec.mlProgram.functions["main"]
    function.opset = "CoreML7"
    block = function.block_specializations["CoreML7"]
    before = "image"
    for i, kind in enumerate(kinds):
        name = "scores" if i == len(kinds) - 1 else f"value{i}"
        operation = block.operations.add(type=kind)
        parameter = "input" if "quantize" in kind else "x"
        operation.inputs[parameter].arguments.add(name=before)
        operation.outputs.add(name=name).type.tensorType.dataType = 11
        before = name
    block.outputs.append("scores")
    spec.description.output.add(name="scores")
    return spec


def made(spec: Any) -> list[str]:
    return [
        o.type for o in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations
    ]


def test_logits_get_a_softmax_of_their_own() -> None:
    spec = program("conv", "linear")
    assert read(spec, "it") is None
    add(spec, SCORES)
    assert made(spec) == ["conv", "linear", "const", "softmax", "classify"]
    found = read(spec, "it")
    assert found is not None
    assert (found.scores, found.labels) == ("class_probabilities", ("ant", "bee", "cat"))
    block = spec.mlProgram.functions["main"].block_specializations["CoreML7"]
    assert list(block.outputs) == [LABEL, PROBABILITIES, "scores"], "the model's own stays"


@pytest.mark.parametrize(
    "kinds",
    [
        ("linear", "softmax"),
        ("linear", "softmax", "cast"),
        ("linear", "sigmoid", "quantize", "dequantize"),
        ("linear", "softmax", "reshape", "quantize", "dequantize"),
    ],
)
def test_what_is_a_probability_is_taken_as_it_is(kinds: tuple[str, ...]) -> None:
    spec = program(*kinds)
    add(spec, SCORES)
    assert made(spec) == [*kinds, "classify"]
    found = read(spec, "it")
    assert found is not None and found.scores == "scores"


def test_a_model_with_the_classifiers_names_is_refused() -> None:
    spec = program("linear", "relu")
    block = spec.mlProgram.functions["main"].block_specializations["CoreML7"]
    block.operations[0].outputs[0].name = LABEL
    with pytest.raises(UnsupportedError, match="'classLabel'"):
        add(spec, SCORES)


def test_a_description_without_its_program_is_damage() -> None:
    spec = program("linear")
    add(spec, SCORES)
    del spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations[-1]
    with pytest.raises(BadData, match="classifier"):
        read(spec, "it")


def test_labels_that_stand_twice_get_their_number() -> None:
    assert unique(("crane", "owl", "crane")) == ("crane (0)", "owl", "crane (2)")


def test_one_output_with_as_many_labels_as_numbers_is_classified_by() -> None:
    inputs = (TensorSpec("image", (1, 8, 8, 3), "uint8"),)
    plain = TensorSpec("features", (1, 3))
    assert labelled(Signature(inputs, (plain, SCORES))) == SCORES
    assert labelled(Signature(inputs, (plain,))) is None
    pixels = TensorSpec("classes", (1, 3, 8, 8), labels=SCORES.labels)
    assert labelled(Signature(inputs, (pixels,))) is None, "a class for each pixel"
    other = TensorSpec("other", (1, 3), labels=SCORES.labels)
    assert labelled(Signature(inputs, (SCORES, other))) is None
