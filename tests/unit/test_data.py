"""Calibration and evaluation sets: arrays, and how a source is divided and drawn from."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import ArraySamples, Samples, load, load_pair, same_source
from edgekit.data import arrays as arrays_module
from edgekit.errors import BadData, UsageError
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.signature import Signature, TensorSpec

Array = np.ndarray[Any, Any]

VECTOR = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("logits", (1, 3)),))
IDS = Signature((TensorSpec("ids", (1, 6), "int32", high=99),), (TensorSpec("logits", (1, 2)),))
PICTURE = Signature(
    (TensorSpec("image", (1, 3, 8, 8), layout="NCHW"),), (TensorSpec("logits", (1, 3)),)
)
RESIZE = ImagePreprocess(8, 8, mean=(0.5,) * 3, std=(0.25,) * 3)


def vectors(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def take(spec: str | Path, signature: Signature = VECTOR, **options: Any) -> Samples:
    options = {"preprocess": None, "split": "eval", **options}
    return load(spec, signature=signature, **options)


def contents(samples: Samples) -> set[bytes]:
    return {b"".join(a.tobytes() for a in samples.feed(i).values()) for i in range(len(samples))}


def labels(samples: Samples) -> list[int | None]:
    return [samples.label(i) for i in range(len(samples))]


def test_npz_feeds_one_sample_at_a_time(tmp_path: Path) -> None:
    x = vectors(5)
    got = take(save(tmp_path / "d.npz", x=x, y=[0, 1, 2, 1, 0]))
    assert len(got) == 5
    assert got.source.endswith("d.npz")
    assert labels(got) == [0, 1, 2, 1, 0]
    for i in range(5):
        feed = got.feed(i)
        VECTOR.check_inputs(feed, what="feed")
        np.testing.assert_array_equal(feed["x"], x[i : i + 1])
    got.feed(0)["x"][:] = 7.0
    np.testing.assert_array_equal(got.feed(0)["x"], x[:1])


def test_digits_of_scikit_learn(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    signature = Signature((TensorSpec("x", (1, 64)),), (TensorSpec("logits", (1, 10)),))
    path = save(tmp_path / "digits.npz", x=x, y=y)
    calib, evaluation = load_pair(path, None, signature=signature, preprocess=None)
    assert len(calib) + len(evaluation) == 1797
    assert 0.2 < len(calib) / 1797 < 0.3
    assert not contents(calib) & contents(evaluation)
    assert calib.feed(0)["x"].dtype == np.float32
    assert set(labels(evaluation)) == set(range(10))


def test_npz_without_labels_and_with_an_input_called_y(tmp_path: Path) -> None:
    assert labels(take(save(tmp_path / "a.npz", x=vectors(2)))) == [None, None]
    signature = Signature((TensorSpec("y", (1, 4)),))
    got = take(save(tmp_path / "b.npz", y=vectors(2)), signature)
    assert labels(got) == [None, None]
    assert got.feed(1)["y"].shape == (1, 4)


@pytest.mark.parametrize("stored", ["float32", "float64", ">f4", ">f8"])
def test_floats_are_narrowed_and_brought_to_native_order(tmp_path: Path, stored: str) -> None:
    x = vectors(3)
    got = take(save(tmp_path / "d.npz", x=x.astype(stored)))
    np.testing.assert_array_equal(got.feed(2)["x"], x[2:])
    assert got.feed(2)["x"].dtype == np.dtype("float32")


def test_integers_are_exchanged_where_they_fit() -> None:
    ids = np.arange(12).reshape(2, 6)
    got = ArraySamples({"ids": ids}, signature=IDS)
    assert got.feed(0)["ids"].dtype == np.int32
    with pytest.raises(BadData, match=r"sample 1 of 'ids' does not fit int32 \(1 of 2"):
        ArraySamples({"ids": ids + np.array([[0], [2**40]])}, signature=IDS)


def test_other_shapes_than_batch_one() -> None:
    stacked = Signature((TensorSpec("x", (2, 4)), TensorSpec("scalar", ())))
    x = vectors(6).reshape(3, 2, 4)
    got = ArraySamples({"x": x, "scalar": vectors(3)[:, 0]}, signature=stacked)
    np.testing.assert_array_equal(got.feed(1)["x"], x[1])
    assert got.feed(1)["scalar"].shape == ()
    one = Signature((TensorSpec("x", (1, 4)),))
    assert ArraySamples({"x": x[:, :1]}, signature=one).feed(0)["x"].shape == (1, 4)


def _with(x: Array, index: Any, value: float) -> Array:
    x = x.copy()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "signature", "complaint"),
    [
        (dict(x=vectors(5)[:, :3]), VECTOR, r"'x' is \(5, 3\), wanted \(n, 4\)"),
        (dict(x=vectors(5)[:, :, None]), VECTOR, r"'x' is \(5, 4, 1\), wanted \(n, 4\)"),
        (dict(x=np.float32(1.0)), VECTOR, "number of samples"),
        (dict(x=vectors(0)), VECTOR, "0 samples for evaluation, at least 1"),
        (dict(x=np.zeros((2, 8, 8, 3), np.float32)), PICTURE, "lacks image and has x"),
        (dict(image=np.zeros((2, 8, 8, 3), np.float32)), PICTURE, "another order.*NCHW"),
        (dict(x=vectors(5) > 0), VECTOR, "'x' is bool, wanted float32"),
        (dict(x=vectors(5).astype(np.float16)), VECTOR, "'x' is float16, wanted float32"),
        (dict(x=np.ones((5, 4), np.int64)), VECTOR, "'x' is int64, wanted float32"),
        (dict(x=np.ones((5, 4), np.uint8)), VECTOR, "ImagePreprocess"),
        (dict(x=np.ones((5, 4), complex)), VECTOR, "'x' is complex128"),
        (dict(x=np.full((5, 4), "a")), VECTOR, "'x' is <U1"),
        (dict(x=_with(vectors(9), (6, 1), np.nan)), VECTOR, r"sample 6 of 'x' holds NaN.*\(1 of 9"),
        (dict(x=_with(vectors(9), np.s_[3:], -np.inf)), VECTOR, r"sample 3 of .*\(6 of 9"),
        (
            dict(x=_with(vectors(9).astype(float), (8, 0), 1e300)),
            VECTOR,
            "sample 8 of 'x' holds NaN",
        ),
        (dict(ids=np.full((3, 6), 100)), IDS, "sample 0 of 'ids' holds a value outside 0 to 99"),
        (dict(ids=_with(np.ones((3, 6), int), (2, 5), -1)), IDS, "sample 2 of 'ids'"),
        (dict(z=vectors(5)), VECTOR, "lacks x and has z"),
        (dict(x=vectors(5), z=vectors(5)), VECTOR, "has z, which the model does not take"),
        (dict(y=[1, 2]), VECTOR, "no inputs"),
        (dict(x=vectors(5), y=[0, 1]), VECTOR, r"labels are \(2,\), wanted \(5,\)"),
        (dict(x=vectors(2), y=np.eye(3)[:2]), VECTOR, "one-hot"),
        (dict(x=vectors(2), y=[0, 3]), VECTOR, r"label 3 of sample 1 is no class \(0 to 2\)"),
        (dict(x=vectors(2), y=[-1, 0]), VECTOR, "label -1 of sample 0"),
        (dict(x=vectors(2), y=[0.5, 1]), VECTOR, "not all whole numbers"),
        (dict(x=vectors(2), y=[np.nan, 1]), VECTOR, "not all whole numbers"),
        (dict(x=vectors(2), y=["a", "b"]), VECTOR, "not all whole numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], signature: Signature, complaint: str
) -> None:
    with pytest.raises(BadData, match=f"(?s){complaint}") as caught:
        take(save(tmp_path / "d.npz", **arrays), signature)
    assert caught.value.exit_code == 7
    assert "d.npz" in caught.value.message


def test_inputs_of_different_lengths_are_refused() -> None:
    two = Signature((TensorSpec("a", (1, 4)), TensorSpec("b", (1, 4))))
    with pytest.raises(BadData, match=r"a \(3, 4\), b \(2, 4\)"):
        ArraySamples({"a": vectors(3), "b": vectors(2)}, signature=two)


def test_labels_come_in_several_forms() -> None:
    for y in ([0, 2], np.array([[0], [2]], np.uint8), np.array([0.0, 2.0]), (False, 2)):
        assert labels(ArraySamples({"x": vectors(2)}, y, signature=VECTOR)) == [0, 2]
    probability = Signature(VECTOR.inputs, (TensorSpec("p", (1, 1)),))
    assert labels(ArraySamples({"x": vectors(2)}, [0, 1], signature=probability)) == [0, 1]


def test_arrays_without_a_signature() -> None:
    got = ArraySamples({"x": vectors(3)}, [5, 6, 7])
    assert got.feed(2)["x"].shape == (1, 4)
    assert labels(got) == [5, 6, 7]
    assert got.source == "memory"


def test_pictures_in_arrays_are_preprocessed(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 10, 12, 3), dtype=np.uint8)
    got = take(save(tmp_path / "d.npz", image=pictures), PICTURE, preprocess=RESIZE)
    np.testing.assert_array_equal(got.feed(1)["image"], RESIZE.apply(pictures[1]))
    grey = ArraySamples({"image": pictures[..., 0]}, signature=PICTURE, preprocess=RESIZE)
    np.testing.assert_array_equal(grey.feed(0)["image"], RESIZE.apply(pictures[0, :, :, 0]))
    ready = RESIZE.apply(pictures[0])
    passed = ArraySamples({"image": ready}, signature=PICTURE, preprocess=RESIZE)
    np.testing.assert_array_equal(passed.feed(0)["image"], ready)
    fixed = ImagePreprocess(8, 8, resize="none")
    with pytest.raises(BadData, match=r"\(10, 12\).*does not resize"):
        ArraySamples({"image": pictures}, signature=PICTURE, preprocess=fixed)
    with pytest.raises(BadData, match="preprocessing makes float32"):
        ArraySamples({"image": pictures}, signature=PICTURE, preprocess=ImagePreprocess(9, 9))


def test_npz_files_that_are_broken_or_hostile_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(content: bytes, complaint: str) -> None:
        path = tmp_path / "d.npz"
        path.write_bytes(content)
        with pytest.raises(BadData, match=complaint):
            take(path)

    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "owned"),))

    good = save(tmp_path / "good.npz", x=vectors(50)).read_bytes()
    objects = np.empty(2, dtype=object)
    objects[:] = [Trap(), Trap()]
    refused(save(tmp_path / "trap.npz", x=objects).read_bytes(), "pickled")
    refused(pickle.dumps(Trap()), "not a zip")
    refused(b"", "not a zip")
    refused(good[: len(good) // 2], "not a zip")
    middle = len(good) // 2
    refused(good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :], "CRC")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as file:
        file.writestr("x.txt", "hello")
    refused((tmp_path / "other.npz").read_bytes(), "no .npy array")
    assert not (tmp_path / "owned").exists()
    monkeypatch.setattr(arrays_module, "MAX_ARRAY_BYTES", 100)
    refused(good, "unpacks to")
    with pytest.raises(BadData, match=r"no data at .*absent\.npz"):
        take(tmp_path / "absent.npz")


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_a_shared_source_is_divided_without_overlap(tmp_path: Path, n: int) -> None:
    x = vectors(n)
    path = save(tmp_path / "d.npz", x=x)
    for seed in range(2):
        calib, evaluation = load_pair(path, None, signature=VECTOR, preprocess=None, seed=seed)
        assert len(calib) and len(evaluation)
        assert not contents(calib) & contents(evaluation)
        assert len(contents(calib) | contents(evaluation)) == n


def test_copies_of_a_sample_fall_on_one_side(tmp_path: Path) -> None:
    x = vectors(30)
    path = save(tmp_path / "d.npz", x=np.concatenate([x, x[::-1]]))
    calib, evaluation = load_pair(path, path, signature=VECTOR, preprocess=None)
    assert not contents(calib) & contents(evaluation)
    assert len(calib) + len(evaluation) == 60


def test_the_division_stays_put_when_samples_are_added(tmp_path: Path) -> None:
    x = vectors(80)
    options: dict[str, Any] = dict(signature=VECTOR, preprocess=None)
    before, _ = load_pair(save(tmp_path / "a.npz", x=x[:50]), None, **options)
    _, after = load_pair(save(tmp_path / "b.npz", x=x[::-1]), None, **options)
    assert not contents(before) & contents(after)


def test_different_sources_are_taken_whole(tmp_path: Path) -> None:
    one = save(tmp_path / "a.npz", x=vectors(6))
    other = save(tmp_path / "b.npz", x=vectors(9, seed=1))
    calib, evaluation = load_pair(one, other, signature=VECTOR, preprocess=None)
    assert (len(calib), len(evaluation)) == (6, 9)
    only, rest = load_pair(None, other, signature=VECTOR, preprocess=None)
    assert len(only) + len(rest) == 9
    with pytest.raises(UsageError, match="no data"):
        load_pair(None, None, signature=VECTOR, preprocess=None)


def test_same_source_sees_through_links_and_spelling(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=vectors(2))
    (tmp_path / "link.npz").symlink_to(path)
    assert same_source(path, tmp_path / "link.npz")
    assert same_source(path, f"{tmp_path}/./sub/../a.npz")
    assert not same_source(path, tmp_path / "b.npz")
    assert same_source(f"{tmp_path}/f.py:data", f"{tmp_path}/./f.py:data")
    assert not same_source(f"{tmp_path}/f.py:data", f"{tmp_path}/f.py:other")
    assert same_source("pkg.mod:data", "pkg.mod:data")


def test_limit_draws_by_seed_and_grows_by_adding(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=vectors(50), y=np.arange(50) % 3)
    small, again, large, other = (
        contents(take(path, limit=n, seed=s)) for n, s in ((10, 0), (10, 0), (20, 0), (10, 1))
    )
    assert small == again
    assert len(small) == 10
    assert small < large
    assert small != other
    assert len(take(path, limit=99)) == 50
    with pytest.raises(UsageError, match="limit of 0"):
        take(path, limit=0)


def test_too_few_samples_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=vectors(3))
    assert len(take(path, min_samples=3)) == 3
    with pytest.raises(BadData, match="3 samples for evaluation, at least 4 are needed"):
        take(path, min_samples=4)
    with pytest.raises(BadData, match="1 samples for calibration, at least 2"):
        take(path, split="calib", min_samples=2, limit=1)


def test_digest_follows_content_labels_and_order(tmp_path: Path) -> None:
    x = vectors(4)
    first = take(save(tmp_path / "a.npz", x=x, y=[0, 1, 2, 0])).digest
    assert len(first) == 64 and int(first, 16) >= 0
    assert take(save(tmp_path / "b.npz", x=x, y=[0, 1, 2, 0])).digest == first
    assert ArraySamples({"x": x}, [0, 1, 2, 0], signature=VECTOR).digest == first
    others = [
        take(save(tmp_path / "c.npz", x=x, y=[0, 1, 2, 1])).digest,
        take(save(tmp_path / "d.npz", x=x)).digest,
        take(save(tmp_path / "e.npz", x=x[::-1], y=[0, 2, 1, 0])).digest,
        take(tmp_path / "a.npz", limit=3).digest,
    ]
    assert len({first, *others}) == 5


def test_unknown_and_absent_sources(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(BadData, match="no known kind of data"):
        take(path)
    with pytest.raises(BadData, match="no data at"):
        take(tmp_path / "absent")
    with pytest.raises(BadData, match="no regular file"):
        take("/dev/null")
