"""The sides of an export: artifacts that take the model's tensors, and those that take pictures.

Each side has a model, plans, samples and reference answers of its own. Those of a side with a
picture border are made of the model's own by putting the border in front, so what converts, proves
and measures an artifact needs to know of one side only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from edgekit.artifact import Store, fingerprint
from edgekit.data import Samples, picture_of
from edgekit.errors import BadData, UnsupportedError
from edgekit.export.feeds import Feeds
from edgekit.export.planning import Planned
from edgekit.export.reference import Referenced
from edgekit.keys import code, versions
from edgekit.model import Model
from edgekit.names import BORDERS, FLOAT_IO, NHWC_IO, PICTURE_IO
from edgekit.runtime.border import PictureBorder
from edgekit.runtime.preprocess import ImagePreprocess, Preprocess
from edgekit.targets import find

__all__ = [
    "Arranged",
    "Given",
    "Pixels",
    "Side",
    "bordered",
    "bordered_model",
    "bordered_samples",
    "check_io",
    "given_for",
    "uneven",
]

_WHY: Final = {
    PICTURE_IO: "its converter has no picture border yet",
    NHWC_IO: "a float picture with its channels last is what LiteRT's apps make; apps of its "
    "runtime make the model's own tensor or, where it takes them, pixels",
}
"""Why a target makes no artifacts of an io, where it does not say so itself."""


@dataclass(frozen=True)
class Side:
    """What artifacts of one io are made of and held against.

    Attributes:
        io: of the artifacts.
        model: takes what the artifacts take.
        planned: its plans.
        answers: those of every side, by io, as soon as they are known.
        feeds: what artifacts are run on.
    """

    io: str
    model: Model
    planned: Planned
    answers: Future[Mapping[str, Referenced]]
    feeds: Feeds

    @property
    def reference(self) -> Referenced:
        """The model's answers and its plans'; waits for them."""
        return self.answers.result()[self.io]

    def border(self, name: str) -> PictureBorder | None:
        """The picture border that belongs to a plan; None on the side of the model's tensors."""
        file = self.planned.path / f"border-{name}.json"
        if not file.exists():
            return None
        return PictureBorder.from_json(json.loads(file.read_text()), self.io)


@dataclass(frozen=True)
class Given:
    """What artifacts of one io are made for, whatever their plans.

    Attributes:
        model: takes what they take.
        samples: as the model takes them; None where there are none.
        feeds: what artifacts are run on.
    """

    model: Model
    samples: Samples | None
    feeds: Feeds


class Pixels:
    """Samples as an artifact of io ``uint8`` takes them, made of the pictures behind others."""

    def __init__(self, samples: Samples, border: PictureBorder, preprocess: ImagePreprocess):
        self._samples, self._border, self._preprocess = samples, border, preprocess
        self.source, self.digest = samples.source, samples.digest

    def __len__(self) -> int:
        return len(self._samples)

    def feed(self, i: int) -> dict[str, Any]:
        """The pixels of picture ``i``, and the other inputs as they are.

        Raises:
            BadData: no picture is known for it, or it is not what the sample was made of.
        """
        picture = picture_of(self._samples, i)
        if picture is None:
            raise _no_pictures(self.source)
        feed = self._samples.feed(i)
        if not np.array_equal(self._preprocess.apply(picture), feed[self._border.input]):
            raise BadData(
                f"{self.source}: the picture of sample {i} does not give its tensor by the model's "
                "preprocessing"
            )
        return {**feed, self._border.input: self._preprocess.pixels(picture)}

    def label(self, i: int) -> int | None:
        """See `edgekit.data.Samples.label`."""
        return self._samples.label(i)


class Arranged:
    """Samples as an artifact of io ``float32-nhwc`` takes them: the model's tensors, rearranged."""

    def __init__(self, samples: Samples, border: PictureBorder):
        self._samples, self._border = samples, border
        self.source, self.digest = samples.source, samples.digest

    def __len__(self) -> int:
        return len(self._samples)

    def feed(self, i: int) -> dict[str, Any]:
        """The picture of sample ``i`` with its channels last, and the other inputs as they are."""
        feed = self._samples.feed(i)
        return {**feed, self._border.input: self._border.arrange(feed[self._border.input])}

    def label(self, i: int) -> int | None:
        """See `edgekit.data.Samples.label`."""
        return self._samples.label(i)


def _no_pictures(source: str) -> BadData:
    return BadData(
        f"io {PICTURE_IO!r} takes pictures, and {source} holds the model's tensors alone",
        hint="give a folder or zip of pictures, or a .npz with uint8 pictures [n, H, W, C]",
    )


