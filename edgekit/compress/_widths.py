"""The widths of a network that can be pruned: which channels of which layers go together.

Torch-Pruning's dependency graph says which (Fang et al., "DepGraph: Towards Any Structural
Pruning", 2023, arXiv:2301.12900). Nothing else of it is used: it follows gradients, takes what it
does not know for elementwise, and keeps what it was told once in default arguments. So each width
is proved on the examples before it is offered: with some of its channels cut out, the network must
answer as it does with the same channels zeroed where they are read. What fails is left alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

import torch
from torch import nn

from edgekit.compress._cut import Gone, Member, Survey, Width, cut, drops
from edgekit.compress._heads import Heads, heads_of
from edgekit.errors import EdgekitError, MissingDependency, UnsupportedError, UsageError
from edgekit.model._adapter import flatten
from edgekit.names import install_command

__all__ = ["survey"]

Examples = Mapping[str, torch.Tensor]

_CLOSE: Final = 1e-3
"""Of the largest answer: what a sum of other terms, or of as many in another order, may differ."""


@dataclass
class _Found:
    """A group of the dependency graph: what of it is a width, or why it is none."""

    name: str
    channels: int
    slots: int = 1
    slot_of: Callable[[int], int] = int
    heads: bool = False
    members: list[Member] = field(default_factory=list)
    reason: str | None = None


def survey(module: nn.Module, examples: Examples, *, keep: Sequence[str] = ()) -> Survey:
    """Finds and proves the widths of a network.

    Args:
        module: any module; it is not changed.
        examples: one tensor per input, batch first.
        keep: patterns (`fnmatch`) of layers whose outputs are not pruned; a module stands for all
            that is in it. What the network gives is never pruned.

    Raises:
        UnsupportedError: the module doesn't run on the examples, gives no floats that depend on its
            weights, or has no width that can be pruned.
        UsageError: a pattern matches no layer.
        MissingDependency: Torch-Pruning is not installed.
    """
    copied = deepcopy(module).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    kept = _kept(copied, keep)
    ran, answers = _run(copied, examples)
    graph = _graph(copied, examples, answers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(_groups(graph, copied, kept))
    left = {f.name: f.reason for f in found if f.reason is not None}
    reached = {id(m) for m in graph.module2node}
    for name, layer in copied.named_modules():
        if isinstance(layer, _ROOTS) and id(layer) not in reached:
            left[name] = "no gradient comes to it from the outputs: detached, or not differentiable"
            if name not in ran:
                left[name] = "it does not run on the examples"
    widths = tuple(
        Width(f.name, f.channels, f.slots, f.heads, tuple(f.members))
        for f in found
        if f.reason is None
    )
    proven = _prove(copied, examples, Survey(widths, left))
    if not proven.widths:
        said = "; ".join(f"{name}: {why}" for name, why in list(proven.left.items())[:3])
        raise UnsupportedError(f"no layer of the model can be pruned: {said or 'it has no layers'}")
    return proven


_ROOTS: Final = (nn.modules.conv._ConvNd, nn.Linear)


def _kept(module: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Names of the layers that the patterns keep."""
    names = [name for name, _ in module.named_modules() if name]
    kept: set[str] = set()
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise UsageError(
                f"no layer is called {pattern!r}, which is to be kept",
                hint=f"layers are called such as {', '.join(names[:6])}",
            )
        kept.update(n for n in names for hit in hits if n == hit or n.startswith(f"{hit}."))
    return kept


