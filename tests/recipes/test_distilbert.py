"""The recipe of a distilled classifier of text: its stages on a tiny BERT, and the whole of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from edgekit import Bundle
from edgekit.data.corpus import read_corpus
from edgekit.data.intents import INTENT_NAMES, intents
from edgekit.errors import BadData
from edgekit.names import TARGETS
from edgekit.recipe import Recipe, Run, Settings, load_recipe
from edgekit.schemas import validate
from edgekit.settings import with_overrides
from edgekit.sources import hugging_face

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, as it is imported

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "distilbert.py"

SMALL = {
    "length": "16",
    "intents.train": "12",
    "intents.dev": "3",
    "intents.test": "3",
    "teacher.train.epochs": "2",
    "teacher.train.rate": "5e-3",
    "student.train.epochs": "2",
    "student.train.rate": "3e-3",
    "narrow.width": "16",
    "narrow.heads": "2",
    "narrow.inner": "24",
    "narrow.common": "100",
    "narrow.train.epochs": "2",
}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(SCRIPT)


@pytest.fixture(scope="module")
def script(recipe: Recipe) -> ModuleType:
    return recipe.module


@pytest.fixture(scope="module")
def small(recipe: Recipe, tiny_bert: Path) -> Settings:
    return with_overrides(recipe.defaults(), {**SMALL, "teacher.source": str(tiny_bert)})


class Stages:
    """Runs the script's stages in this process, each in folders of its own."""

    def __init__(self, script: ModuleType, root: Path) -> None:
        self._script, self._root = script, root
        self.notes: dict[str, list[str]] = {}
        self.metrics: dict[str, Any] = {}

    def __call__(self, name: str, *given: Any) -> Any:
        place = self._root / name
        for part in ("folder", "out"):
            (place / part).mkdir(parents=True)
        run = Run(place / "folder", place / "out", 1)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return getattr(self._script, name)(*given, run)
        finally:
            torch.set_num_threads(before)
            self.notes[name], self.metrics[name] = run.notes, run.metrics


@pytest.fixture(scope="module")
def made(
    script: ModuleType, small: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Stages, Mapping[str, Any]]:
    """The tiny teacher and both its students."""
    stages = Stages(script, tmp_path_factory.mktemp("stages"))
    texts = stages("texts", small, None)
    teacher = stages("teacher", texts, small)
    student = stages("student", texts, teacher, small)
    narrow = stages("narrow", texts, teacher, small)
    return stages, {"texts": texts, "teacher": teacher, "student": student, "narrow": narrow}


# -- data -----------------------------------------------------------------------------------------


def test_the_graph_is_that_of_the_script(recipe: Recipe) -> None:
    needs = {name: set(stage.inputs) for name, stage in recipe.stages.items()}
    assert needs == {
        "texts": set(),
        "teacher": {"texts"},
        "student": {"texts", "teacher"},
        "narrow": {"texts", "teacher"},
        "bundle": {"texts", "student", "narrow"},
        "figures": {"texts", "teacher", "student", "narrow", "bundle"},
    }


def test_without_data_it_learns_intents(made: tuple[Stages, Mapping[str, Any]]) -> None:
    stages, results = made
    corpus = read_corpus(results["texts"])
    wanted = intents(train=12, dev=3, test=3)
    assert corpus.classes == tuple(sorted(INTENT_NAMES))
    for split in ("train", "dev", "test"):
        named = [(text, corpus.classes[label]) for text, label in getattr(corpus, split)]
        assert named == [(text, INTENT_NAMES[label]) for text, label in getattr(wanted, split)]
    assert stages.notes["texts"] == ["16 classes; texts: 192 train, 48 dev, 48 test"]


def test_data_of_ones_own(script: ModuleType, small: Settings, tmp_path: Path) -> None:
    rows = [f'"the film, number {i}, was {"good" if i % 2 else "bad"}",{i % 2}' for i in range(90)]
    path = tmp_path / "films.csv"
    path.write_text("\n".join(["review,sentiment", *rows]) + "\n", encoding="utf-8")
    stages = Stages(script, tmp_path / "stages")
    corpus = read_corpus(stages("texts", small, path))
    assert corpus.classes == ("0", "1")
    assert len(corpus.train) + len(corpus.dev) + len(corpus.test) == 90
    path.write_text("text,label\nonly,one\nclass,one\n", encoding="utf-8")
    with pytest.raises(BadData, match="all texts are of one class, 'one'"):
        Stages(script, tmp_path / "again")("texts", small, path)


