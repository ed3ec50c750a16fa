"""Core ML classifiers: a package whose answer is a label, as Xcode and Vision know it.

Beside the model's own outputs stand ``classLabel``, the label of the largest, and
``classLabelProbs``, a dictionary of all. Unless the model ends in a softmax or a sigmoid, a
``softmax`` that nothing else reads makes probabilities of its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.errors import BadData, UnsupportedError
from edgekit.signature import Signature, TensorSpec

__all__ = ["LABEL", "PROBABILITIES", "Classifier", "add", "labelled", "read", "unique"]

LABEL, PROBABILITIES = "classLabel", "classLabelProbs"
_SOFTMAX, _AXIS = "class_probabilities", "class_probabilities_axis"
_PROBABLE = ("softmax", "sigmoid")
"""What gives numbers that are probabilities already: of one class, or of each by itself."""

_PASSED = ("cast", "dequantize", "expand_dims", "identity", "quantize", "reshape", "squeeze")
_STRING, _FLOAT64, _INT32 = 2, 12, 23
"""``DataType`` of ``MIL.proto``."""


@dataclass(frozen=True)
class Classifier:
    """What a package classifies by.

    Attributes:
        scores: name of the value that holds one number per label.
        labels: in their order.
    """

    scores: str
    labels: tuple[str, ...]


def labelled(signature: Signature) -> TensorSpec | None:
    """The output that the classes of a model are read from: ``[1, N]`` with N labels, the only one
    with labels; None where there is none, so that the package is no classifier."""
    found = [s for s in signature.outputs if s.labels]
    if len(found) != 1 or found[0].shape != (1, len(found[0].labels)):
        return None
    return found[0]


def unique(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels for the keys of a dictionary: one that stands twice gets its number behind it."""
    return tuple(
        label if labels.count(label) == 1 else f"{label} ({i})" for i, label in enumerate(labels)
    )


def add(spec: Any, output: TensorSpec) -> None:
    """Makes a package a classifier, in place.

    Args:
        spec: the ``Model`` message.
        output: see `labelled`; an output of the program of float32.

    Raises:
        UnsupportedError: the program has a value of a name that a classifier needs.
    """
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    names = {o.name for op in block.operations for o in op.outputs}
    for name in (LABEL, PROBABILITIES, _SOFTMAX, _AXIS):
        if name in names:
            raise UnsupportedError(
                f"coreml: the model has a value called {name!r}, which is the classifier's own",
                hint="rename that output of the model",
            )
    scores = output.name
    if _maker(block, scores) not in _PROBABLE:
        _add_softmax(block, scores)
        scores = _SOFTMAX
    _add_classify(block, scores, unique(output.labels))
    own = [str(name) for name in block.outputs]
    del block.outputs[:]
    block.outputs.extend([LABEL, PROBABILITIES, *own])
    features = [f for f in spec.description.output]
    del spec.description.output[:]
    label, probabilities = (spec.description.output.add(name=n) for n in (LABEL, PROBABILITIES))
    label.type.stringType.SetInParent()
    probabilities.type.dictionaryType.stringKeyType.SetInParent()
    spec.description.output.extend(features)
    spec.description.predictedFeatureName = LABEL
    spec.description.predictedProbabilitiesName = PROBABILITIES


def read(spec: Any, what: str) -> Classifier | None:
    """The classifier of a package, or None where it is none.

    Raises:
        BadData: it says that it is one, and its program does not classify.
    """
    described = spec.description
    names = (described.predictedFeatureName, described.predictedProbabilitiesName)
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    made = [op for op in block.operations if op.type == "classify"]
    if not any(names) and not made:
        return None
    if len(made) != 1 or names != tuple(o.name for o in made[0].outputs):
        raise BadData(f"{what} is described as a classifier, and its program is another or none")
    inputs = made[0].inputs
    try:
        values = inputs["classes"].arguments[0].value.immediateValue.list.values
        labels = tuple(str(v.immediateValue.tensor.strings.values[0]) for v in values)
        scores = str(inputs["probabilities"].arguments[0].name)
    except IndexError as error:
        raise BadData(f"{what}: its classifier lacks labels or scores") from error
    return Classifier(scores, labels)


def _maker(block: Any, name: str) -> str:
    """The kind of the operation that makes a value, behind what only stores or moves it."""
    for operation in block.operations:
        if name not in [o.name for o in operation.outputs]:
            continue
        if operation.type not in _PASSED:
            return str(operation.type)
        parameter = "x" if "x" in operation.inputs else "input"
        return _maker(block, str(operation.inputs[parameter].arguments[0].name))
    return ""


def _add_softmax(block: Any, scores: str) -> None:
    made = next(o for op in block.operations for o in op.outputs if o.name == scores)
    constant = block.operations.add(type="const")
    constant.outputs.add(name=_AXIS).type.tensorType.dataType = _INT32
    _name(constant, _AXIS)
    value = constant.attributes["val"]
    value.type.tensorType.dataType = _INT32
    value.immediateValue.tensor.ints.values.append(-1)
    softmax = block.operations.add(type="softmax")
    softmax.inputs["x"].arguments.add(name=scores)
    softmax.inputs["axis"].arguments.add(name=_AXIS)
    softmax.outputs.add(name=_SOFTMAX).type.CopyFrom(made.type)
    _name(softmax, _SOFTMAX)


def _add_classify(block: Any, scores: str, labels: Sequence[str]) -> None:
    classify = block.operations.add(type="classify")
    classify.inputs["probabilities"].arguments.add(name=scores)
    value = classify.inputs["classes"].arguments.add().value
    value.type.listType.type.tensorType.dataType = _STRING
    value.type.listType.length.constant.size = len(labels)
    for label in labels:
        item = value.immediateValue.list.values.add()
        item.type.tensorType.dataType = _STRING
        item.immediateValue.tensor.strings.values.append(label)
    classify.outputs.add(name=LABEL).type.tensorType.dataType = _STRING
    kinds = classify.outputs.add(name=PROBABILITIES).type.dictionaryType
    kinds.keyType.tensorType.dataType = _STRING
    kinds.valueType.tensorType.dataType = _FLOAT64
    _name(classify, "classify")


def _name(operation: Any, name: str) -> None:
    value = operation.attributes["name"]
    value.type.tensorType.dataType = _STRING
    value.immediateValue.tensor.strings.values.append(name)
