"""Evidence: counts and confusions of an artifact's answers, the worst samples, whose they are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgekit import ImagePreprocess, Model
from edgekit.data import ArraySamples
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.report import collect
from edgekit.report.thumbnails import SIDE
from edgekit.runtime.bundle import Bundle
from edgekit.schemas import validate

pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture
def one_core() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    validate(document)
    return document  # type: ignore[no-any-return]


def rows(n: int = 30, seed: int = 0) -> ArraySamples:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2, 3)).astype(np.float32)
    return ArraySamples({"x": x}, rng.integers(0, 4, n), source="/data/somewhere/rows.npz")


class Given(nn.Module):
    """Scores that are the input itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) * 1.0


def given(scores: np.ndarray[Any, Any], labels: list[int], names: tuple[str, ...] = ()) -> Any:
    values = np.asarray(scores, np.float32)
    model = Model.from_module(Given(), {"x": torch.zeros(1, values.shape[1])}, name="given",
                              labels=names or None)  # fmt: skip
    return model, ArraySamples({"x": values}, labels, source="given")


def test_counts_are_those_of_the_artifacts_own_answers(null_bundle: Path, tmp_path: Path) -> None:
    samples = rows()
    found = read(collect(null_bundle, samples, tmp_path / "out", artifact="null-w8a8"))
    with Bundle.open(null_bundle) as bundle:
        artifact = bundle.artifact("null-w8a8")
        session = bundle.session(artifact)
        answers = [int(session.run(samples.feed(i))["y"].argmax()) for i in range(30)]
        session.close()
        assert found["of"]["sha256"] == artifact.sha256
        assert found["of"]["bundle"] == bundle.digest
    labels = [samples.label(i) for i in range(30)]
    pairs = {(c["label"], c["prediction"]): c["n"] for c in found["confusion"]}
    assert sum(pairs.values()) == found["n"] == 30
    assert pairs == {
        (a, b): n
        for a in range(4)
        for b in range(4)
        if (n := sum(x == (a, b) for x in zip(labels, answers, strict=True)))
    }
    right = sum(a == b for a, b in zip(labels, answers, strict=True))
    assert found["top1"] == pytest.approx(100 * right / 30)
    assert sum(c["correct"] for c in found["classes"]) == right
    assert sum(c["predicted"] for c in found["classes"]) == 30
    assert (found["labels"], found["layers"]) == (list("abcd"), None)
    # Nothing of this machine's folders.
    assert found["data"] == {"source": "rows.npz", "digest": samples.digest}


def test_the_worst_come_first_and_no_more_than_asked_for(tmp_path: Path) -> None:
    scores = [[5, 0, 0], [0, 9, 0], [1, 0, 0], [0, 0, 4]]
    model, samples = given(np.array(scores), [0, 0, 0, 2], ("a", "b", "c"))
    found = read(collect(model, samples, tmp_path, worst=2))
    assert [w["sample"] for w in found["worst"]] == [1, 2]
    first = found["worst"][0]
    share = np.exp(9) / (np.exp(9) + 2)
    assert first["confidence"] == pytest.approx(share)
    assert first["loss"] == pytest.approx(-np.log(1 / (np.exp(9) + 2)))
    assert (first["label"], first["prediction"]) == (0, 1)
    assert found["of"]["sha256"] == model.digest()
    assert found["scores"] == "logits"


def test_probabilities_are_taken_as_such(tmp_path: Path) -> None:
    model, samples = given(np.array([[0.25, 0.75], [0.5, 0.5]]), [0, 0])
    found = read(collect(model, samples, tmp_path))
    assert found["scores"] == "probabilities"
    assert found["loss"] == pytest.approx(-(np.log(0.25) + np.log(0.5)) / 2)
    model, samples = given(np.array([[0.25, 0.75], [0.5, 0.9]]), [0, 0])
    assert read(collect(model, samples, tmp_path / "other"))["scores"] == "logits"


def test_an_answer_that_is_no_number_is_wrong_and_the_worst(tmp_path: Path) -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sqrt(x)

    model = Model.from_module(Root(), {"x": torch.zeros(1, 2)}, name="root")
    x = np.array([[4.0, 1.0], [-1.0, 1.0], [9.0, 1.0]], np.float32)
    found = read(collect(model, ArraySamples({"x": x}, [0, 0, 0]), tmp_path))
    assert found["worst"][0]["sample"] == 1 and found["worst"][0]["prediction"] is None
    assert found["loss"] is None and found["top1"] == pytest.approx(200 / 3)
    assert {"label": 0, "prediction": None, "n": 1} in found["confusion"]