# -- models ---------------------------------------------------------------------------------------


def test_each_model_is_smaller_than_the_one_before(
    made: tuple[Stages, Mapping[str, Any]], script: ModuleType
) -> None:
    stages, results = made
    corpus = read_corpus(results["texts"])
    modules = {
        name: hugging_face.load_classifier(results[name].folder)
        for name in ("teacher", "student", "narrow")
    }
    assert [m.config.num_hidden_layers for m in modules.values()] == [4, 2, 2]
    assert [m.config.hidden_size for m in modules.values()] == [32, 32, 16]
    sizes = [sum(p.numel() for p in m.parameters()) for m in modules.values()]
    assert sizes == sorted(sizes, reverse=True)
    for name, module in modules.items():
        assert [module.config.id2label[i] for i in range(16)] == sorted(INTENT_NAMES)
        tokenizer = hugging_face.tokenizer_of(results[name].folder, 16)
        dev = script.tokenized(corpus, "dev", tokenizer, trim=True)
        assert script.top1(module, dev) == results[name].dev
        losses = [value for _, value in stages.metrics[name]["loss"]]
        assert losses[-1] < losses[0]


def test_the_narrow_one_knows_the_words_of_its_training_texts(
    made: tuple[Stages, Mapping[str, Any]],
) -> None:
    stages, results = made
    corpus = read_corpus(results["texts"])
    whole = hugging_face.tokenizer_of(results["teacher"].folder, 16)
    less = hugging_face.tokenizer_of(results["narrow"].folder, 16)
    assert set(less.vocab) < set(whole.vocab)
    for text, _ in corpus.train:
        theirs = [whole.vocab[i] for i in whole.apply(text)["input_ids"][0]]
        assert [less.vocab[i] for i in less.apply(text)["input_ids"][0]] == theirs
    said = [text for text, _ in (*corpus.train, *corpus.dev, *corpus.test)]
    assert hugging_face.check_tokenizer(less, results["narrow"].folder, said) > len(said)
    assert any(
        f"{len(less.vocab)} of {len(whole.vocab)} pieces" in n for n in stages.notes["narrow"]
    )


def test_a_narrow_one_is_made_only_where_it_is_wanted(
    made: tuple[Stages, Mapping[str, Any]], script: ModuleType, small: Settings, tmp_path: Path
) -> None:
    none = with_overrides(small, {"narrow.width": "0"})
    assert Stages(script, tmp_path)("narrow", made[1]["texts"], made[1]["teacher"], none) is None


def test_the_same_settings_give_the_same_bytes(
    made: tuple[Stages, Mapping[str, Any]], script: ModuleType, small: Settings, tmp_path: Path
) -> None:
    again = Stages(script, tmp_path)("student", made[1]["texts"], made[1]["teacher"], small)
    for path in made[1]["student"].folder.iterdir():
        assert (again.folder / path.name).read_bytes() == path.read_bytes(), path.name


# -- the whole of it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(
    tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[str], Mapping[str, str]]:
    """A run of the command: its folder, its document, the command and its environment."""
    out = tmp_path_factory.mktemp("run")
    environment = os.environ | {
        "EDGEKIT_STORE": str(tmp_path_factory.mktemp("store")),
        "NO_COLOR": "1",
    }
    # Enough to be sure of its answers: nearly equal logits would say nothing of a runtime.
    settings = {
        **SMALL, "teacher.source": str(tiny_bert), "export.bench": "false",
        "intents.train": "60", "teacher.train.epochs": "8", "student.train.epochs": "4",
        "narrow.train.epochs": "12", "export.calib": "128", "export.max_drop": "3",
    }  # fmt: skip
    command = [sys.executable, "-m", "edgekit.cli.main", "run", str(SCRIPT), "--json"]
    command += [f"-s{name}={value}" for name, value in settings.items()] + ["-o", str(out)]
    return out, ran(command, environment), command, environment


