"""Fits any module to one calling convention: positional tensors in, a flat tuple of tensors out.

Modules that already take leading positional tensors and give a tensor or a flat tuple stay as they
are; the others are wrapped by a small module whose forward() keeps the parameters' names, because
`torch.export` names its placeholders after them.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from edgekit.errors import UnsupportedError, UsageError
from edgekit.names import unknown

__all__ = ["adapt", "adapt_output", "flatten", "output_names", "unwrap"]


def adapt(
    module: torch.nn.Module, examples: Mapping[str, torch.Tensor]
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The module with a forward() that takes exactly these inputs, and the inputs' order.

    Args:
        module: any module; it is not changed.
        examples: one tensor per input, named after forward()'s parameters.

    Returns:
        The module itself where it can be called as it is, else a wrapper; and the input names in
        the order of forward()'s parameters.

    Raises:
        UsageError: a name is no parameter of forward(), or a required parameter has no example.
    """
    signature = inspect.signature(module.forward)
    named = [p for p in signature.parameters.values() if p.kind not in _VARIADIC]
    takes_any_name = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    takes_any_count = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    _check_names(module, named, examples, takes_any_name or (takes_any_count and not named))

    known = [p.name for p in named if p.name in examples]
    order = (*known, *(name for name in examples if name not in known))
    leading = _leading(named, examples)
    if leading == len(order):
        return module, order
    if not named and takes_any_count:
        leading = len(order)
    return _wrapper(module, order, leading, flat=False), order


def adapt_output(module: torch.nn.Module, order: Sequence[str], output: Any) -> torch.nn.Module:
    """The module, wrapped where `output`, which it gave, is neither a tensor nor a flat tuple."""
    plain = type(output) is tuple and all(isinstance(value, torch.Tensor) for value in output)
    if plain or isinstance(output, torch.Tensor):
        return module
    if isinstance(module, _Wrapper):
        return _wrapper(module.inner, tuple(order), module.leading, flat=True)
    return _wrapper(module, tuple(order), len(order), flat=True)


def unwrap(module: torch.nn.Module) -> torch.nn.Module:
    """The user's own module, whether or not `adapt` or `adapt_output` wrapped it."""
    return module.inner if isinstance(module, _Wrapper) else module


def flatten(output: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a module's output with their paths (``""`` for a bare tensor).

    Dictionaries, named tuples, dataclasses and plain sequences may nest; None is left out.

    Raises:
        UnsupportedError: the output holds something that is no tensor.
    """
    return list(_walk(output, ""))


def output_names(module: torch.nn.Module, output: Any) -> tuple[str, ...]:
    """A name for every tensor of `output`: its key or field, else ``output`` or ``output_<i>``."""
    module = unwrap(module)
    paths = [path for path, _ in flatten(output)]
    if paths in ([""], ["0"]):
        return ("output",)
    if all(path.isdigit() for path in paths):
        annotated = _annotated_fields(module)
        if len(annotated) == len(paths):
            return annotated
    return tuple(
        f"output_{path}" if path[:1].isdigit() else re.sub(r"\W", "_", path) for path in paths
    )


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _check_names(
    module: torch.nn.Module,
    named: Sequence[inspect.Parameter],
    examples: Mapping[str, torch.Tensor],
    takes_any: bool,
) -> None:
    allowed = [p.name for p in named]
    where = f"{type(module).__name__}.forward()"
    for name in examples:
        if not name.isidentifier():
            raise UsageError(f"input name {name!r} is no Python identifier")
        if name not in allowed and not takes_any:
            raise UsageError(unknown(f"parameter of {where}", name, allowed))
    missing = [p.name for p in named if p.default is p.empty and p.name not in examples]
    if missing:
        raise UsageError(
            f"{where} also needs {', '.join(map(repr, missing))}",
            hint="give an example tensor for every parameter that has no default",
        )


def _leading(named: Sequence[inspect.Parameter], examples: Mapping[str, torch.Tensor]) -> int:
    """How many examples can be passed by position: up to the first parameter left out."""
    count = 0
    for parameter in named:
        if parameter.kind is parameter.KEYWORD_ONLY or parameter.name not in examples:
            break
        count += 1
    return count


class _Wrapper(torch.nn.Module):
    """Calls the inner module with its own parameter names; flattens what it gives if asked to."""

    inner: torch.nn.Module

    def __init__(
        self, inner: torch.nn.Module, names: tuple[str, ...], leading: int, flat: bool
    ) -> None:
        super().__init__()
        self.inner = inner
        self.names = names
        self.leading = leading
        self.flat = flat
        self.training = inner.training

    def _call(self, values: tuple[torch.Tensor, ...]) -> Any:
        by_name = dict(zip(self.names[self.leading :], values[self.leading :], strict=True))
        output = self.inner(*values[: self.leading], **by_name)
        return tuple(tensor for _, tensor in flatten(output)) if self.flat else output


def _wrapper(
    inner: torch.nn.Module, names: tuple[str, ...], leading: int, *, flat: bool
) -> _Wrapper:
    def forward(self: _Wrapper, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        return self._call((*args, *(kwargs[name] for name in names[len(args) :])))

    # torch.export reads the placeholders' names off forward()'s signature; setting it on a class
    # of its own (not on the instance) keeps copies of the module bound to themselves.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper: type[_Wrapper] = type("Flat" + type(inner).__name__, (_Wrapper,), {"forward": forward})
    return wrapper(inner, names, leading, flat)


def _walk(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if value is None:
        return
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    for key, item in _children(value, path):
        yield from _walk(item, f"{path}_{key}" if path else str(key))


def _children(value: Any, path: str) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        yield from enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name)
    else:
        what = f"output {path!r}" if path else "the output"
        raise UnsupportedError(
            f"{what} is a {type(value).__name__}, not a tensor",
            hint="return tensors, or tuples, lists, dictionaries and dataclasses of tensors; "
            "a transformers model with a cache takes use_cache=False",
        )


def _annotated_fields(module: torch.nn.Module) -> tuple[str, ...]:
    """Field names of the class that forward() is annotated to return, where it has some."""
    try:
        annotation = typing.get_type_hints(module.forward).get("return")
    except (NameError, TypeError, AttributeError):
        return ()
    if isinstance(annotation, type) and issubclass(annotation, tuple):
        return tuple(getattr(annotation, "_fields", ()))
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return tuple(field.name for field in dataclasses.fields(annotation))
    if typing.is_typeddict(annotation):
        return tuple(typing.get_type_hints(annotation))
    return ()