def _run(module: nn.Module, examples: Examples) -> tuple[list[str], list[torch.Tensor]]:
    """Names of the layers that ran, and the outputs; an error names the layer that it came from."""
    ran: dict[str, None] = {}
    inside: list[str] = []
    hooks = []
    for name, layer in module.named_modules():

        def enter(_: nn.Module, __: Any, name: str = name) -> None:
            inside.append(name)
            ran.setdefault(name)

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            inside.pop()

        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        with torch.enable_grad():
            outputs = [tensor for _, tensor in flatten(module(**examples))]
    except EdgekitError:
        raise
    except Exception as error:
        name = inside[-1] if inside else ""
        where, kind = name or "its forward()", type(module.get_submodule(name)).__name__
        first = (str(error).splitlines() or [""])[0]
        raise UnsupportedError(
            f"the model does not run on the examples: {where} ({kind}): {first[:200]}",
            hint="give one example tensor per input, batch first, named as forward() names it",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return list(ran), outputs


def _graph(module: nn.Module, examples: Examples, outputs: Sequence[torch.Tensor]) -> Any:
    """Torch-Pruning's graph of the module."""
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingDependency(
            "pruning needs torch-pruning", hint=install_command("recipes")
        ) from error

    if not any(tensor.grad_fn is not None for tensor in outputs):
        layer = next((n for n, m in module.named_modules() if isinstance(m, _ROOTS)), "no layer")
        raise UnsupportedError(
            f"pruning follows gradients, and none comes from the outputs to {layer}",
            hint="leave out no_grad(), detach() and argmax(); give the scores, not the classes",
        )
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            return torch_pruning.DependencyGraph().build_dependency(
                module,
                example_inputs=dict(examples),
                output_transform=lambda out: [
                    tensor for _, tensor in flatten(out) if tensor.grad_fn is not None
                ],
                # A list of its own: the default one is shared by all graphs of the process.
                unwrapped_parameters=[],
                verbose=False,
            )
    except Exception as error:
        where = _culprit(error, module) or type(module).__name__
        raise UnsupportedError(
            f"Torch-Pruning can't follow the model behind {where}: {type(error).__name__}: {error}",
            hint="what follows that layer views, splits or mixes channels as it does not know",
        ) from error


def _culprit(error: BaseException, module: nn.Module) -> str | None:
    """The layer at or before the node of the graph that an error of Torch-Pruning's was about."""
    names = {id(m): name for name, m in module.named_modules()}
    trace, nodes = error.__traceback__, list[Any]()
    while trace is not None:
        found = [v for v in trace.tb_frame.f_locals.values() if hasattr(v, "grad_fn")]
        nodes += [v for v in found if hasattr(v, "inputs")]
        trace = trace.tb_next
    queue, seen = nodes[-1:], set[int]()
    while queue:
        node = queue.pop(0)
        if id(node.module) in names:
            return str(names[id(node.module)])
        seen.add(id(node))
        queue += [n for n in node.inputs if id(n) not in seen]
    return None


def _groups(graph: Any, module: nn.Module, kept: set[str]) -> Iterator[_Found]:
    """The graph's groups, each rooted in the outputs of one layer."""
    names = {id(m): name for name, m in module.named_modules()}
    names |= {id(p): name for name, p in module.named_parameters()}
    order = {name: place for place, name in enumerate(names.values())}
    tied = _tied(module)
    attentions = _attentions(module)
    seen: set[str] = set()
    roots = [m for m in graph.module2node if isinstance(m, _ROOTS)]
    # The graph's own order is that of a walk from the outputs back.
    for root in sorted(roots, key=lambda m: order[names[id(m)]]):
        name = names[id(root)]
        if name in seen:
            continue
        pruner = graph.get_pruner_of_module(root)
        channels = pruner.get_out_channels(root)
        group = graph.get_pruning_group(root, pruner.prune_out_channels, list(range(channels)))
        found = _read(graph, group, _Found(name, channels), names, attentions)
        seen.update(m.layer for m in found.members if m.side == "out")
        seen.add(name)
        found.reason = found.reason or _refusal(found, kept, tied)
        yield found


def _attentions(module: nn.Module) -> dict[str, Heads]:
    """Heads by the names of the layers that make queries, keys and values."""
    found: dict[str, Heads] = {}
    for path, layer in module.named_modules():
        heads = heads_of(layer)
        if heads is not None:
            prefix = f"{path}." if path else ""
            found.update({prefix + name: heads for name in heads.projections})
    return found


def _tied(module: nn.Module) -> set[str]:
    """Layers whose tensors are also others'."""
    owners: dict[int, list[str]] = {}
    for path, layer in module.named_modules():
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    return {path for paths in owners.values() if len(paths) > 1 for path in paths}


def _read(
    graph: Any, group: Any, found: _Found, names: Mapping[int, str], attentions: Mapping[str, Heads]
) -> _Found:
    """Reads a group out: its members, by the channels of its root."""
    import torch_pruning

    kinds = torch_pruning.ops.OPTYPE
    members: list[tuple[str, str, Sequence[int], Sequence[int]]] = []
    groups, heads = 1, None
    for item in group:
        node, layer = item.dep.target, item.dep.target.module
        if node.type == kinds.OUTPUT:
            found.reason = "the model gives it out"
            continue
        if id(layer) not in names:
            continue  # an operation, such as an addition
        if node.type in (kinds.MHA, kinds.LSTM):
            found.reason = f"{names[id(layer)]} ({type(layer).__name__}) is not cut"
            continue
        outward = item.dep.handler.__name__ == "prune_out_channels"
        side = "out" if outward else "in"
        if node.type == kinds.PARAMETER:
            side = str(node.pruning_dim % layer.ndim)
        if node.type == kinds.CONV and layer.groups > 1:
            groups = max(groups, layer.groups)
        if isinstance(layer, nn.GroupNorm):
            groups = max(groups, layer.num_groups)
        if any(root is None for root in item.root_idxs):
            found.reason = f"channels of {names[id(layer)]} can't be followed to {found.name}"
            continue
        members.append((names[id(layer)], side, item.idxs, item.root_idxs))
        heads = heads or (attentions.get(names[id(layer)]) if side == "out" else None)
    if heads is not None:
        size = heads.size
        if found.channels != heads.count * size:
            found.reason = found.reason or "its heads can't be counted"
        found.heads, found.slots = True, found.channels // size
        found.slot_of = lambda channel: channel // size
    else:
        # Of what is computed in groups, as many channels go from each of them.
        found.slots = found.channels // groups
        found.slot_of = lambda channel: channel % found.slots
    merged: dict[tuple[str, str], dict[int, int]] = {}
    for layer_name, side, index, root in members:
        place = merged.setdefault((layer_name, side), {})
        place.update({i: found.slot_of(r) for i, r in zip(index, root, strict=True)})
    found.members = [
        Member(layer_name, side, torch.tensor(list(at)), torch.tensor(list(at.values())))
        for (layer_name, side), at in merged.items()
    ]
    return found


def _refusal(found: _Found, kept: set[str], tied: set[str]) -> str | None:
    """Why a group is no width, if it is none."""
    layers = [m.layer for m in found.members]
    for layer in (m.layer for m in found.members if m.side == "out"):
        if layer in kept:
            return f"{layer} is kept"
    if shared := next((layer for layer in layers if layer in tied), None):
        return f"{shared} shares its weights with another layer"
    if found.slots < 2:
        return "it has one channel only, or one per group"
    if not any(m.side == "in" for m in found.members):
        return "no layer reads it: the model gives it out"
    return None


def _prove(module: nn.Module, examples: Examples, all_: Survey) -> Survey:
    """The survey without the widths that can't be cut as the graph says."""
    left = dict(all_.left)

    def sift(widths: list[Width]) -> list[Width]:
        """Those that pass, by halves: mostly all do, and one look tells."""
        fault = _fault(module, examples, widths) if widths else None
        if fault is None:
            return widths
        if len(widths) == 1:
            left[widths[0].name] = fault
            return []
        middle = len(widths) // 2
        return sift(widths[:middle]) + sift(widths[middle:])

    widths = sift(list(all_.widths))
    if 0 < len(widths) < len(all_.widths) and _fault(module, examples, widths) is not None:
        # Some fail in company only.
        good: list[Width] = []
        for width in widths:
            fault = _fault(module, examples, [*good, width])
            if fault is None:
                good.append(width)
            else:
                left[width.name] = fault
        widths = good
    return Survey(tuple(widths), left)


def _fault(module: nn.Module, examples: Examples, widths: Sequence[Width]) -> str | None:
    """What goes wrong where a slot of each of these widths is cut out, or None."""
    survey_ = Survey(tuple(widths), {})
    gone: Gone = {w.name: frozenset((w.slots // 2,)) for w in widths}
    exact = {w.name: gone[w.name] for w in widths if not _normed(module, w)}
    try:
        with torch.no_grad():
            whole = _answers(module(**examples))
            shapes = [tensor.shape for tensor in whole]
            narrow = _answers(cut(module, survey_, {}, gone)(**examples))
            if [tensor.shape for tensor in narrow] != shapes:
                return "the outputs change their shape"
            if not exact:
                return None
            if len(exact) < len(widths):
                narrow = _answers(cut(module, survey_, {}, exact)(**examples))
            with _zeroed(module, survey_, exact):
                wanted = _answers(module(**examples))
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return f"it does not run without a channel of it: {first[:160]}"
    for ours, theirs in zip(narrow, wanted, strict=True):
        far = float((ours - theirs).abs().max()) if ours.numel() else 0.0
        if not far <= _CLOSE * max(float(theirs.abs().max()), 1e-12):
            return "it answers otherwise than with that channel zeroed; it is read in a way unknown"
    return None


def _answers(output: Any) -> list[torch.Tensor]:
    return [t.detach().clone() for _, t in flatten(output) if t.is_floating_point()]


def _normed(module: nn.Module, width: Width) -> bool:
    """Whether a norm over channels reads them, so that zeros are not the same as none."""
    mixing = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    owners = [m.layer.rpartition(".")[0] if m.side.isdigit() else m.layer for m in width.members]
    return any(isinstance(module.get_submodule(owner), mixing) for owner in owners)


@contextmanager
def _zeroed(module: nn.Module, survey_: Survey, gone: Gone) -> Iterator[None]:
    """While it lasts, layers that read channels that are gone find zeros there."""
    hooks = []
    for (name, side), index in drops(survey_, gone).items():
        if side != "in":
            continue
        layer: Any = module.get_submodule(name)
        axis = -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.ndim

        def zero(_: nn.Module, args: Any, index: Any = index, axis: int = axis) -> Any:
            return (args[0].index_fill(axis, index.to(args[0].device), 0.0), *args[1:])

        hooks.append(layer.register_forward_pre_hook(zero))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