def ran(command: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    document: dict[str, Any] = json.loads(done.stdout)
    validate(document)
    return document


@pytest.mark.slow
@pytest.mark.runtime
def test_the_recipe_exports_to_every_runtime_with_its_tokenizer(
    whole: tuple[Path, dict[str, Any], list[str], Mapping[str, str]],
) -> None:
    out, document, _, _ = whole
    assert [s["status"] for s in document["stages"]] == ["ok"] * 6
    exported = json.loads((out / "bundle" / "export.json").read_text())
    validate(exported)
    assert {a["target"] for a in exported["artifacts"]} == set(TARGETS)
    for artifact in exported["artifacts"]:
        emulated = artifact["target"] == "coreml" and sys.platform != "darwin"
        assert artifact["status"] == "ok", artifact["reason"]
        assert artifact["verification"] == ("emulated" if emulated else "runtime")
    gates = {g["name"]: g for s in document["stages"] for g in s.get("gates", ())}
    assert gates["tokenizer"]["passed"] is True
    figures = {s["name"]: s for s in document["stages"]}["figures"]["value"]
    check_figures(figures)
    evidence = json.loads((out / "figures" / "evidence.json").read_text())
    validate(evidence)
    assert evidence["labels"] == sorted(INTENT_NAMES)
    corpus = read_corpus(out / "texts")
    with Bundle.open(out / "bundle" / "bundle") as bundle:
        tokenizer = bundle.preprocess()
        assert bundle.labels == tuple(sorted(INTENT_NAMES))
        artifact = bundle.artifact(target="onnxruntime", device="x86-server")
        session = bundle.session(artifact)
        answers = [
            int(session.run(tokenizer.apply(text))["output"].argmax()) for text, _ in corpus.test
        ]
        session.close()
    hits = np.mean([a == label for a, (_, label) in zip(answers, corpus.test, strict=True)])
    assert 100 * hits == pytest.approx(figures["artifacts"][artifact.id]["test"])


def check_figures(figures: Mapping[str, Any]) -> None:
    models, artifacts = figures["models"], figures["artifacts"]
    assert models.keys() == {"teacher", "student", "narrow"}
    assert models["teacher"]["gained"] == 0
    assert models["narrow"]["vocabulary"] < models["student"]["vocabulary"]
    assert {row["with"] for row in models.values()} == {"teacher"}
    assert {row["with"] for row in artifacts.values() if row["test"] is not None} == {"narrow"}
    for row in (*models.values(), *artifacts.values()):
        if row["test"] is None:
            assert row["reason"]
            continue
        assert row["interval"][0] <= row["gained"] <= row["interval"][1]
        assert row["test"] - models[row["with"]]["test"] == pytest.approx(row["gained"])


@pytest.mark.slow
@pytest.mark.runtime
def test_a_second_run_trains_nothing_and_another_export_setting_only_exports(
    whole: tuple[Path, dict[str, Any], list[str], Mapping[str, str]],
) -> None:
    _, first, command, environment = whole
    again = ran(command, environment)
    assert all(stage["cached"] for stage in again["stages"])
    assert [s["result"] for s in again["stages"]] == [s["result"] for s in first["stages"]]
    changed = ran([*command, '-sexport.targets=["onnxruntime"]'], environment)
    assert [s["name"] for s in changed["stages"] if not s["cached"]] == ["bundle"]


@pytest.mark.slow
@pytest.mark.runtime
def test_the_student_is_exported_by_the_command_line_too(
    whole: tuple[Path, dict[str, Any], list[str], Mapping[str, str]], tmp_path: Path
) -> None:
    out, _, _, environment = whole
    command = [sys.executable, "-m", "edgekit.cli.main", "export", str(out / "student")]
    command += ["--target", "onnxruntime", "--no-bench", "-o", str(tmp_path / "b"), "--json"]
    command += ["--calib", str(out / "texts" / "train.jsonl")]
    command += ["--eval", str(out / "texts" / "test.jsonl")]
    document = ran(command, environment)
    assert document["reference"]["n"] == 48
    assert (tmp_path / "b" / "vocab.txt").read_bytes() == (out / "student/vocab.txt").read_bytes()
