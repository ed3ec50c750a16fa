"""Folders and zips of pictures by class, read one picture at a time; see `edgekit.data.files`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgekit.data.files import FileSamples, Kind, by_folders, open_files, the_input
from edgekit.data.samples import Feeds, Role
from edgekit.errors import BadData
from edgekit.runtime.decode import MAX_FILE_BYTES, PICTURE_SUFFIXES
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.signature import Signature

__all__ = ["PICTURES", "PictureSamples", "read_pictures"]

PICTURES: Final = Kind("picture", "pictures", PICTURE_SUFFIXES, MAX_FILE_BYTES)


class PictureSamples(FileSamples[ImagePreprocess]):
    """Pictures with or without a class, decoded and preprocessed when they are asked for."""

    def feed(self, i: int) -> Feeds:
        """Decodes picture ``i``; see `Samples.feed`.

        Raises:
            BadData: the picture is unreadable; names it.
            MissingDependency: Pillow is not installed.
        """
        with self.naming(i):
            return {self._input: self._preprocess.apply(self._decoded(i))}

    def picture(self, i: int) -> npt.NDArray[np.uint8]:
        """See `edgekit.data.samples.picture_of`; raises as `feed`."""
        with self.naming(i):
            return self._decoded(i)

    def _decoded(self, i: int) -> npt.NDArray[np.uint8]:
        return self._preprocess.decode(self.content(i))


def read_pictures(
    path: Path, signature: Signature, preprocess: ImagePreprocess | None, role: Role
) -> tuple[PictureSamples, bool]:
    """The pictures of a folder or zip that may play ``role``.

    Returns:
        The samples, and whether the source's own split folders chose them.

    Raises:
        BadData: no pictures, a class folder that is no class of the model, no split for ``role``,
            or a preprocessing that does not make what the model takes.
    """
    if preprocess is None:
        raise BadData(
            f"{path} holds pictures, and the model has no preprocessing for them",
            hint="give the Model preprocess=ImagePreprocess(...), or the data as a .npz of inputs",
        )
    name = the_input(signature, preprocess.shape, PICTURES)
    files = open_files(path, PICTURES)
    found = by_folders(path, files, PICTURES, signature, role)
    made = PictureSamples(str(path), files, found.items, name, preprocess, found.classes)
    return made, found.own
