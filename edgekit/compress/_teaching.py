"""The teacher's answers to a whole data set, and what they say of the teacher."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

import edgekit
from edgekit.artifact import fingerprint
from edgekit.compress._answers import CHUNK, GIB, Kept, Layout, Teacher, keep
from edgekit.compress._checkpoint import digest_of
from edgekit.compress._classes import inputs_of
from edgekit.compress._pairing import Matched, check_labels
from edgekit.compress._train_types import TrainSet
from edgekit.errors import BadData, StorageError
from edgekit.protocols import Watch
from edgekit.scratch import scratch

__all__ = ["Lesson", "augments", "judge", "kept_answers", "sample_answers"]

SURVEY: Final = 256
"""Samples that a teacher is judged by where its answers are not kept."""

PROBED: Final = 32
DRAWS: Final = 8
"""Samples, and how often each is asked for with a generator, to see whether there is augmentation.
One that changes a sample in a hundred is still seen in 9 cases of 10."""

SAME: Final = 0.02
"""How far kept answers may be from the teacher's, as a part of the largest: other processors and
numbers of threads add up in other orders, and float16 has 11 bits."""


def augments(data: TrainSet) -> bool:
    """Whether a set gives other samples with a generator than without.

    A set may say so itself by an attribute ``augmented``; else a few samples are asked for.
    """
    said = getattr(data, "augmented", None)
    if isinstance(said, bool):
        return said
    rows = torch.arange(min(PROBED, len(data)))
    plain = inputs_of(data.batch(rows, None))
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        drawn = inputs_of(data.batch(rows, generator))
        if any(not torch.equal(plain[name], drawn[name]) for name in plain):
            return True
    return False


@dataclass(frozen=True)
class Lesson:
    """Who is asked what.

    Attributes:
        teacher: who is asked.
        digest: of the teacher's network.
        data: the samples.
        layers: the pairs of layers, `edgekit.compress.distill.Pair`.
        matched: their comparisons.
        mask: name of the input ``[n, tokens]`` that is 0 where a token is padding, if there is one.
    """

    teacher: Teacher
    digest: str
    data: TrainSet
    layers: Sequence[Any]
    matched: Sequence[Matched]
    mask: str

    @property
    def parts(self) -> list[str]:
        """The answers' names, in their order."""
        named = ["logits"]
        for i, (pair, (matching, _, _)) in enumerate(zip(self.layers, self.matched, strict=True)):
            named += [f"pair {i} {pair.teacher} {part}".rstrip() for part in matching.keeps]
        return named

    def asks(self, device: torch.device) -> Callable[[int, int], list[torch.Tensor]]:
        """A function of the first sample and of the one after the last, that asks the teacher."""
        teacher = self.teacher.on(device)

        def answers(start: int, stop: int) -> list[torch.Tensor]:
            batch = inputs_of(self.data.batch(torch.arange(start, stop), None))
            return teacher({name: value.to(device) for name, value in batch.items()})

        return answers

    def read(self) -> tuple[str, torch.Tensor, int]:
        """The data as they are: a digest of the inputs, the labels, and the most tokens.

        Without a mask there are no tokens, 0.
        """
        total = hashlib.sha256()
        labels, tokens = [], 0
        for start in range(0, len(self.data), CHUNK):
            rows = torch.arange(start, min(start + CHUNK, len(self.data)))
            batch = self.data.batch(rows, None)
            total.update(digest_of(inputs_of(batch)).encode())
            labels.append(batch["y"])
            if self.mask in batch:
                tokens = max(tokens, batch[self.mask].shape[1])
        return total.hexdigest(), torch.cat(labels), tokens

    def layout(self, first: Sequence[torch.Tensor], dtype: str, tokens: int) -> Layout:
        """How answers like those to the first chunk are laid out for up to ``tokens`` tokens."""
        rows = torch.arange(min(CHUNK, len(self.data)))
        mask = self.data.batch(rows, None).get(self.mask)
        shapes: dict[str, tuple[int, ...]] = {}
        by_token = []
        for part, answer in zip(self.parts, first, strict=True):
            shapes[part] = tuple(answer.shape[1:])
            if part != "logits" and mask is not None and answer.shape[:2] == mask.shape:
                shapes[part] = (tokens, *answer.shape[2:])
                by_token.append(part)
        return Layout(len(self.data), shapes, dtype, self.mask, tuple(by_token))


