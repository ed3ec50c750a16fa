"""Takes every model through every target: convert, load, run, reload, inspect.

The targets are found, not listed: a new file in ``edgekit/targets`` goes through all of this with
no change here. One worker process converts and runs all that is asked of one (model, target) pair,
and a second one loads copies of its files, so that a runtime's imports are paid twice a pair.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.artifact import files_of, sha256_of
from edgekit.compress.dynamic import as_computed
from edgekit.compress.evaluate import evaluate, with_rounding_noise
from edgekit.compress.graph import canonical, graph_module, program_digest
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.unrounded import Unrounded
from edgekit.compress.weights import quantize_weights
from edgekit.names import CALIBRATED, TEST_TARGET
from edgekit.targets import available, find, installed, worker
from edgekit.verify import rounding_floor

Arrays = dict[str, np.ndarray[Any, Any]]
EXACT = Unrounded()
REPEATS = 20

EVERY_DAY = {
    "w8a8": ("mlp", "mobilenet_v2", "distilbert"),
    "w8a8-dyn": ("mobilenet_v2", "distilbert"),
    "w8": ("mobilenet_v2", "distilbert"),
    "w4": ("mlp",),
    "w8a16": ("mlp",),
    "fp16": ("mlp",),
    "fp32": ("mlp",),
}
"""Models by scheme that go through the first targets in every run; the others are marked slow."""

LATER = {target: {("mlp", "w8a8")} for target in ("executorch", "torch-mobile", "coreml")}
"""Pairs that every run takes of the later targets; all else in this folder is marked slow. The
demo, which every run makes too, proves a MobileNetV2 as w8a8 in each of them."""

EXACT_SUMS = ("torch-mobile",)
"""Targets whose kernels round exact sums, so that their w8a8 is the plan in float64 to the bit.
They are held against that: in float32 a sum of 14.50000005 steps of `mobilenet_v3_small` falls to
14, and the answers of that sample move by 3."""

TWICE = ("mlp", "mobilenet_v2")
"""Models that are converted again in another process, to compare the bytes."""

NULL_CARRIES = ("mlp",)
"""What the null target's operators suffice for; test_refusals.py asserts the rest."""


