"""Whether a student and a teacher go together: their weights, classes and layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from edgekit.compress._classes import inputs_of
from edgekit.compress._matching import (
    KINDS,
    Matching,
    Sides,
    ask,
    captured,
    first_tensor,
    output_shapes,
)
from edgekit.compress._train_types import Batch
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.names import unknown

__all__ = [
    "Matched",
    "answering",
    "check_apart",
    "check_classes",
    "check_labels",
    "classifier_logits",
    "match_layers",
]

Matched = tuple[Matching, tuple[str, ...], tuple[str, ...]]
"""A comparison, and the modules of the student and of the teacher that it looks at."""


def classifier_logits(output: Any, who: str) -> torch.Tensor:
    """The logits ``[n, classes]`` in what a network gave.

    Raises:
        UnsupportedError: they are of another form.
    """
    logits = first_tensor(output)
    if logits is None or logits.ndim != 2:
        shape = "no tensor" if logits is None else f"of shape {list(logits.shape)}"
        raise UnsupportedError(
            f"the {who}'s output is {shape}; distillation takes the logits of a classifier, "
            "[n, classes]"
        )
    return logits


@contextlib.contextmanager
def answering(network: nn.Module) -> Iterator[None]:
    """The network is in eval mode while this lasts; then each part is in the mode that it was."""
    modes = {part: part.training for part in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """A student that shares weights with its teacher would change it.

    Raises:
        UsageError: it does.
    """
    theirs = {
        value.untyped_storage().data_ptr(): name
        for name, value in [*teacher.named_parameters(), *teacher.named_buffers()]
        if value.numel()
    }
    for name, value in [*student.named_parameters(), *student.named_buffers()]:
        if value.numel() and (its := theirs.get(value.untyped_storage().data_ptr())):
            raise UsageError(
                f"the student's {name} is the teacher's {its}, so training would change both",
                hint="give the student a copy: copy.deepcopy",
            )


def check_classes(student: nn.Module, teacher: nn.Module, batch: Batch) -> None:
    """Whether both tell the same classes apart.

    Raises:
        BadData: the teacher's logits are not finite, or a label is no class.
        UnsupportedError: a network gives no logits.
        UsageError: other classes.
    """
    inputs = inputs_of(batch)
    with torch.no_grad():
        theirs = classifier_logits(ask(teacher, _beside(teacher, inputs)), "teacher")
        ours = classifier_logits(ask(student, _beside(student, inputs)), "student")
    if ours.shape[1] != theirs.shape[1]:
        raise UsageError(
            f"the student tells {ours.shape[1]} classes apart, the teacher {theirs.shape[1]}",
            hint="distillation needs the same classes in the same order",
        )
    names = [_label_names(network) for network in (student, teacher)]
    if names[0] and names[1] and names[0] != names[1]:
        raise UsageError(
            f"the student's classes are {_listed(names[0])}, the teacher's {_listed(names[1])}",
            hint="give both configurations the same id2label",
        )
    if not theirs.isfinite().all():
        sample = int((~theirs.isfinite()).any(1).nonzero()[0, 0])
        raise BadData(
            f"the teacher's logits of sample {sample} are not finite",
            hint="look at that sample and at the teacher's weights",
        )
    check_labels(batch["y"], ours.shape[1])


def check_labels(labels: torch.Tensor, classes: int) -> None:
    """Whether labels, int64 ``[n]``, are of ``classes`` classes.

    Raises:
        BadData: one is not.
    """
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise BadData(
            f"label {int(wrong[0])} is no class of the teacher's and the student's {classes}"
        )


def _label_names(network: nn.Module) -> list[str]:
    """The class names that a transformers configuration gives; those it makes up are none."""
    named = getattr(getattr(network, "config", None), "id2label", None)
    if not isinstance(named, Mapping):
        return []
    names = [str(named[i]) for i in sorted(named)]
    return [] if names == [f"LABEL_{i}" for i in range(len(names))] else names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _device(network: nn.Module) -> torch.device:
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _beside(network: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    device = _device(network)
    return {name: value.to(device) for name, value in inputs.items()}


def match_layers(
    student: nn.Module,
    teacher: nn.Module,
    layers: Sequence[Any],
    inputs: Mapping[str, torch.Tensor],
) -> list[Matched]:
    """A comparison for each `edgekit.compress.distill.Pair`; it draws its weights from torch.

    Args:
        student, teacher: in eval mode.
        layers: the pairs.
        inputs: a few samples.

    Raises:
        UsageError: a layer is not there, or two cannot be compared.
    """
    matched: list[Matched] = []
    for pair in layers:
        kind = KINDS[pair.match]
        found, sites = [], []
        for who, network, name in (
            ("student", student, pair.student),
            ("teacher", teacher, pair.teacher),
        ):
            given = _beside(network, inputs)
            shapes = output_shapes(network, given)
            if name not in shapes:
                raise UsageError(unknown(f"layer of the {who}", name, shapes))
            try:
                sites.append(kind.sites(network, name))
            except UsageError as error:
                fit = [n for n in shapes if _has_sites(kind, network, n)]
                raise UsageError(
                    f"match={pair.match!r}: the {who}'s {error.message}",
                    hint=f"those that are: {', '.join(fit) or 'none'}",
                ) from None
            found.append(_outputs(network, sites[-1], given))
        sides = Sides(
            student, teacher, pair.student, pair.teacher, (found[0], found[1]), pair.heads
        )
        try:
            matching = kind(sides)
        except UsageError as error:
            raise _unlike(sides, pair.match, error, inputs) from None
        matched.append((matching, sites[0], sites[1]))
    return matched


def _outputs(
    network: nn.Module, names: Sequence[str], inputs: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    with torch.no_grad(), captured(network, names) as found:
        ask(network, inputs)
    return [found[name].float().cpu() for name in names]


def _has_sites(kind: type[Matching], network: nn.Module, name: str) -> bool:
    try:
        kind.sites(network, name)
    except UsageError:
        return False
    return True


def _unlike(
    sides: Sides, match: str, error: UsageError, inputs: Mapping[str, torch.Tensor]
) -> UsageError:
    """Says which layers of the teacher would do instead."""
    shapes = output_shapes(sides.teacher, _beside(sides.teacher, inputs))
    fit = []
    for name in shapes:
        if not _has_sites(KINDS[match], sides.teacher, name):
            continue
        given = _outputs(
            sides.teacher,
            KINDS[match].sites(sides.teacher, name),
            _beside(sides.teacher, inputs),
        )
        with contextlib.suppress(UsageError):
            KINDS[match](
                Sides(
                    sides.student,
                    sides.teacher,
                    sides.ours,
                    name,
                    (sides.found[0], given),
                    sides.heads,
                )
            )
            fit.append(f"{name} {shapes[name][1:]}")
    ours, theirs = ([list(t.shape[1:]) for t in given] for given in sides.found)
    return UsageError(
        f"match={match!r} cannot compare the student's {sides.ours} {ours[0]} with the teacher's "
        f"{sides.theirs} {theirs[0]}: {error.message}",
        hint=f"layers of the teacher that it can: {', '.join(fit) or 'none'}",
    )
