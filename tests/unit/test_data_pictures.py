"""Folders and zips of pictures, well-formed, broken and hostile."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import Samples, load, load_pair
from edgekit.errors import BadData
from edgekit.runtime.preprocess import ImagePreprocess, TextPreprocess
from edgekit.signature import Signature, TensorSpec

PICTURE = Signature(
    (TensorSpec("image", (1, 3, 8, 8), layout="NCHW"),), (TensorSpec("logits", (1, 3)),)
)
NAMED = Signature(PICTURE.inputs, (TensorSpec("logits", (1, 3), labels=("dog", "cat", "eel")),))
RESIZE = ImagePreprocess(8, 8, mean=(0.5,) * 3, std=(0.25,) * 3)
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "0", "1")
TOKENS = TextPreprocess(vocab=PIECES, max_length=6)
TEXT = Signature(
    (
        TensorSpec("input_ids", (1, 6), "int64", high=9),
        TensorSpec("attention_mask", (1, 6), "int64", high=1),
    ),
    (TensorSpec("logits", (1, 2), labels=("neg", "pos")),),
)


def take(spec: str | Path, signature: Signature, **options: Any) -> Samples:
    options = {"preprocess": None, "split": "eval", **options}
    return load(spec, signature=signature, **options)


def png(seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path, names: Iterable[str]) -> Path:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    return root


def zipped(path: Path, names: Iterable[str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for seed, name in enumerate(names):
            file.writestr(name, png(seed))
    return path


def contents(samples: Samples) -> set[bytes]:
    return {b"".join(a.tobytes() for a in samples.feed(i).values()) for i in range(len(samples))}


def labels(samples: Samples) -> list[int | None]:
    return [samples.label(i) for i in range(len(samples))]


SPLIT = [
    *(f"train/{c}/{i}.png" for c in ("cat", "dog", "eel") for i in range(3)),
    *(f"test/{c}/{i}.png" for c in ("cat", "eel") for i in range(2)),
]


@pytest.mark.parametrize("make", [folder, zipped])
@pytest.mark.parametrize("around", ["", "archive/data/"])
def test_split_folders_are_the_roles(tmp_path: Path, make: Any, around: str) -> None:
    path = make(tmp_path / "pictures.zip", [around + name for name in SPLIT])
    calib, evaluation = load_pair(path, None, signature=PICTURE, preprocess=RESIZE)
    assert labels(calib) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # The class that has no test picture still counts.
    assert labels(evaluation) == [0, 0, 2, 2]
    assert not contents(calib) & contents(evaluation)
    PICTURE.check_inputs(evaluation.feed(0), what="feed")
    pixels = RESIZE.decode(png(0))
    first = SPLIT.index("train/cat/0.png")
    assert first == 0
    np.testing.assert_array_equal(calib.feed(0)["image"], RESIZE.apply(pixels))


def test_folder_and_zip_give_the_same_samples(tmp_path: Path) -> None:
    names = [f"{c}/{i}.png" for c in ("cat", "dog", "eel") for i in range(12)]
    options: dict[str, Any] = dict(signature=PICTURE, preprocess=RESIZE, split="calib", limit=5)
    digests = {
        load(folder(tmp_path / "f", names), **options).digest,
        load(zipped(tmp_path / "z.zip", names), **options).digest,
        load(zipped(tmp_path / "w.zip", [f"wrapped/{n}" for n in names]), **options).digest,
    }
    assert len(digests) == 1


def test_pictures_without_splits_are_divided_by_name(tmp_path: Path) -> None:
    names = [f"{c}/{i}.png" for c in ("cat", "dog", "eel") for i in range(20)]
    path = folder(tmp_path / "f", names)
    calib = take(path, PICTURE, preprocess=RESIZE, split="calib")
    evaluation = take(path, PICTURE, preprocess=RESIZE, split="eval")
    assert not contents(calib) & contents(evaluation)
    assert len(calib) + len(evaluation) == 60
    assert 5 <= len(calib) <= 25
    # Other content under the same names is divided alike.
    elsewhere = folder(tmp_path / "g", reversed(names))
    assert len(take(elsewhere, PICTURE, preprocess=RESIZE, split="calib")) == len(calib)
    whole = take(path, PICTURE, preprocess=RESIZE, shared=False)
    assert len(whole) == 60


def test_classes_are_numbered_by_the_models_labels(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", ["train/cat/a.png", "train/dog/b.png", "test/eel/sub/c.png"])
    assert labels(take(path, NAMED, preprocess=RESIZE, split="calib")) == [1, 0]
    assert labels(take(path, NAMED, preprocess=RESIZE)) == [2]
    folder(path, ["test/eels/c.png", "test/zebra/c.png"])
    with pytest.raises(BadData, match=r"class folder 'eels' is none of .*3 labels \(nor are 1 oth"):
        take(path, NAMED, preprocess=RESIZE)


def test_sorted_order_is_no_guess(tmp_path: Path) -> None:
    few = folder(tmp_path / "few", ["train/a/1.png", "train/b/1.png", "test/a/1.png"])
    with pytest.raises(BadData, match="2 class folders; the model has more"):
        take(few, PICTURE, preprocess=RESIZE)
    assert labels(take(few, PICTURE, preprocess=RESIZE, split="calib")) == [None, None]
    many = folder(tmp_path / "many", [f"{c}/1.png" for c in "abcd"])
    with pytest.raises(BadData, match="4 different class folders; the model has 3"):
        take(many, PICTURE, preprocess=RESIZE)
    unsaid = Signature(PICTURE.inputs)
    assert labels(take(many, unsaid, preprocess=RESIZE, shared=False)) == [0, 1, 2, 3]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", ["train/1.png", "bus/1.png", "car/1.png"])
    assert labels(take(path, PICTURE, preprocess=RESIZE, shared=False)) == [0, 1, 2]


def test_pictures_without_classes_have_no_labels(tmp_path: Path) -> None:
    flat = folder(tmp_path / "f", [f"{i}.png" for i in range(4)])
    assert labels(take(flat, NAMED, preprocess=RESIZE, shared=False)) == [None] * 4
    wrapped = zipped(tmp_path / "z.zip", [f"holiday/{i}.png" for i in range(4)])
    assert labels(take(wrapped, NAMED, preprocess=RESIZE, shared=False)) == [None] * 4
    split = folder(tmp_path / "s", ["train/1.png", "test/2.png", "test/3.png"])
    assert labels(take(split, NAMED, preprocess=RESIZE)) == [None, None]
    folder(flat, ["cat/5.png"])
    with pytest.raises(BadData, match=r"0\.png lies outside the class folders \(4 such"):
        take(flat, NAMED, preprocess=RESIZE)


def test_what_is_no_picture_is_passed_over(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "f",
        ["train/cat/1.PNG", "test/cat/2.png", "test/cat/._2.png", "test/.hidden/3.png",
         "__MACOSX/test/cat/4.png"],
    )  # fmt: skip
    (path / "README.md").write_text("hello")
    (path / "test" / "cat" / "notes.txt").write_text("hello")
    os.mkfifo(path / "test" / "cat" / "pipe.png")
    assert labels(take(path, NAMED, preprocess=RESIZE)) == [1]


def test_folders_are_followed_through_links_but_not_in_circles(tmp_path: Path) -> None:
    real = folder(tmp_path / "real", ["1.png"])
    path = folder(tmp_path / "f", ["cat/1.png"])
    (path / "dog").symlink_to(real)
    (path / "cat" / "loop").symlink_to(path)
    got = take(path, NAMED, preprocess=RESIZE, shared=False)
    assert sorted(labels(got), key=str) == [0, 1]


@pytest.mark.parametrize(
    ("names", "role", "complaint"),
    [
        (["train/cat/1.png"], "eval", "none for evaluation: test/ or val/"),
        (["test/cat/1.png"], "calib", "none for calibration: train/"),
        ([], "eval", "holds no pictures"),
    ],
)
def test_absent_splits_and_pictures(
    tmp_path: Path, names: list[str], role: str, complaint: str
) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(BadData, match=complaint):
        take(folder(tmp_path / "f", names), NAMED, preprocess=RESIZE, split=role)


def test_val_serves_where_there_is_no_test(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", ["train/cat/1.png", "val/dog/1.png"])
    assert labels(take(path, NAMED, preprocess=RESIZE)) == [0]
    folder(path, ["test/eel/1.png"])
    assert labels(take(path, NAMED, preprocess=RESIZE)) == [2]


def test_pictures_need_a_preprocessing_that_fits(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", ["cat/1.png"])
    with pytest.raises(BadData, match="no preprocessing"):
        take(path, PICTURE)
    with pytest.raises(BadData, match="no preprocessing"):
        take(path, PICTURE, preprocess=TOKENS)
    with pytest.raises(BadData, match=r"float32 \(1, 3, 9, 8\); input 'image' takes"):
        take(path, PICTURE, preprocess=ImagePreprocess(9, 8))
    with pytest.raises(BadData, match="one input"):
        take(path, TEXT, preprocess=RESIZE)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", ["test/cat/1.png", "train/cat/1.png"])
    (path / "test" / "cat" / "2.jpg").write_bytes(b"no picture")
    (path / "test" / "cat" / "3.npy").write_bytes(b"\x93NUMPY\x01\x00")
    got = take(path, NAMED, preprocess=RESIZE)
    assert len(got) == 3
    got.feed(0)
    for i, name in ((1, r"test/cat/2\.jpg"), (2, r"test/cat/3\.npy")):
        with pytest.raises(BadData, match=name):
            got.feed(i)


def test_pictures_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", SPLIT)
    got = take(path, PICTURE, preprocess=RESIZE)
    for file in path.rglob("*.png"):
        file.unlink()
    with pytest.raises(BadData, match="no picture file"):
        got.feed(0)


def _hostile(path: Path, name: str, mode: int = 0o100644) -> Path:
    zipped(path, ["cat/1.png"])
    with zipfile.ZipFile(path, "a") as file:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        file.writestr(member, png(9))
    return path


@pytest.mark.parametrize(
    ("name", "mode", "complaint"),
    [
        ("../cat/2.png", 0o100644, "leads out"),
        ("cat/../../2.png", 0o100644, "leads out"),
        ("..\\cat\\2.png", 0o100644, "leads out"),
        ("/etc/2.png", 0o100644, "leads out"),
        ("\\\\host\\2.png", 0o100644, "leads out"),
        ("C:\\cat\\2.png", 0o100644, "leads out"),
        ("../notes.txt", 0o100644, "leads out"),
        ("cat/2.png", 0o120777, "a link"),
    ],
)
def test_zip_members_that_lead_elsewhere_are_refused(
    tmp_path: Path, name: str, mode: int, complaint: str
) -> None:
    with pytest.raises(BadData, match=complaint):
        take(_hostile(tmp_path / "z.zip", name, mode), NAMED, preprocess=RESIZE)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips_that_are_broken_or_hostile_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="twice"):
        take(_hostile(tmp_path / "z.zip", "cat/1.png"), NAMED, preprocess=RESIZE)
    (tmp_path / "n.zip").write_bytes(b"no zip")
    with pytest.raises(BadData, match="as a zip"):
        take(tmp_path / "n.zip", NAMED, preprocess=RESIZE)
    bomb = tmp_path / "b.zip"
    with (
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("cat/1.png", "w", force_zip64=True) as member,
    ):
        for _ in range(257):
            member.write(bytes(2**20))
    assert bomb.stat().st_size < 2**19
    with pytest.raises(BadData, match=r"cat/1\.png: .*at most"):
        take(bomb, NAMED, preprocess=RESIZE, shared=False).feed(0)


def test_a_zip_member_with_a_wrong_checksum_is_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "z.zip", ["cat/1.png"])
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"cat/1\.png.*CRC"):
        take(path, NAMED, preprocess=RESIZE, shared=False).feed(0)


def _sums(samples: Samples) -> list[float]:
    return [float(samples.feed(i)["image"].sum()) for i in range(len(samples))]


def test_a_zip_serves_threads_and_other_processes(tmp_path: Path) -> None:
    path = zipped(tmp_path / "z.zip", [f"cat/{i}.png" for i in range(40)])
    got = take(path, NAMED, preprocess=RESIZE, shared=False)
    want = _sums(got)
    with ThreadPoolExecutor(4) as pool:
        assert all(sums == want for sums in pool.map(_sums, [got] * 8))
    assert _sums(pickle.loads(pickle.dumps(got))) == want


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes fork on Unix alone")
def test_a_zip_serves_a_fork_of_its_reader(tmp_path: Path) -> None:
    path = zipped(tmp_path / "z.zip", [f"cat/{i}.png" for i in range(40)])
    (tmp_path / "got").write_bytes(pickle.dumps(take(path, NAMED, preprocess=RESIZE, shared=False)))
    # In a process of its own: a fork of this one may hang, by threads of other tests.
    script = """
        import os, pickle, sys
        got = pickle.loads(open(sys.argv[1], "rb").read())
        def sums():
            return [float(got.feed(i)["image"].sum()) for i in range(len(got))]
        want = sums()
        child = os.fork()
        if not child:
            os._exit(0 if all(sums() == want for _ in range(5)) else 3)
        assert all(sums() == want for _ in range(5))
        assert os.waitpid(child, 0)[1] == 0
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "got")]
    subprocess.run(command, check=True, timeout=60)