@functools.cache
def _models() -> ModuleType:
    """``models.py`` of this folder, which is no package."""
    name = "conformance_models"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("models.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch: threads that wait for each other cost more than small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MODELS: tuple[str, ...] = tuple(_models().KINDS)
NETWORKS: tuple[str, ...] = _models().NETWORKS


@dataclass(frozen=True)
class Prepared:
    """A model ready for every target.

    Attributes:
        name: one of `MODELS`.
        program: canonical.
        program_path: the same, saved.
        signature: of the model.
        calibration: arrays [n, *shape] by input name, for plans.
        feeds: the same, for judging; ``feeds_path`` holds them as a file.
        labels: of each sample in ``feeds``.
        right: the share of samples that outputs by name have right, from the labels.
        whole: whether it is one of `NETWORKS`, or as deep, and judged as ``edgekit verify`` does.
        folder: for files of this model.
    """

    name: str
    program: torch.export.ExportedProgram
    program_path: Path
    signature: Any
    calibration: Arrays
    feeds: Arrays
    feeds_path: Path
    labels: np.ndarray[Any, Any]
    right: Callable[[Arrays, np.ndarray[Any, Any]], float]
    whole: bool
    folder: Path
    _plans: dict[str, QuantPlan] = field(default_factory=dict)
    _references: dict[tuple[str, Unrounded, Any, bool], Arrays] = field(default_factory=dict)
    _floors: dict[tuple[str, Unrounded], dict[str, Any]] = field(default_factory=dict)

    def plan(self, scheme: str) -> QuantPlan:
        """The plan that all targets share."""
        if scheme not in self._plans:
            if scheme == "fp32":
                self._plans[scheme] = QuantPlan("fp32", program_digest(self.program))
            elif scheme in CALIBRATED:
                with _one_thread():
                    self._plans[scheme] = quantize(
                        self.program, self._samples(self.calibration), scheme=scheme
                    )
            else:
                self._plans[scheme] = quantize_weights(self.program, scheme)
            path = self.folder / f"plan-{scheme}.json"
            path.write_text(json.dumps(self._plans[scheme].to_json()))
        return self._plans[scheme]

    def reference(
        self, scheme: str, unrounded: Unrounded = EXACT, target: str = TEST_TARGET
    ) -> Arrays:
        """The plan's own evaluation in torch on ``feeds``, arrays [n, *shape] by output name.

        Where inputs are quantized at run time it has the arithmetic of ``target``'s runtime; for
        `EXACT_SUMS` it is in float64.
        """
        exact = scheme == "w8a8" and target in EXACT_SUMS
        key = (scheme, unrounded, getattr(find(target), "dynamic", None), exact)
        if key not in self._references:
            plan = as_computed(graph_module(self.program), self.plan(scheme), find(target))
            plan = unrounded.without(self.program, plan)
            module = render(self.program, plan, "fake")
            kind = torch.float64 if exact else torch.float32
            with torch.no_grad(), _one_thread():
                module = module.to(kind)
                rows = [
                    module(*(x.to(kind) if x.is_floating_point() else x for x in sample))
                    for sample in self._samples(self.feeds)
                ]
            self._references[key] = {
                spec.name: np.stack([row[i].numpy().astype(spec.dtype) for row in rows])
                for i, spec in enumerate(self.signature.outputs)
            }
        return self._references[key]

    def floor(self, scheme: str, unrounded: Unrounded = EXACT) -> dict[str, Any] | None:
        """How far the plan's own evaluation moves under rounding noise; None where it rounds not.

        See `edgekit.verify.rounding_floor`.
        """
        if not self.plan(scheme).rounds:
            return None
        if (scheme, unrounded) not in self._floors:
            plan = unrounded.without(self.program, self.plan(scheme))
            module = render(self.program, plan, "fake")
            inputs = [spec.name for spec in self.signature.inputs]
            outputs = [spec.name for spec in self.signature.outputs]
            with _one_thread():
                right, moved = (
                    evaluate(m, self.feeds, inputs, outputs)
                    for m in (module, with_rounding_noise(module))
                )
            self._floors[scheme, unrounded] = rounding_floor(
                self.signature, right, moved, self.steps(scheme), scheme
            )
        return self._floors[scheme, unrounded]

    def steps(self, scheme: str) -> dict[str, float | None]:
        """Quantization step by output name; None where the output is float."""
        results = list(graph_module(self.program).graph.nodes)[-1].args[0]
        edges = self.plan(scheme).activations()
        return {
            spec.name: edges[node.name].scale[0] if node.name in edges else None
            for spec, node in zip(self.signature.outputs, results, strict=True)
        }

    def _samples(self, feeds: Arrays) -> Iterator[tuple[torch.Tensor, ...]]:
        order = [spec.name for spec in self.signature.inputs]
        for i in range(len(feeds[order[0]])):
            yield tuple(torch.from_numpy(feeds[name][i]) for name in order)


@dataclass(frozen=True)
class Converted:
    """What one target made of one model under one scheme.

    Attributes:
        prepared: the model.
        target: target id.
        scheme: scheme id.
        files: every file, the main one first; one that is a directory stands for all in it.
        outputs: answers to ``prepared.feeds``, arrays [n, *shape].
        order: names of the outputs in the order the session gave them.
        distinct: number of different answers in `REPEATS` runs of one sample.
        runtime: name and version.
        reloaded: answers of copied files in another process.
        placement: as `edgekit.targets.Placement.to_json`.
        stored: as `edgekit.targets.Stored`, each a dictionary.
        unrounded: what the runtime's kernels leave out of the plan's rounding.
        again: sha256 by file name of a second conversion in another process, or None.
    """

    prepared: Prepared
    target: str
    scheme: str
    files: tuple[Path, ...]
    outputs: Arrays
    order: tuple[str, ...]
    distinct: int
    runtime: str
    reloaded: Arrays
    placement: dict[str, Any]
    stored: list[dict[str, Any]]
    unrounded: Unrounded
    again: dict[str, str] | None

    @property
    def parts(self) -> list[Path]:
        """Every file, those in directories too."""
        return [part for file in self.files for part in files_of(file)]

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of every part, by name."""
        return hashes(self.files)

    @property
    def what(self) -> str:
        """For assertion messages."""
        return f"{self.prepared.name} x {self.target} x {self.scheme} ({self.runtime})"


def _cases() -> list[Any]:
    cases = []
    for target in available():
        for model in NULL_CARRIES if target == TEST_TARGET else MODELS:
            for scheme in find(target).schemes:
                if model in NETWORKS and scheme not in ("w8a8", "fp32"):
                    continue
                slow = model not in EVERY_DAY.get(scheme, ())
                if target in LATER:
                    slow = (model, scheme) not in LATER[target]
                marks = [pytest.mark.runtime, *([pytest.mark.slow] if slow else [])]
                cases.append(
                    pytest.param(
                        (model, target, scheme), id=f"{model}-{target}-{scheme}", marks=marks
                    )
                )
    # One pair after the other, so that a pair's schemes share its worker processes.
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test with a ``converted`` argument runs for every case."""
    if "converted" in metafunc.fixturenames:
        metafunc.parametrize("converted", _cases(), indirect=True, scope="session")


@pytest.fixture(scope="session")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Callable[[str], Prepared]:
    """Gives a trained model by its name, prepared once."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)
    weights = cache.mkdir("conformance") if cache else tmp_path_factory.mktemp("weights")

    @functools.cache
    def prepare(name: str) -> Prepared:
        with _one_thread():
            subject = _models().subject(name, weights)
        folder = tmp_path_factory.mktemp(name)
        program = canonical(subject.model.program())
        torch.export.save(program, folder / "program.pt2")
        np.savez(folder / "feeds.npz", **subject.evaluation)
        return Prepared(
            name=name,
            program=program,
            program_path=folder / "program.pt2",
            signature=subject.model.signature,
            calibration=subject.calibration,
            feeds=subject.evaluation,
            feeds_path=folder / "feeds.npz",
            labels=subject.labels,
            right=subject.right,
            whole=name in (*NETWORKS, "mobilenet_v3_small"),
            folder=folder,
        )

    return prepare


@pytest.fixture(scope="session")
def converted(request: pytest.FixtureRequest, prepared: Callable[[str], Prepared]) -> Converted:
    """One case, converted and run; its pair's other schemes are done along with it."""
    model, target, scheme = request.param
    missing = [name for name, version in installed(find(target)).items() if version is None]
    if missing:
        pytest.skip(f"{target}: {', '.join(missing)} not installed")
    done: dict[tuple[str, str], dict[str, Converted]]
    done = request.config.stash.setdefault(_DONE, {})
    if (model, target) not in done:
        wanted = request.config.stash[_WANTED].get((model, target), {scheme})
        done[model, target] = _convert(prepared(model), target, sorted(wanted))
    return done[model, target][scheme]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what the later targets go through besides."""
    here = Path(__file__).parent
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        named = any(isinstance(value, str) and value in LATER for value in params.values())
        if named and here in item.path.parents:
            item.add_marker(pytest.mark.slow)


_DONE = pytest.StashKey[dict[tuple[str, str], dict[str, Converted]]]()
_WANTED = pytest.StashKey[dict[tuple[str, str], set[str]]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Notes which schemes of a pair the selected tests need."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for item in session.items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if isinstance(case := params.get("converted"), tuple):
            wanted.setdefault(case[:2], set()).add(case[2])
    session.config.stash[_WANTED] = wanted


_QUESTIONS = ("inspect", "stored", "unrounded")


def _convert(prepared: Prepared, target: str, schemes: list[str]) -> dict[str, Converted]:
    """Two worker processes: one converts and runs, one loads copies (and converts some again)."""
    outs = {s: prepared.folder / target / s / f"model{find(target).suffix}" for s in schemes}
    twice = prepared.name in TWICE
    first = []
    for scheme, out in outs.items():
        out.parent.mkdir(parents=True)
        first.append(_convert_task(prepared, scheme, out))
        first.append(_infer_task(prepared, out, out.parent / "answers.npz"))
        first += [{"op": op, "artifact": str(out)} for op in _QUESTIONS]
    results = _good(worker.run(target, first))
    each = len(results) // len(schemes)
    files = {s: tuple(Path(f) for f in results[each * i]["files"]) for i, s in enumerate(schemes)}
    second = []
    for scheme, out in outs.items():
        elsewhere = out.parent / "copied to"
        elsewhere.mkdir()
        for file in files[scheme]:
            copy = shutil.copytree if file.is_dir() else shutil.copyfile
            copy(file, elsewhere / file.name)
        second.append(_infer_task(prepared, elsewhere / out.name, out.parent / "reloaded.npz"))
        if twice:
            (out.parent / "again").mkdir()
            second.append(_convert_task(prepared, scheme, out.parent / "again" / out.name))
    later = _good(worker.run(target, second))
    made = {}
    for i, scheme in enumerate(schemes):
        _, run, inspected, stored, kernels = results[each * i : each * (i + 1)]
        folder = outs[scheme].parent
        again = None
        if twice:
            paths = [Path(f) for f in later[2 * i + 1]["files"]]
            again = hashes(paths)
        made[scheme] = Converted(
            prepared=prepared,
            target=target,
            scheme=scheme,
            files=files[scheme],
            outputs=_arrays(folder / "answers.npz"),
            order=tuple(run["order"]),
            distinct=run["distinct"],
            runtime=run["runtime"],
            reloaded=_arrays(folder / "reloaded.npz"),
            placement=inspected["placement"],
            stored=stored["stored"],
            unrounded=Unrounded.from_json(kernels["unrounded"]),
            again=again,
        )
    return made


def _convert_task(prepared: Prepared, scheme: str, out: Path) -> dict[str, Any]:
    prepared.plan(scheme)
    return {
        "op": "convert",
        "program": str(prepared.program_path),
        "plan": str(prepared.folder / f"plan-{scheme}.json"),
        "signature": prepared.signature.to_json(),
        "out": str(out),
    }


def _infer_task(prepared: Prepared, artifact: Path, outputs: Path) -> dict[str, Any]:
    return {
        "op": "infer",
        "artifact": str(artifact),
        "signature": prepared.signature.to_json(),
        "feeds": str(prepared.feeds_path),
        "outputs": str(outputs),
        "repeats": REPEATS,
    }


def _good(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for result in results:
        if "error" in result:
            raise result["error"]
    return results


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """sha256 of every file, by its name; of those in a directory by their names with it."""
    return {str(f.relative_to(p.parent)): sha256_of(f) for p in paths for f in files_of(p)}


def _arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}