def test_the_same_answers_give_the_same_bytes(null_bundle: Path, tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        collect(null_bundle, rows(), place, artifact="null-fp32")
    names = [sorted(p.relative_to(r).as_posix() for p in r.rglob("*")) for r in places]
    assert names[0] == names[1] and "pictures/worst-00.png" in names[0]
    for name in (n for n in names[0] if (places[0] / n).is_file()):
        assert (places[0] / name).read_bytes() == (places[1] / name).read_bytes()


@pytest.mark.parametrize(("side", "shown"), [(40, (40, 40)), (300, (SIDE, SIDE))])
def test_pictures_are_small_and_never_enlarged(
    tmp_path: Path, side: int, shown: tuple[int, int]
) -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack((mean, -mean), 1)

    preprocess = ImagePreprocess(height=8, width=8)
    example = {"x": torch.zeros(preprocess.shape)}
    model = Model.from_module(Mean(), example, name="mean", preprocess=preprocess)
    pictures = np.random.default_rng(0).integers(0, 255, (2, side, side, 3), dtype=np.uint8)
    samples = ArraySamples({"x": pictures}, [0, 1], signature=model.signature,
                           preprocess=preprocess)  # fmt: skip
    found = read(collect(model, samples, tmp_path))
    [first, _] = found["worst"]
    assert first["shown"] == "picture"
    image = Image.open(io.BytesIO((tmp_path / first["picture"]).read_bytes()))
    assert (image.format, image.size, image.mode) == ("PNG", shown, "RGB")


def test_waves_are_drawn_and_texts_are_quoted(tmp_path: Path) -> None:
    wave = np.sin(np.linspace(0, 60, 4000, dtype=np.float32))[None]
    model, samples = given(wave, [7])
    [first] = read(collect(model, samples, tmp_path))["worst"]
    assert first["shown"] == "tensor"
    drawn = io.BytesIO((tmp_path / first["picture"]).read_bytes())
    assert Image.open(drawn).size == (SIDE, SIDE // 2)

    class Texts(ArraySamples):
        def text(self, i: int) -> str:
            return "ha \ud800 " * 200

    model, _ = given(np.zeros((1, 2)), [0])
    samples = Texts({"x": np.zeros((1, 2), np.float32)}, [0])
    [first] = read(collect(model, samples, tmp_path / "texts"))["worst"]
    assert first["shown"] == "text" and len(first["text"]) == 400
    assert not (tmp_path / "texts" / "pictures").exists()


def test_weights_are_told_by_layer(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Linear(3, 4, bias=False))
    model = Model.from_module(net, {"input": torch.zeros(1, 2, 3)}, name="net")
    samples = ArraySamples({"input": np.ones((2, 2, 3), np.float32)}, [0, 1])
    found = read(collect(model, samples, tmp_path))
    layers = {row["layer"].rpartition(".")[2]: row["parameters"] for row in found["layers"]}
    assert layers == {"1": 21, "2": 12}
    assert [row["bytes"] for row in found["layers"]] == [84, 48]


def no_labels(model: Any) -> ArraySamples:
    return ArraySamples({"x": np.zeros((3, 2), np.float32)}, source="bare")


def too_high(model: Any) -> ArraySamples:
    return ArraySamples({"x": np.zeros((3, 2), np.float32)}, [0, 1, 2], source="high")


@pytest.mark.parametrize(
    ("make", "what"),
    [(no_labels, r"bare: sample 0 has no label"), (too_high, r"sample 2 has label 2.*0 to 1")],
)
def test_samples_that_cannot_be_judged_are_refused(
    tmp_path: Path, make: Callable[[Any], ArraySamples], what: str
) -> None:
    model, _ = given(np.zeros((1, 2)), [0])
    with pytest.raises(BadData, match=what):
        collect(model, make(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_subjects_that_cannot_be_judged_are_refused(null_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2 artifacts.*null-fp32, null-w8a8"):
        collect(null_bundle, rows(), tmp_path)
    with pytest.raises(UsageError, match="worst is 25; 0 to 24"):
        collect(null_bundle, rows(), tmp_path, artifact="null-fp32", worst=25)
    model, samples = given(np.zeros((1, 2)), [0])
    with pytest.raises(UsageError, match="a float model has none"):
        collect(model, samples, tmp_path, artifact="null-fp32")
    wide = Model.from_module(nn.Identity(), {"input": torch.zeros(1, 2, 3)}, name="wide")
    with pytest.raises(UnsupportedError, match=r"wide: evidence needs one output of scores"):
        collect(wide, rows(), tmp_path)
