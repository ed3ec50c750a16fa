"""Sets to learn from: what they give is what the device gives, and what they refuse."""

from __future__ import annotations

import importlib
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit._torchvision import torchvision
from edgekit.compress.train import TrainSettings, train
from edgekit.data.augment import _OPERATIONS, _SIGNED, BINS, Augment, _operate, augment, erase
from edgekit.data.samples import ArraySamples
from edgekit.data.training import (
    ArraySet,
    PictureSet,
    Subset,
    TextAugment,
    TextSet,
    from_torchvision,
    pictures,
    texts,
)
from edgekit.errors import BadData, UsageError
from edgekit.runtime.preprocess import ImagePreprocess, TextPreprocess

pytestmark = pytest.mark.usefixtures("one_thread")

PREPROCESS = ImagePreprocess(height=12, width=10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
ALL = Augment(
    crop=2, flip=0.5, rotate=10, shear=5, scale=0.1, shift=0.1, rand=2, brightness=0.3,
    contrast=0.3, saturation=0.3, hue=0.1, erase=0.5,
)  # fmt: skip


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty pictures of two classes, all of different sizes."""
    from PIL import Image

    root = tmp_path / "pets"
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = noise(14 + i, 20 - i % 5, 3, seed=100 * number + i)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root


# -- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preprocess",
    [
        PREPROCESS,
        ImagePreprocess(height=12, width=10, color="BGR", mean=(0.5, 0.4, 0.3), layout="NHWC"),
        ImagePreprocess(height=8, width=8, channels=1, color="GRAY", resize_mode="shorter-side"),
    ],
    ids=["rgb", "bgr-nhwc", "grey"],
)
@pytest.mark.parametrize("memory_mib", [1024, 0])
def test_unchanged_pictures_are_what_the_device_makes_of_them(
    folder: Path, preprocess: ImagePreprocess, memory_mib: int
) -> None:
    made = pictures(folder, preprocess, how=ALL, memory_mib=memory_mib)
    batch = made.batch(torch.arange(len(made)), None)
    assert made.threaded == (memory_mib == 0)
    for i in range(len(made)):
        assert np.array_equal(batch["x"][i : i + 1].numpy(), made.samples.feed(i)["x"])
        assert int(batch["y"][i]) == made.samples.label(i)
    assert batch["row"].tolist() == list(range(len(made)))


def test_in_memory_and_batch_by_batch_train_the_same(folder: Path) -> None:
    def trained(memory_mib: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(360, 2))
        made = pictures(folder, PREPROCESS, how=ALL, memory_mib=memory_mib)
        return dict(train(module, made, TrainSettings(epochs=2, batch=8)).state)

    kept, decoded = trained(1024), trained(0)
    assert all(torch.equal(v, decoded[n]) for n, v in kept.items())


def test_parts_of_a_folder_have_nothing_in_common_and_a_zip_has_the_same(
    folder: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "pets.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, path.relative_to(folder).as_posix())
    learn, judge = (pictures(folder, PREPROCESS, part=p) for p in ("train", "test"))
    names = [{s.samples.name(i) for i in range(len(s))} for s in (learn, judge)]  # type: ignore[attr-defined]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 40
    assert 2 <= len(judge) <= 14
    packed = pictures(archive, PREPROCESS)
    assert packed.digest == learn.digest != judge.digest
    assert packed.classes == learn.classes == ("cat", "dog")


def test_a_folders_own_splits_are_kept(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    root.mkdir()
    folder.rename(root / "train")
    for name in ("cat", "dog"):
        (root / "test" / name).mkdir(parents=True)
        next((root / "train" / name).iterdir()).rename(root / "test" / name / "a.png")
    assert len(pictures(root, PREPROCESS)) == 38
    assert len(pictures(root, PREPROCESS, part="test")) == 2


@pytest.mark.parametrize("memory_mib", [1024, 0])
def test_a_corrupt_picture_is_named(folder: Path, memory_mib: int) -> None:
    learn = pictures(folder, PREPROCESS)
    name = learn.samples.name(3)  # type: ignore[attr-defined]
    (folder / name).write_bytes((folder / name).read_bytes()[:60])
    with pytest.raises(BadData, match=name):
        made = pictures(folder, PREPROCESS, memory_mib=memory_mib)
        made.batch(torch.arange(len(made)), None)


def test_a_picture_of_the_wrong_size_is_named(folder: Path) -> None:
    with pytest.raises(BadData, match=r"cat/0\d.png: the picture is \d+ x \d+"):
        pictures(folder, replace(PREPROCESS, resize="none"))


def test_one_class_folder_is_refused_when_it_is_trained_on(folder: Path) -> None:
    for path in (folder / "dog").iterdir():
        path.unlink()
    learn = pictures(folder, PREPROCESS, classes=("cat", "dog"))
    with pytest.raises(BadData, match=r"all \d+ samples are of class 0 \(cat\)"):
        train(torch.nn.Linear(1, 1), learn, TrainSettings())


def test_pictures_that_are_tensors_are_refused() -> None:
    samples = ArraySamples({"x": np.zeros((4, 3, 12, 10), np.float32)}, [0, 1, 0, 1])
    with pytest.raises(UsageError, match="only the model's tensors"):
        PictureSet(samples, PREPROCESS)


def test_the_digest_tells_pictures_and_augmentations_apart() -> None:
    x = noise(6, 12, 10, 3)
    labels = np.arange(6) % 2

    def digest(x: Any = x, labels: Any = labels, how: Augment | None = None, mib: int = 1) -> str:
        return pictures(x, PREPROCESS, labels=labels, how=how, memory_mib=mib).digest

    other = x.copy()
    other[5, 0, 0, 0] ^= 1
    found = [digest(), digest(x=other), digest(labels=labels[::-1]), digest(how=ALL)]
    assert len(set(found)) == 4
    assert digest(mib=0) == found[0] and digest(x=other, mib=0) == found[1]


def test_torchvisions_datasets_are_taken_by_name(tmp_path: Path) -> None:
    options = {"size": 40, "image_size": (3, 14, 11), "num_classes": 4}
    learn, judge = (
        from_torchvision("FakeData", tmp_path, PREPROCESS, part=part, options=options)
        for part in ("train", "test")
    )
    assert len(learn) + len(judge) == 40 and 0 < len(judge) < len(learn)
    assert learn.labels is not None and set(learn.labels.tolist()) <= set(range(4))
    batch = learn.batch(torch.tensor([2]), None)
    assert np.array_equal(batch["x"].numpy(), learn.samples.feed(2)["x"])


def test_torchvisions_own_files_are_read(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    grey = ImagePreprocess(height=28, width=28, channels=1, color="GRAY", resize="none")
    for name, count in (("train", 6), ("t10k", 3)):
        x = noise(count, 28, 28, seed=count)
        head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in x.shape)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + x.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        head = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big")
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    for part, count in (("train", 6), ("test", 3)):
        made = from_torchvision("MNIST", tmp_path, grey, part=part)  # type: ignore[arg-type]
        assert made.labels is not None and made.labels.tolist() == list(range(count))
        assert made.classes[0] == "0 - zero"
        x = noise(count, 28, 28, seed=count)
        assert np.array_equal(made.batch(torch.tensor([1]), None)["x"], grey.apply(x[1]))


def test_torchvision_without_its_files_or_by_a_wrong_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="CIFAR10: Dataset not found") as caught:
        from_torchvision("CIFAR10", tmp_path, PREPROCESS)
    assert "download=True" in caught.value.hint
    with pytest.raises(UsageError, match="Did you mean 'CIFAR10'"):
        from_torchvision("CIFAR-10", tmp_path, PREPROCESS)
    with pytest.raises(UsageError, match=r"FakeData: .*colour"):
        from_torchvision("FakeData", tmp_path, PREPROCESS, options={"colour": 1})


# -- augmentation ---------------------------------------------------------------------------------


def test_augmentation_follows_from_its_generator_alone() -> None:
    made = pictures(noise(8, 12, 10, 3), PREPROCESS, labels=np.arange(8) % 2, how=ALL)
    rows = torch.arange(8)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = made.batch(rows, generator())["x"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(made.batch(rows, generator())["x"], first)
    assert not torch.equal(made.batch(rows, generator(1))["x"], first)
    assert not torch.equal(made.batch(rows, None)["x"], first)
    # Each picture in its own way.
    same = pictures(np.repeat(noise(1, 12, 10, 3), 8, 0), PREPROCESS, labels=rows % 2, how=ALL)
    assert len({t.numpy().tobytes() for t in same.batch(rows, generator())["x"]}) == 8


@pytest.mark.parametrize("name", _OPERATIONS)
def test_randaugments_operations_are_torchvisions(name: str) -> None:
    torchvision()
    v2: Any = importlib.import_module("torchvision.transforms.v2")
    theirs = v2.RandAugment()
    table = {key.lower(): key for key in theirs._AUGMENTATION_SPACE}
    key = table[{"colour": "color"}.get(name, name.replace("-", ""))]
    x = torch.from_numpy(noise(4, 3, 32, 40))
    for magnitude in (0, 3, 9, BINS - 1):
        for sign in (1, -1) if name in _SIGNED else (0,):
            space = theirs._AUGMENTATION_SPACE[key][0](BINS, 32, 40)
            amount = 0.0 if space is None else float(space[magnitude]) * (sign or 1)
            expected = theirs._apply_image_or_video_transform(
                x, key, amount, interpolation=theirs.interpolation, fill=theirs._fill
            )
            found = _operate(x, name, sign, magnitude)
            # Theirs has its magnitudes in single precision.
            assert (found.int() - expected.int()).abs().max() <= 1


def test_crops_are_windows_of_the_padded_picture_and_some_are_mirrored() -> None:
    x = torch.from_numpy(noise(1, 3, 8, 8)).repeat(200, 1, 1, 1)
    made = augment(x, Augment(crop=1, flip=0.5), generator())
    padded = torch.nn.functional.pad(x[0], (1, 1, 1, 1))
    windows = {
        padded[:, r : r + 8, c : c + 8].flip([2] if flipped else []).numpy().tobytes()
        for r in range(3) for c in range(3) for flipped in (False, True)
    }  # fmt: skip
    assert {picture.numpy().tobytes() for picture in made} == windows


def test_turning_is_torchvisions() -> None:
    torchvision()
    functional: Any = importlib.import_module("torchvision.transforms.v2.functional")
    y, x = np.mgrid[:24, :36]
    smooth = torch.from_numpy((128 + 60 * np.sin(y / 5) + 60 * np.cos(x / 7)).astype(np.uint8))
    picture = smooth.expand(1, 1, 24, 36).repeat(20, 1, 1, 1)
    made = augment(picture, Augment(rotate=30), generator())
    bilinear = functional.InterpolationMode.BILINEAR
    angles = torch.linspace(-30, 30, 241).tolist()
    turned = torch.stack([functional.rotate(picture[0], a, bilinear) for a in angles])
    inner = (slice(None), slice(None), slice(8, 16), slice(14, 22))
    for one in made:
        distances = (turned[inner].float() - one[inner[1:]].float()).abs().amax((1, 2, 3))
        assert distances.min() <= 2
    assert distances.max() > 20


def test_colours_are_torchvisions_for_each_kind_of_change() -> None:
    torchvision()
    functional: Any = importlib.import_module("torchvision.transforms.v2.functional")
    x = torch.from_numpy(noise(1, 3, 16, 16) // 3 + 80)
    changes: dict[str, Callable[..., torch.Tensor]] = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
    }
    for name, change in changes.items():
        made = augment(x.repeat(10, 1, 1, 1), Augment(**{name: 0.4}), generator())
        expected = torch.stack([change(x[0], f) for f in torch.linspace(0.6, 1.4, 1601).tolist()])
        assert len({m.numpy().tobytes() for m in made}) > 5
        for one in made:
            assert (expected.int() - one.int()).abs().amax((1, 2, 3)).min() <= 1, name


def test_erasing_takes_rectangles_of_the_papers_sizes() -> None:
    x = torch.ones(400, 2, 30, 40)
    made = erase(x, 0.5, generator())
    holes = made[:, 0] == 0
    assert torch.equal(holes, made[:, 1] == 0)
    hit = holes.flatten(1).any(1)
    assert 150 < int(hit.sum()) < 250
    for hole in holes[hit]:
        rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
        height, width = len(rows), len(columns)
        assert (
            int(hole.sum())
            == height * width
            == ((int(rows[-1] - rows[0]) + 1) * (int(columns[-1] - columns[0]) + 1))
        )
        assert 0.015 < height * width / 1200 < 0.36 and 0.2 < height / width < 4.2


# -- texts and arrays -----------------------------------------------------------------------------

WORDS = TextPreprocess(
    vocab=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film"), max_length=32
)


def test_texts_are_what_the_device_makes_of_them_and_trimmed() -> None:
    items = ["good film", "bad " * 12, "film"]
    whole = TextSet(items, [1, 0, 1], WORDS, trim=False)
    for i, text in enumerate(items):
        batch = whole.batch(torch.tensor([i]), None)
        for name, value in WORDS.apply(text).items():
            assert np.array_equal(batch[name].numpy(), value)
    made = TextSet(items, [1, 0, 1], WORDS)
    short, long = made.batch(torch.tensor([0, 2]), None), made.batch(torch.tensor([0, 1]), None)
    assert short["input_ids"].shape == (2, 8) and long["input_ids"].shape == (2, 16)
    assert int(long["attention_mask"].sum()) == 4 + 14
    assert short["y"].tolist() == [1, 1] and short["row"].tolist() == [0, 2]
    assert made.digest != whole.digest != TextSet(items, [1, 1, 1], WORDS, trim=False).digest


PIECES = TextPreprocess(
    vocab=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##x", "##y"),
    max_length=20,
    types_name="token_type_ids",
)


def said(row: torch.Tensor, mask: torch.Tensor) -> list[str]:
    """The words of one text, whose frame and padding are as they should be."""
    count = int(mask.sum())
    assert mask.tolist() == [1] * count + [0] * (len(mask) - count)
    pieces = [PIECES.vocab[i] for i in row.tolist()]
    assert pieces[0] == "[CLS]" and pieces[count - 1] == "[SEP]"
    assert set(pieces[count:]) <= {"[PAD]"}
    return " ".join(pieces[1 : count - 1]).replace(" ##", "").split()


def test_texts_are_cut_to_any_run_of_their_words() -> None:
    text = "a bx cxy d e fy g h"
    data = TextSet([text] * 500, None, PIECES, how=TextAugment(cut=0.8, shortest=2))
    rows, generator = torch.arange(500), torch.Generator().manual_seed(1)
    batch = data.batch(rows, generator)
    assert data.augmented and batch["token_type_ids"].sum() == 0
    words = text.split()
    runs = [words[i:j] for i in range(9) for j in range(i + 2, 9)]
    found = [said(*pair) for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert all(run in found for run in runs) and all(run in runs for run in found)
    # A fifth is left as it was; a run of all eight is one of seven lengths.
    assert 0.25 < np.mean([run == words for run in found]) < 0.38
    assert batch["input_ids"].dtype == torch.int64
    short = data.batch(torch.tensor([0]), torch.Generator().manual_seed(3))
    assert short["input_ids"].shape[1] in (8, 16)
    plain = data.batch(rows, None)["input_ids"]
    assert torch.equal(
        plain, TextSet([text] * 500, None, PIECES).batch(rows, generator)["input_ids"]
    )


def test_whole_words_are_masked() -> None:
    data = TextSet(["a bxy c"] * 1000, None, PIECES, how=TextAugment(mask=0.3))
    batch = data.batch(torch.arange(1000), torch.Generator().manual_seed(1))
    ids = batch["input_ids"]
    mask = PIECES.vocab.index("[MASK]")
    assert torch.equal(
        batch["attention_mask"], data.batch(torch.arange(1000), None)["attention_mask"]
    )
    hidden = ids == mask
    assert not hidden[:, 0].any() and not hidden[:, 6:].any()
    assert torch.equal(hidden[:, 2], hidden[:, 3]) and torch.equal(hidden[:, 3], hidden[:, 4])
    for place in (1, 2, 5):
        assert 0.25 < hidden[:, place].float().mean() < 0.35
    both = (hidden[:, 1] & hidden[:, 5]).float().mean()
    assert 0.06 < both < 0.13


def test_an_augmentation_of_texts_shows_in_the_digest_and_needs_a_mask() -> None:
    digests = {
        TextSet(["a b"], [0], PIECES, how=how).digest
        for how in (None, TextAugment(cut=0.5), TextAugment(cut=0.5, shortest=2))
    }
    assert len(digests) == 3
    assert TextSet(["a b"], [0], PIECES, how=TextAugment()).digest in digests
    with pytest.raises(BadData, match=r"no \[MASK\]"):
        TextSet(["good"], [0], WORDS, how=TextAugment(mask=0.1))


def test_texts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "films.tsv"
    file.write_text("text\tlabel\ngood film\tpos\n\nbad film\tneg\nbad\tneg\n")
    made = texts(file, WORDS)
    assert made.classes == ("neg", "pos") and made.labels is not None
    assert made.labels.tolist() == [1, 0, 0]
    named = texts(file, WORDS, classes=("pos", "neg"))
    assert named.labels is not None and named.labels.tolist() == [0, 1, 1]
    with pytest.raises(BadData, match="'pos' is none of the model's 2 labels"):
        texts(file, WORDS, classes=("good", "neg"))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.tsv", "text\tlabel\ngood\t1\n\n \t0\n", 4),
        ("a.jsonl", '{"text": "good", "label": 1}\n{"text": "", "label": 0}\n', 2),
        ("a.csv", 'text,label\n"good\nfilm",1\n"",0\n', 4),
    ],
)
def test_an_empty_text_is_refused_by_its_line(
    tmp_path: Path, name: str, content: str, line: int
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadData, match=rf"{name} line {line}: the text is empty"):
        texts(tmp_path / name, WORDS)


def test_arrays_are_checked() -> None:
    x = np.zeros((4, 3))
    assert ArraySet({"x": x}).batch(torch.tensor([1]), None)["x"].dtype == torch.float32
    x[2, 1] = np.nan
    with pytest.raises(BadData, match="sample 2 of 'x' holds NaN"):
        ArraySet({"x": x})
    with pytest.raises(BadData, match=r"differ in their number of samples: x \(4, 3\), m \(3,\)"):
        ArraySet({"x": np.zeros((4, 3)), "m": np.zeros(3)})
    with pytest.raises(BadData, match="label -1 of sample 1"):
        ArraySet({"x": np.zeros((2, 3))}, [0, -1])


def test_sets_survive_pickling_for_other_processes(folder: Path) -> None:
    rows = torch.arange(4)
    for made in (
        pictures(folder, PREPROCESS, memory_mib=0),
        pictures(folder, PREPROCESS),
        TextSet(["good", "bad", "film", "good"], [0, 1, 0, 1], WORDS),
        ArraySet({"x": np.ones((4, 2))}, [0, 1, 1, 0]),
    ):
        copy = pickle.loads(pickle.dumps(made))
        assert copy.digest == made.digest
        one, other = made.batch(rows, None), copy.batch(rows, None)
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_subset_is_the_samples_at_its_rows() -> None:
    whole = ArraySet({"x": np.arange(12.0).reshape(6, 2)}, [0, 1, 0, 1, 0, 1], classes=("a", "b"))
    rows = torch.tensor([4, 1, 3])
    part = Subset(whole, rows)
    assert (len(part), part.classes) == (3, ("a", "b"))
    assert part.labels is not None and part.labels.tolist() == [0, 1, 1]
    batch = part.batch(torch.tensor([2, 0]), None)
    assert torch.equal(batch["x"], whole.batch(torch.tensor([3, 4]), None)["x"])
    assert batch["y"].tolist() == [1, 0] and batch["row"].tolist() == [2, 0]
    digests = {whole.digest, part.digest, Subset(whole, rows[:2]).digest}
    assert len(digests) == 3
    assert Subset(whole, rows.clone()).digest == part.digest
