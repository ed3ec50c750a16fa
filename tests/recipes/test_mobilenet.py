"""The recipe that `make demo` runs, in few epochs: its data, its stages, and what it leaves."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit import Bundle, Store
from edgekit.cli.run import command as run_command
from edgekit.names import TARGETS
from edgekit.recipe import Recipe, Runner, load_recipe
from edgekit.schemas import validate

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "mobilenet.py"
STAGES = ["facts", "teacher", "student", "pruned", "plan", "exported", "answers"]

QUICK = {
    "size": "16",
    "teacher.width": "0.5",
    "teacher.train.epochs": "4",
    "student.train.epochs": "10",
    "prune.recover.epochs": "3",
    "qat.train.epochs": "1",
    "quantize.calibration": "64",
    "quantize.sensitivity": "false",
    "quantize.bench": "false",
    "quantize.targets": '["tflite", "onnxruntime"]',
}

EVERY = QUICK | {"quantize.targets": "[]"}

TINY = QUICK | {
    "teacher.train.epochs": "1",
    "student.train.epochs": "1",
    "student.train.checkpoint_s": "0",
    "prune.recover.epochs": "1",
    "prune.target": "0.9",
    "quantize.calibration": "32",
    "quantize.targets": '["onnxruntime"]',
    "quantize.max_drop": "100",
    "devices": '["x86-server"]',
}


def call(
    out: Path, settings: Mapping[str, str], environment: Mapping[str, str], *more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, settings, *more),
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )


def command(out: Path, settings: Mapping[str, str], *more: str) -> list[str]:
    chosen = [word for name, value in settings.items() for word in ("-s", f"{name}={value}")]
    return [sys.executable, str(RECIPE), "-o", str(out), *chosen, *more]


def stages(out: Path) -> dict[str, dict[str, Any]]:
    document = json.loads((out / "run.json").read_text())
    validate(document)
    return {stage["name"]: stage for stage in document["stages"]}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPE)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """A store of its own, which the tests below share as a user's runs do."""
    return os.environ | {"EDGEKIT_STORE": str(tmp_path_factory.mktemp("store")), "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def demo(
    environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str]:
    """Where the recipe wrote, its stdout and its stderr."""
    out = tmp_path_factory.mktemp("demo")
    done = call(out, QUICK, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout, done.stderr


def test_no_recipe_has_the_name_of_a_standard_module() -> None:
    # `python recipes/NAME.py` puts their folder before the standard library.
    assert not {p.stem for p in (ROOT / "recipes").glob("*.py")} & sys.stdlib_module_names


# -- data and networks ----------------------------------------------------------------------------


def test_the_stages_are_these(recipe: Recipe) -> None:
    assert list(recipe.stages) == STAGES


def test_make_runs_this_recipe() -> None:
    makefile = (ROOT / "Makefile").read_text()
    rule = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert rule is not None
    assert "$(BIN)/edgekit run mobilenet -o out/demo $(DEMO)" in rule[1]
    found = re.search(r"^DEMO := ((?:.*\\\n)*.*)$", makefile, re.M)
    assert found is not None
    words = found[1].replace("\\\n", " ").split()
    context = run_command.make_context("run", ["mobilenet", *words])
    assert len(context.params["settings"]) == len(words) // 2


def test_the_test_pictures_are_in_no_other_set(recipe: Recipe) -> None:
    digits = recipe.module.digits
    (learn, learn_y), (judge, judge_y) = digits("train"), digits("test")
    assert (len(learn), len(judge)) == (1437, 360)
    assert set(learn_y) == set(judge_y) == set(range(10))
    assert not {p.tobytes() for p in learn} & {p.tobytes() for p in judge}
    assert learn.dtype == np.uint8 and learn.shape[1:] == (8, 8)
    assert (learn.min(), learn.max()) == (0, 255)


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [("mobilenet_v2", "short"), ("mobilenet_v3_small", "short"), ("resnet18", "short"),
     ("mobilenet_v2", "full")],
)  # fmt: skip
def test_networks_take_pictures_of_the_size(recipe: Recipe, kind: str, blocks: str) -> None:
    module = recipe.module
    config = module.Config(
        blocks=blocks, student=module.Network(kind=kind, width=0.5), size=32, augment={}
    )
    network = module.network(config.student, config, 7).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    if (kind, blocks) == ("mobilenet_v2", "short"):
        found = [m for m in network.modules() if type(m).__name__ == "InvertedResidual"]
        assert len(found) == 11


