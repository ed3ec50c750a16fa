"""Pictures to learn from: in memory as uint8 where they fit, else decoded batch by batch."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import torch

from edgekit._torchvision import torchvision
from edgekit.cores import usable
from edgekit.data.augment import Augment, augment, erase
from edgekit.data.pictures import read_pictures
from edgekit.data.samples import ArraySamples, Feeds, Samples, SampleSet, picture_of
from edgekit.errors import BadData, EdgekitError, UsageError
from edgekit.names import unknown
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.signature import Signature, TensorSpec

__all__ = ["PictureSet", "from_torchvision", "pictures", "split_by_name"]

Part = Literal["train", "test"]
Pixels = npt.NDArray[np.uint8]

MEMORY_MIB: Final = 1024
_PROBED: Final = 64


class PictureSet:
    """Pictures at the model's size, changed by an augmentation, normalized as the device does it.

    Args:
        samples: what has pictures: a folder's, a zip's, uint8 arrays, a torchvision dataset.
        preprocess: colour, size and normalization.
        how: augmentation, of batches that are made with a generator.
        memory_mib: pictures are decoded once and kept where they take no more than this at the
            model's size; else each batch is decoded by threads, while the step before is computed.
        input_name: the model's input.
        classes: names of the classes; those of ``samples`` where it has them.

    Where the preprocessing resizes without antialiasing, pixels are rounded to 8 bits after it,
    which the device's float artifacts do not do.

    Raises:
        BadData: there are none, one cannot be read (names its file), or only some have a class.
        UsageError: the samples have no pictures.
    """

    def __init__(
        self,
        samples: Samples,
        preprocess: ImagePreprocess,
        *,
        how: Augment | None = None,
        memory_mib: int = MEMORY_MIB,
        input_name: str = "x",
        classes: Sequence[str] = (),
    ) -> None:
        self.samples, self._preprocess, self._name = samples, preprocess, input_name
        self.source = samples.source
        self.classes = tuple(classes) or tuple(getattr(samples, "classes", ()))
        self._how = how or Augment()
        if not len(samples):
            raise BadData(f"{samples.source} holds no pictures")
        self.labels = _labels(samples)
        self._table = torch.from_numpy(preprocess.table)
        size = preprocess.height * preprocess.width * preprocess.channels * len(samples)
        self.threaded = size > memory_mib * 2**20
        self._kept = None if self.threaded else self._decoded(range(len(samples)))

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def digest(self) -> str:
        """sha256 of pixels, labels and what is done with them.

        Of pictures that are not kept in memory, up to 64 evenly spread ones count.
        """
        about = {
            "preprocess": self._preprocess.to_json(),
            "how": self._how.model_dump(mode="json"),
            "count": len(self),
            "labels": None if self.labels is None else self.labels.tolist(),
        }
        total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        kept = self._kept
        if kept is None:
            spread = torch.linspace(0, len(self) - 1, min(_PROBED, len(self))).long()
            kept = self._decoded(spread.tolist())
        total.update(kept.numpy().tobytes())
        return total.hexdigest()

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """See `edgekit.compress.train.TrainSet`: float32, in the preprocessing's layout.

        Raises:
            BadData: a picture cannot be read; names its file.
        """
        x = self._decoded(rows.tolist()) if self._kept is None else self._kept[rows]
        if generator is not None:
            x = augment(x, self._how, generator)
        if self._preprocess.color == "BGR":
            x = x.flip(1)
        planes = [self._table[c][x[:, c].long()] for c in range(x.shape[1])]
        made = torch.stack(planes, 1)
        if generator is not None and self._how.erase:
            made = erase(made, self._how.erase, generator)
        if self._preprocess.layout == "NHWC":
            made = made.permute(0, 2, 3, 1).contiguous()
        out = {self._name: made, "row": rows}
        return out if self.labels is None else out | {"y": self.labels[rows]}

    def _decoded(self, rows: Sequence[int]) -> torch.Tensor:
        """Pictures as uint8 ``[n, C, H, W]``, RGB or grey."""
        p = self._preprocess
        made = np.empty((len(rows), p.channels, p.height, p.width), np.uint8)

        def decode(place: int) -> None:
            picture = picture_of(self.samples, rows[place])
            if picture is None:
                raise UsageError(
                    f"{self.source} has no pictures, only the model's tensors",
                    hint="take an ArraySet for those",
                )
            made[place] = self._pixels(picture, rows[place]).transpose(2, 0, 1)

        with ThreadPoolExecutor(usable()) as pool:
            for _ in pool.map(decode, range(len(rows))):
                pass  # the first error is raised here
        return torch.from_numpy(made)

    def _pixels(self, picture: Pixels, i: int) -> Pixels:
        pixels = self._preprocess.pixels
        try:
            return cast(Pixels, pixels(picture)[0])
        except BadData as error:
            name = getattr(self.samples, "name", lambda i: f"sample {i}")(i)
            raise BadData(f"{self.source}: {name}: {error.message}", hint=error.hint) from error


def pictures(
    source: str | Path | npt.NDArray[np.uint8],
    preprocess: ImagePreprocess,
    *,
    labels: npt.ArrayLike | None = None,
    classes: Sequence[str] = (),
    part: Part = "train",
    test: float = 0.2,
    how: Augment | None = None,
    memory_mib: int = MEMORY_MIB,
    input_name: str = "x",
) -> PictureSet:
    """Pictures of a folder, of a zip, or in memory.

    Args:
        source: a folder or ``.zip`` of pictures by class, or uint8 ``[n, H, W]`` or
            ``[n, H, W, C]``.
        preprocess: colour, size and normalization.
        labels: classes of pictures in memory, ``[n]``.
        classes: names of the classes in order; folders are numbered alphabetically without.
        part: ``train`` or ``test`` of a folder or zip: its own splits where it has them, else see
            `split_by_name`. Pictures in memory are taken whole.
        test: the part of a folder without splits that is for testing, 0 to 1.
        how, memory_mib, input_name: see `PictureSet`.

    Raises:
        BadData: absent, unreadable, no pictures, none of this part, or a class without samples.
    """
    outputs = (TensorSpec("y", (1, len(classes)), labels=tuple(classes)),) if classes else ()
    signature = Signature((TensorSpec(input_name, preprocess.shape),), outputs)
    samples: SampleSet
    if isinstance(source, np.ndarray):
        samples = ArraySamples(
            {input_name: source}, labels, signature=signature, preprocess=preprocess
        )
    else:
        path = Path(source).expanduser()
        if not path.is_dir() and path.suffix.lower() != ".zip":
            raise BadData(f"{path} is no folder or .zip of pictures")
        role: Literal["calib", "eval"] = "calib" if part == "train" else "eval"
        samples, own = read_pictures(path, signature, preprocess, role)
        samples = samples if own else split_by_name(samples, part, test)
    return PictureSet(
        samples, preprocess, how=how, memory_mib=memory_mib, input_name=input_name, classes=classes
    )


def split_by_name(samples: SampleSet, part: Part, test: float = 0.2) -> SampleSet:
    """The samples of one part, by a hash of each one's name or content.

    The division depends on nothing else: it is the same in every run, in a folder and in a zip of
    it, and stays put when samples are added.

    Raises:
        BadData: nothing is left.
    """

    def is_test(i: int) -> bool:
        rank = int.from_bytes(hashlib.sha256(b"part:" + samples.key(i)).digest()[:8])
        return rank < test * 2**64

    found = [i for i in range(len(samples)) if is_test(i) == (part == "test")]
    if not found:
        raise BadData(
            f"{samples.source}: none of its {len(samples)} samples falls to {part}",
            hint="give more samples, or folders train/ and test/",
        )
    return samples.take(found)


class _Dataset(SampleSet):
    """A torchvision dataset of pictures and classes."""

    def __init__(
        self, dataset: Any, preprocess: ImagePreprocess, source: str, rows: Sequence[int]
    ) -> None:
        super().__init__(source)
        self._dataset, self._preprocess, self._rows = dataset, preprocess, list(rows)
        self.classes = tuple(map(str, getattr(dataset, "classes", ())))

    def __len__(self) -> int:
        return len(self._rows)

    def picture(self, i: int) -> Pixels:
        """The picture as RGB or grey, uint8 ``[H, W]`` or ``[H, W, 3]``."""
        picture = self._item(i)[0]
        if getattr(picture, "mode", "RGB") not in ("L", "RGB"):
            picture = picture.convert("RGB")
        return np.array(picture, dtype=np.uint8)

    def feed(self, i: int) -> Feeds:
        """See `edgekit.data.samples.Samples.feed`."""
        return {"x": self._preprocess.apply(self.picture(i))}

    def label(self, i: int) -> int:
        """See `edgekit.data.samples.Samples.label`."""
        for name in ("targets", "labels", "_labels"):
            known = getattr(self._dataset, name, None)
            if known is not None and len(known) == len(self._dataset):
                return int(known[self._rows[i]])
        return int(self._item(i)[1])

    def key(self, i: int) -> bytes:
        """The picture: one that occurs twice is one sample to a division."""
        return self.content(i)

    def content(self, i: int) -> bytes:
        """The pixels."""
        picture = self.picture(i)
        return f"{picture.shape}:".encode() + picture.tobytes()

    def take(self, indices: Sequence[int]) -> Self:
        """The samples at ``indices``."""
        rows = [self._rows[i] for i in indices]
        return type(self)(self._dataset, self._preprocess, self.source, rows)

    def _item(self, i: int) -> Any:
        try:
            return self._dataset[self._rows[i]]
        except Exception as error:
            # Each dataset has its own exceptions for files that are absent or broken.
            raise BadData(f"{self.source}: sample {self._rows[i]}: {error}") from error


def from_torchvision(
    name: str,
    root: str | Path,
    preprocess: ImagePreprocess,
    *,
    part: Part = "train",
    download: bool = False,
    how: Augment | None = None,
    memory_mib: int = MEMORY_MIB,
    options: dict[str, Any] | None = None,
) -> PictureSet:
    """Pictures of one of torchvision's datasets of pictures and classes.

    Args:
        name: ``CIFAR10``, ``MNIST``, ``Flowers102``, ... as in ``torchvision.datasets``.
        root: where its files lie.
        preprocess: colour, size and normalization.
        part: ``train`` or ``test``, by the dataset's own ``train`` or ``split``; a dataset without
            either is divided by `split_by_name`.
        download: fetch the files that are not there.
        how, memory_mib: see `PictureSet`.
        options: other arguments of the dataset.

    Raises:
        UsageError: torchvision has no such dataset, or it refuses the arguments.
        BadData: its files are absent or broken.
        MissingDependency: torchvision is not installed.
    """
    kinds = torchvision().datasets
    names = [n for n in kinds.__all__ if isinstance(getattr(kinds, n, None), type)]
    if name not in names:
        raise UsageError(unknown("torchvision dataset", name, names))
    kind = getattr(kinds, name)
    known = inspect.signature(kind).parameters
    arguments: dict[str, Any] = dict(options or {})
    if "root" in known:
        arguments["root"] = str(Path(root).expanduser())
    if "download" in known:
        arguments["download"] = download
    own = [n for n in ("train", "split") if n in known and n not in arguments]
    if own:
        arguments[own[0]] = part == "train" if own[0] == "train" else part
    try:
        dataset = kind(**arguments)
    except TypeError as error:
        raise UsageError(f"torchvision dataset {name}: {error}") from error
    except EdgekitError:
        raise
    except Exception as error:
        hint = "" if download or "download" not in known else "download=True fetches it"
        raise BadData(f"torchvision dataset {name}: {error}", hint=hint) from error
    samples: SampleSet = _Dataset(dataset, preprocess, f"torchvision {name}", range(len(dataset)))
    if not own and not {"train", "split"} & set(arguments):
        samples = split_by_name(samples, part)
    return PictureSet(samples, preprocess, how=how, memory_mib=memory_mib)


def _labels(samples: Samples) -> torch.Tensor | None:
    found = [samples.label(i) for i in range(len(samples))]
    known = [label for label in found if label is not None]
    if not known:
        return None
    if len(known) < len(found):
        raise BadData(f"{samples.source}: sample {found.index(None)} has no class, others have")
    return torch.tensor(known, dtype=torch.int64)
