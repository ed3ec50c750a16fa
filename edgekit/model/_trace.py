"""A fingerprint of what a module computes, from running it once.

Exporting takes seconds and a cache key is wanted at once. Running the module on its examples and
writing down every operator, its plain arguments and where its tensors come from says the same as
the exported graph: both follow one run on the same inputs.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["trace_digest"]


class _Untraceable(Exception):
    """A higher-order operator, whose branches one run does not all see."""


class _Tracer(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, named: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._named = named
        self._alive: list[torch.Tensor] = []  # an id means nothing once its tensor is gone
        self._made = 0
        self._sha = hashlib.sha256()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not isinstance(func, torch._ops.OpOverload):
            raise _Untraceable(str(func))
        line = f"{func}({self._form(args)};{self._form(kwargs or {})})"
        result = func(*args, **(kwargs or {}))
        self._sha.update(line.encode())
        self._register(result)
        return result

    def _form(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return self._named.get(id(value)) or self._constant(value)
        if isinstance(value, list | tuple):
            return "[" + ",".join(self._form(v) for v in value) + "]"
        if isinstance(value, dict):
            return "{" + ",".join(f"{k}={self._form(v)}" for k, v in sorted(value.items())) + "}"
        return repr(value)

    def _constant(self, value: torch.Tensor) -> str:
        """A tensor that no operator made here: its content is what it is."""
        self._alive.append(value)
        name = f"constant:{tensor_digest(value)}"
        self._named[id(value)] = name
        return name

    def _register(self, result: Any) -> None:
        for value in result if isinstance(result, list | tuple) else [result]:
            if isinstance(value, torch.Tensor) and id(value) not in self._named:
                self._alive.append(value)
                self._named[id(value)] = f"%{self._made}:{value.dtype}{list(value.shape)}"
                self._made += 1

    def digest(self, outputs: tuple[torch.Tensor, ...]) -> str:
        """Of the run so far, ending in ``outputs``."""
        self._sha.update(self._form(outputs).encode())
        return self._sha.hexdigest()


def trace_digest(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], run: Any) -> str | None:
    """sha256 over the operators of one run and over every weight's bytes.

    Args:
        module: in eval mode.
        inputs: its example inputs.
        run: calls the module on them and gives a flat tuple of tensors.

    Returns:
        None where one run can't stand for the model (it holds control flow as an operator).
    """
    named: dict[int, str] = {}
    sha = hashlib.sha256()
    weights = [*module.named_parameters(), *module.named_buffers()]
    for _, value in weights:
        # The place in the order counts rather than the name, as in the exported graph.
        named.setdefault(id(value), f"weight:{len(named)}")
        sha.update(f"{named[id(value)]}:{tensor_digest(value)}".encode())
    for position, value in enumerate(inputs):
        named[id(value)] = f"input:{position}"
    tracer = _Tracer(named)
    try:
        with torch.no_grad(), tracer:
            outputs = run(*inputs)
    except _Untraceable:
        return None
    sha.update(tracer.digest(outputs).encode())
    return sha.hexdigest()


def tensor_digest(value: torch.Tensor) -> str:
    """sha256 of dtype, shape and values."""
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    sha = hashlib.sha256(f"{value.dtype}{list(value.shape)}".encode())
    sha.update(flat.numpy().data)
    return sha.hexdigest()
