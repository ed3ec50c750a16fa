"""ExecuTorch's Vulkan delegate: the partitioner, and a reader of what the delegate gets.

What it gets is a header, and a flatbuffer ``VK00`` (``backends/vulkan/serialization`` in the wheel)
that lists operators and tensors; constants lie in the program, under their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.targets._executorch_xnnpack import Operator, Value

BACKEND = "VulkanBackend"
_HALF = "force_fp16"
_DTYPES = {
    0: "bool",
    1: "uint8",
    2: "int8",
    3: "int32",
    4: "float16",
    5: "float32",
    6: "float64",
    7: "int64",
}


def partitioner(scheme: str) -> Any:
    """Gives Vulkan what it has a shader for; ``fp16`` is its own option for that."""
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    return VulkanPartitioner({_HALF: True} if scheme == "fp16" else {})


def is_half(options: Mapping[str, bytes]) -> bool:
    """Whether the delegate was compiled to compute in half precision."""
    return any(options.get(_HALF, b""))


def graph(
    blob: bytes, named: Mapping[str, bytes], arguments: list[str], number: int
) -> tuple[list[Operator], dict[str, Value]]:
    """The operators and values of one Vulkan graph.

    Args:
        blob: header and flatbuffer.
        named: constants that the program holds for all graphs.
        arguments: names of the program's values that the graph is called with.
        number: of the graph, for names.

    Raises:
        ValueError: it is none.
    """
    from executorch.backends.vulkan.serialization import vulkan_graph_serialize as vulkan

    header = vulkan.VulkanDelegateHeader
    found = header.from_bytes(blob[: header.EXPECTED_LENGTH])
    start = found.flatbuffer_offset
    read = vulkan.flatbuffer_to_vk_graph(blob[start : start + found.flatbuffer_size])
    ends = dict(zip([*read.input_ids, *read.output_ids], arguments, strict=False))
    names, values = {}, {}
    for place, entry in enumerate(read.values):
        if type(entry.value).__name__ == "VkTensor":
            names[place] = ends.get(place, f"vulkan {number}.{place}")
            if place not in ends:  # those at the ends are the program's own
                values[names[place]] = _value(entry.value, read.constants, named)
    operators = []
    for call in read.chain:
        used = [i for argument in call.args for i in _tensors(read.values, argument)]
        results = set(_tensors(read.values, call.args[-1]))
        inputs = tuple(names[i] for i in dict.fromkeys(used) if i not in results)
        outputs = tuple(names[i] for i in sorted(results))
        operators.append(Operator(call.name, inputs, outputs, delegated=True))
    return operators, values


def _tensors(values: list[Any], place: int) -> list[int]:
    """Places of the tensors that an argument names: itself, or those in its list."""
    kind = type(values[place].value).__name__
    if kind == "ValueList":
        return [i for i in values[place].value.items if i >= 0]
    return [place] if kind == "VkTensor" else []


def _value(tensor: Any, constants: list[Any], named: Mapping[str, bytes]) -> Value:
    dtype, shape = _DTYPES[int(tensor.datatype)], tuple(tensor.dims)
    if tensor.constant_id < 0:
        return Value(dtype, shape)
    entry = constants[tensor.constant_id]
    data = named[entry.named_key] if entry.named_key else b""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if len(data) < size:
        raise ValueError(f"a constant of {size} bytes has {len(data)}")
    return Value(dtype, shape, data[:size])