def check_io(model: Model, ios: Sequence[str], targets: Sequence[str], engine: str | None) -> None:
    """Refuses, before anything is made, artifacts that could not take what their io says.

    Raises:
        UnsupportedError: the model has no picture input, a target has no such border, or an engine
            is to make the artifacts.
    """
    for io in (io for io in BORDERS if io in ios):
        PictureBorder.of(model.signature, model.preprocess, io)
        if engine is not None:
            raise UnsupportedError(
                f"engine {engine!r} makes no artifacts of io {io!r}: they hold edgekit's plan",
                hint=f"leave --engine or --io {io} out",
            )
        for name in targets:
            target = find(name)
            if io not in getattr(target, "ios", (FLOAT_IO,)):
                why = getattr(target, "io_reason", _WHY[io])
                raise UnsupportedError(
                    f"target {name!r} makes no artifacts of io {io!r}: {why}",
                    hint=f"leave it out with --target, or export it with --io {FLOAT_IO}",
                )


def uneven(preprocess: Preprocess | None) -> bool:
    """Whether channels are normalized by different numbers, which some readers of TFLite Metadata
    (MediaPipe Tasks) don't do."""
    if not isinstance(preprocess, ImagePreprocess):
        return False
    return len({*zip(preprocess.mean, preprocess.std, strict=True)}) > 1


def bordered_samples(model: Model, samples: Samples | None, io: str) -> Samples | None:
    """Samples as artifacts with a picture border take them; None where there are no samples.

    Raises:
        BadData: io ``uint8`` needs pictures, and these are none.
    """
    if samples is None:
        return None
    border = PictureBorder.of(model.signature, model.preprocess, io)
    if io != PICTURE_IO:
        return Arranged(samples, border)
    if picture_of(samples, 0) is None:
        raise _no_pictures(samples.source)
    return Pixels(samples, border, cast(ImagePreprocess, model.preprocess))


def bordered_model(model: Model, io: str) -> Model:
    """The model with its picture border in front, as a model of its own."""
    import torch

    border = PictureBorder.of(model.signature, model.preprocess, io)
    names = [s.name for s in model.signature.inputs]
    position = names.index(border.input)

    class Bordered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.module

        def forward(self, *inputs: torch.Tensor) -> Any:
            tensor = torch.from_numpy(border.apply(inputs[position].numpy()))
            return self.inner(*inputs[:position], tensor, *inputs[position + 1 :])

    return dataclasses.replace(
        model,
        module=Bordered().eval(),
        signature=border.signature(model.signature),
        preprocess=None,
    )


def given_for(io: str, model: Model, samples: Samples | None, folder: Path) -> Given:
    """What artifacts with a picture border are made for.

    Args:
        io: of the artifacts, out of `edgekit.names.BORDERS`.
        model: the model.
        samples: those that the other artifacts are proven on.
        folder: where files are written.

    Raises:
        BadData: io ``uint8`` needs pictures, and these are none.
    """
    taking, taken = bordered_model(model, io), bordered_samples(model, samples, io)
    return Given(taking, taken, Feeds(taking, taken, folder / f"{io}.npz"))


def bordered(
    model: Model, planned: Planned, names: Sequence[str], store: Store, io: str
) -> Planned:
    """The programs and plans with the picture border in front, under the names that they had.

    Args:
        model: the model.
        planned: its programs and plans.
        names: of the plans that are wanted.
        store: where the result is kept.
        io: of the artifacts, out of `edgekit.names.BORDERS`.

    Returns:
        An entry with ``border-<name>.json`` beside each plan.
    """
    border = PictureBorder.of(model.signature, model.preprocess, io)
    table = cast(ImagePreprocess, model.preprocess).table
    position = [s.name for s in model.signature.inputs].index(border.input)
    key = fingerprint(
        stage="border",
        plan=planned.key,
        io=io,
        border=border.to_json(),
        names=sorted(names),
        code=code("compress", "runtime/border.py", "runtime/preprocess.py"),
        versions=versions("torch"),
    )

    def fill(folder: Path) -> None:
        import torch

        from edgekit.compress.graph import save_program
        from edgekit.compress.picture import fitted, with_border
        from edgekit.compress.plan import QuantPlan

        for name in dict.fromkeys(["fp32", *names]):
            program = torch.export.load(planned.program(name))
            plan = QuantPlan.from_json(json.loads(planned.plan(name).read_text()))
            mine = fitted(border, table, program, plan, position)
            made, moved = with_border(program, plan, mine, position)
            save_program(made, folder / f"program-{name}.pt2")
            documents: Mapping[str, Any] = {"plan": moved.to_json(), "border": mine.to_json()}
            for kind, document in documents.items():
                (folder / f"{kind}-{name}.json").write_text(json.dumps(document))

    return Planned(key, store.make(key, fill, what="border"))