# -- the whole of it ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.runtime
def test_it_exports_and_loses_nothing(demo: tuple[Path, str, str]) -> None:
    out, said, told = demo
    found = stages(out)
    assert list(found) == STAGES
    assert found["facts"]["value"]["mean"] == pytest.approx([0.3056] * 3, abs=2e-3)
    holds(out, {"tflite", "onnxruntime"})
    assert "report.html" in said and str(out / "exported" / "bundle") in said
    assert "\x1b" not in said + told and "Warning" not in told


@pytest.mark.slow
@pytest.mark.runtime
def test_it_exports_to_every_runtime(environment: Mapping[str, str], tmp_path: Path) -> None:
    done = call(tmp_path, EVERY, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    holds(tmp_path, set(TARGETS))


def holds(out: Path, targets: set[str]) -> None:
    """The export of a run made these targets, and all that could be judged holds."""
    document = json.loads((out / "exported" / "export.json").read_text())
    validate(document)
    assert document["devices"] == ["pixel-8", "iphone-15-pro", "raspberry-pi-5", "x86-server"]
    assert document["reference"]["n"] == 360
    assert document["reference"]["value"] >= 85  # few epochs; the recipe's own give 97
    assert {a["target"] for a in document["artifacts"]} == targets
    for artifact in document["artifacts"]:
        emulated = artifact["target"] == "coreml" and sys.platform != "darwin"
        assert artifact["status"] == "ok"
        assert artifact["verification"] == ("emulated" if emulated else "runtime")
        assert artifact["drop_points"] <= 1
    gates = {g["name"]: g["passed"] for g in stages(out)["exported"]["gates"]}
    assert any(name.startswith("parameters ") and held for name, held in gates.items())
    # Nothing was measured, so nothing is said of speed; all else is judged, and holds.
    assert all(held is (None if n.startswith("faster") else True) for n, held in gates.items())


@pytest.mark.slow
@pytest.mark.runtime
def test_lineage_leads_from_the_pictures_to_the_files(demo: tuple[Path, str, str]) -> None:
    found = stages(demo[0])
    for name, needs in (("student", "teacher"), ("pruned", "student"), ("exported", "plan")):
        assert found[name]["inputs"][needs] == found[needs]["result"]
    manifest = next(f for f in found["exported"]["files"] if f["path"] == "bundle/manifest.json")
    from edgekit.artifact import sha256_of

    assert sha256_of(demo[0] / "exported" / "bundle" / "manifest.json") == manifest["sha256"]
    assert found["teacher"]["reads"]["teacher.width"] == 0.5
    assert not any(n.startswith("student") for n in found["teacher"]["reads"])
    assert len(found["student"]["metrics"]["loss"]) == 10


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize("target", ["tflite", "onnxruntime"])
def test_a_device_reads_digits_with_the_bundle(
    demo: tuple[Path, str, str], recipe: Recipe, target: str
) -> None:
    pictures, classes = recipe.module.digits("test")
    document = json.loads((demo[0] / "exported" / "export.json").read_text())
    with Bundle.open(demo[0] / "exported" / "bundle") as bundle:
        preprocess = bundle.preprocess()
        assert bundle.labels == tuple("0123456789")
        session = bundle.session(bundle.artifact(target=target, device="raspberry-pi-5"))
        assert bundle.check_golden(session).passed
        read = [
            bundle.labels[int(session.run({"x": preprocess.apply(p)})["output"].argmax())]
            for p in pictures
        ]
        session.close()
    right = 100 * np.mean([a == str(b) for a, b in zip(read, classes, strict=True)])
    assert right == pytest.approx(
        next(a["value"] for a in document["artifacts"] if a["target"] == target), abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.runtime
def test_warm_it_runs_nothing_and_a_setting_only_what_follows(
    demo: tuple[Path, str, str], environment: Mapping[str, str]
) -> None:
    done = call(demo[0], QUICK, environment)
    assert done.returncode == 0
    assert all(stage["cached"] for stage in stages(demo[0]).values())

    def changed(name: str, value: str) -> list[str]:
        store = Store(Path(environment["EDGEKIT_STORE"]))
        runner = Runner(load_recipe(RECIPE), QUICK | {name: value}, store=store)
        return [p.stage for p in runner.plan() if p.state != "cached"]

    # In this process settings and code count as in the command's own.
    assert changed("name", '"digits-mobilenet"') == []
    assert changed("quantize.max_drop", "2") == ["exported"]
    assert changed("quantize.held", "0.3") == ["plan", "exported"]
    assert changed("distill.alpha", "0.5") == [
        "student", "pruned", "plan", "exported", "answers",
    ]  # fmt: skip


# -- data of one's own ----------------------------------------------------------------------------


def folder_of(root: Path, counts: Mapping[str, int]) -> Path:
    """PNG pictures by class in ``train`` and ``test``."""
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for k, (name, count) in enumerate(counts.items()):
            place = root / part / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 60, (16, 16, 3), dtype=np.uint8)
                pixels[k * 4 : k * 4 + 4] += 150
                Image.fromarray(pixels).save(place / f"{i}.png")
    return root


def failed(
    data: Path, environment: Mapping[str, str], tmp_path: Path, words: Sequence[str]
) -> None:
    done = call(tmp_path / "out", TINY, environment, "--data", str(data))
    assert done.returncode == 7, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_one_class_is_refused_by_name(environment: Mapping[str, str], tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", {"cats": 6})
    failed(data, environment, tmp_path, ["stage 'teacher'", "cats"])
    # What was finished before stays.
    assert stages(tmp_path / "out")["facts"]["status"] == "ok"


@pytest.mark.slow
def test_a_torn_picture_is_named(environment: Mapping[str, str], tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", {"cats": 3, "dogs": 3})
    torn = data / "train" / "dogs" / "1.png"
    torn.write_bytes(torn.read_bytes()[:60])
    failed(data, environment, tmp_path, ["stage 'facts'", "dogs/1.png"])


@pytest.mark.slow
@pytest.mark.runtime
def test_a_folder_of_pictures_is_learned(environment: Mapping[str, str], tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", {"cats": 40, "dogs": 40, "owls": 40})
    settings = TINY | {"student.train.epochs": "8", "teacher.train.epochs": "4", "name": "pets"}
    done = call(tmp_path / "out", settings, environment, "--data", str(data))
    assert done.returncode == 0, done.stderr
    with Bundle.open(tmp_path / "out" / "exported" / "bundle") as bundle:
        assert bundle.labels == ("cats", "dogs", "owls")
    document = json.loads((tmp_path / "out" / "exported" / "export.json").read_text())
    assert document["reference"]["value"] >= 90


# -- killed ---------------------------------------------------------------------------------------


def artifacts(out: Path) -> list[tuple[str, str]]:
    """Files of the bundle that are the same in every run: measured times are in the manifest."""
    files = stages(out)["exported"]["files"]
    return sorted((f["path"], f["sha256"]) for f in files if "/artifacts/" in f"/{f['path']}")


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.timeout(3600)
def test_killed_at_twenty_moments_it_makes_the_same_files(tmp_path: Path) -> None:
    def world(name: str) -> dict[str, str]:
        return os.environ | {"EDGEKIT_STORE": str(tmp_path / f"store-{name}"), "NO_COLOR": "1"}

    assert call(tmp_path / "calm", TINY, world("calm")).returncode == 0
    draw = random.Random(5)
    for _ in range(20):
        process = subprocess.Popen(
            command(tmp_path / "killed", TINY),
            env=world("killed"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(draw.uniform(2, 16))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = call(tmp_path / "killed", TINY, world("killed"))
    assert done.returncode == 0, done.stderr
    assert artifacts(tmp_path / "calm")
    assert artifacts(tmp_path / "killed") == artifacts(tmp_path / "calm")
    calm, killed = stages(tmp_path / "calm"), stages(tmp_path / "killed")
    for name in ("teacher", "student", "pruned"):
        assert calm[name]["result"] == killed[name]["result"], name
