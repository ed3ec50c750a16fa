"""Weights from `.safetensors` files into modules; pickled weights are refused.

The header is checked by a parser of our own before the Rust binding reads the file, and the two
must agree, because parsers that differ let a file mean two things. Format: the safetensors
README, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgekit.errors import BadData, MissingDependency, TrustError
from edgekit.sources._vetted import parse_json, read_file

__all__ = ["PICKLED", "apply_weights", "load_weights", "refuse_pickle"]

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".mar", ".ptl")
"""Suffixes of files that are opened by running the pickle in them."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""

_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
_SHOWN = 5


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file, by name.

    Raises:
        BadData: not a `.safetensors` file, cut short, or with a header that is malformed, too long,
            ambiguous, or that does not cover the data exactly.
        TrustError: a pickled file.
        MissingDependency: the safetensors package is not installed.
    """
    refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise BadData(f"weights {path.name} have an unknown format; taken: .safetensors")
    data = read_file(path)
    shapes = _checked_header(data, path.name)
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "safetensors is not installed", hint="pip install safetensors"
        ) from error
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise BadData(f"{path.name} cannot be read: {error}") from error
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        raise TrustError(f"{path.name} means different things to different readers")
    return tensors


def apply_weights(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Copies weights into a module whose state they must match exactly.

    Args:
        module: changed in place.
        weights: one tensor per entry of ``module.state_dict()``.
        what: the weights' name, for messages.

    Raises:
        BadData: entries are missing, unknown, of another shape or kind of number, or NaN.
    """
    state = module.state_dict()
    problems = [
        ("lacks", [name for name in state if name not in weights]),
        ("has, unknown to the model,", [name for name in weights if name not in state]),
        (
            "has in another shape",
            [
                f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
                for name, tensor in state.items()
                if name in weights and weights[name].shape != tensor.shape
            ],
        ),
        (
            "has as another kind of number",
            [
                f"{name} {weights[name].dtype} instead of {tensor.dtype}"
                for name, tensor in state.items()
                if name in weights
                and weights[name].is_floating_point() != tensor.is_floating_point()
            ],
        ),
        ("holds NaN in", [name for name, tensor in weights.items() if tensor.isnan().any()]),
    ]
    found = [f"{verb} {_some(names)}" for verb, names in problems if names]
    if found:
        raise BadData(f"{what} does not fit {type(module).__name__}: it {'; it '.join(found)}")
    module.load_state_dict(weights)


def refuse_pickle(path: Path) -> None:
    """Raises TrustError for a file that could only be opened by running the pickle in it."""
    if path.suffix.lower() in PICKLED:
        safe = path.with_suffix(".safetensors").name
        raise TrustError(
            f"{path.name} is a pickle: opening it could run any code",
            hint='convert weights that you trust: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path.name}', weights_only=True), '{safe}')\"",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more


def _checked_header(data: bytes, what: str) -> dict[str, tuple[int, ...]]:
    """Name to shape, from a header whose offsets cover the data without gap or overlap."""
    if len(data) < 10:
        raise BadData(f"{what} is cut short")
    (length,) = struct.unpack_from("<Q", data)
    if length > MAX_HEADER_BYTES or 8 + length > len(data):
        raise BadData(f"{what} has a header of {length} bytes in a file of {len(data)}")
    header = data[8 : 8 + length]
    if header[:1] != b"{":
        raise BadData(f"{what} has a header that is no JSON object")
    entries = parse_json(header, f"the header of {what}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadData(f"{what} has metadata that is not text")
    spans, shapes = [], {}
    for name, entry in entries.items():
        shapes[name], span = _checked_entry(name, entry, what)
        spans.append((*span, name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise BadData(f"{what}: {name!r} starts at byte {start}, not {end}: gap or overlap")
        end = stop
    if end != len(data) - 8 - length:
        raise BadData(f"{what} holds {len(data) - 8 - length} bytes of data, its header {end}")
    return shapes


def _checked_entry(name: str, entry: Any, what: str) -> tuple[tuple[int, ...], tuple[int, int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadData(f"{what} has a malformed entry for {name!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
    if any(type(n) is not int or not 0 <= n < 2**63 for n in numbers) or len(offsets) != 2:
        raise BadData(f"{what} has a malformed entry for {name!r}")
    if dtype not in _BITS:
        raise BadData(f"{what}: {name!r} has dtype {dtype!r}; allowed: {', '.join(_BITS)}")
    elements = 1
    for n in shape:
        elements *= n
    if elements * _BITS[dtype] != (offsets[1] - offsets[0]) * 8:
        raise BadData(f"{what}: {name!r} of shape {shape} does not fill its {offsets}")
    return tuple(shape), (offsets[0], offsets[1])