@contextlib.contextmanager
def kept_answers(
    lesson: Lesson,
    *,
    dtype: str,
    limit: float,
    spill: bool,
    device: torch.device,
    root: Path | None,
    watch: Watch,
) -> Iterator[Kept | None]:
    """The teacher's answers to all samples as they are, on the disk.

    Args:
        lesson: the teacher and the samples.
        dtype: what answers are kept in.
        limit: GiB.
        spill: give None where the answers are larger than the limit.
        device: where the teacher is asked.
        root: where answers lie; None is a place that is removed in the end.
        watch: hears how far it is.

    Raises:
        BadData: an answer is not finite, or a label is no class.
        StorageError: no space, or more than the limit.
    """
    answers = lesson.asks(device)
    samples, labels, tokens = lesson.read()
    first = answers(0, min(CHUNK, len(lesson.data)))
    check_labels(labels, first[0].shape[1])
    layout = lesson.layout(first, dtype, tokens)
    if spill and layout.bytes > limit * GIB:
        watch.note(
            f"the teacher's answers would take {layout.bytes / GIB:.3g} GiB, more than cache_limit "
            f"({limit:.3g}); it is asked for every batch instead"
        )
        yield None
        return
    key = fingerprint(
        teacher=lesson.digest,
        data=samples,
        layers=[(pair.teacher, pair.match) for pair in lesson.layers],
        layout=layout.to_json(),
        torch=torch.__version__,
        edgekit=edgekit.__version__,
    )
    with contextlib.ExitStack() as stack:
        if root is None:
            root = stack.enter_context(scratch("answers"))
        kept = stack.enter_context(
            keep(root, key, layout, answers, limit=int(limit * GIB), watch=watch)
        )
        _check_same(kept, first, inputs_of(lesson.data.batch(torch.arange(len(first[0])), None)))
        judge(kept.logits(), labels, watch)
        yield kept


def _check_same(
    kept: Kept, first: Sequence[torch.Tensor], inputs: Mapping[str, torch.Tensor]
) -> None:
    """Whether kept answers are this teacher's: its code may have changed, which no digest tells.

    Raises:
        StorageError: they are not.
    """
    held = kept(inputs, torch.arange(len(first[0])))
    for its, now in zip(held, first, strict=True):
        exact = now.float().cpu()
        if float((its - exact).abs().max()) > SAME * float(exact.abs().max()) + 1e-6:
            raise StorageError(
                f"the answers kept in {kept.folder} are not what the teacher answers now",
                hint=f"its code was changed; remove {kept.folder}",
            )


def sample_answers(
    teacher: Teacher, data: TrainSet, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of samples spread evenly over a set, float32 ``[n, classes]``, and their labels."""
    count = min(SURVEY, len(data))
    rows = torch.arange(count) * len(data) // count
    asking = teacher.on(device)
    logits, labels = [], []
    for part in rows.split(CHUNK):
        batch = data.batch(part, None)
        inputs = {name: value.to(device) for name, value in inputs_of(batch).items()}
        logits.append(asking(inputs)[0].float().cpu())
        labels.append(batch["y"])
    return torch.cat(logits), torch.cat(labels)


def judge(logits: torch.Tensor, labels: torch.Tensor, watch: Watch) -> None:
    """Notes what is wrong with a teacher whose answers cannot help.

    Args:
        logits: its answers, float32 ``[n, classes]``.
        labels: int64 ``[n]``.
        watch: gets the note.

    Raises:
        BadData: an answer is not finite, or a label is no class.
    """
    wrong = (~logits.isfinite()).any(1)
    if wrong.any():
        raise BadData(
            f"{int(wrong.sum())} of the {len(logits)} answers of the teacher that were looked at "
            "are not finite",
            hint="look at the teacher's weights",
        )
    check_labels(labels, logits.shape[1])
    if len(labels.unique()) < 2:
        return
    chosen = logits.argmax(1)
    if len(chosen.unique()) == 1:
        watch.note(
            f"the teacher answers class {int(chosen[0])} to each of the {len(chosen)} samples that "
            "were looked at; there is little to learn from it"
        )
        return
    right = 100 * float((chosen == labels).float().mean())
    guessed = 100 * float(labels.bincount().max()) / len(labels)
    if right <= guessed:
        watch.note(
            f"the teacher is right on {right:.1f} % of the {len(labels)} samples that were looked "
            f"at; always answering the commonest class would be on {guessed:.1f} %"
        )
