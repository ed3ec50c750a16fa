"""Picture files to uint8 pixels, with limits on what a hostile or broken file may cost.

Pillow does the decoding and is imported on first use, so that a device that feeds camera frames
does without it. ``.npy`` pictures need numpy alone.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData, MissingDependency
from edgekit.runtime._files import read_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_FILE_BYTES", "MAX_PIXELS", "PICTURE_SUFFIXES", "decode", "parse_npy"]

MAX_FILE_BYTES: Final = 256 * 2**20
"""The largest picture file that is read, in bytes."""

MAX_PIXELS: Final = 89_478_485
"""The largest picture that is decoded, in pixels: Pillow's own limit, a quarter GiB of RGB."""

PICTURE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".npy"}
)
"""File name endings that data sets are searched for, in lower case."""

# Only these of Pillow's readers are tried: others start programs (EPS) or fetch more files.
_FORMATS: Final = ("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

_NPY_MAGIC: Final = b"\x93NUMPY"


def decode(source: str | Path | bytes, *, exif: bool = True) -> npt.NDArray[np.uint8]:
    """Reads one picture.

    Alpha is dropped, palettes are looked up, 16-bit grey keeps its upper 8 bits, and of an
    animation the first frame counts.

    Args:
        source: a path, or the file's content.
        exif: turn the picture upright as its EXIF orientation says.

    Returns:
        uint8 ``[H, W, 3]`` in RGB order, or ``[H, W, 1]`` for a grey picture.

    Raises:
        BadData: absent, unreadable, truncated, of an unknown format, or larger than `MAX_PIXELS`.
        MissingDependency: Pillow is not installed and the picture is no ``.npy``.
    """
    if isinstance(source, bytes):
        name, content = "picture", source
    else:
        name, content = str(source), read_file(Path(source), MAX_FILE_BYTES, "picture")
    if len(content) > MAX_FILE_BYTES:
        raise BadData(f"{name} is larger than {MAX_FILE_BYTES} bytes")
    if content.startswith(_NPY_MAGIC):
        return _from_npy(content, name)
    return _from_pillow(content, name, exif)


def parse_npy(content: bytes, name: str) -> npt.NDArray[Any]:
    """The array in an ``.npy`` file, refused before anything is allocated where the sizes disagree.

    Args:
        content: the file's bytes.
        name: what messages call it.

    Raises:
        BadData: pickled objects, a broken header, or more or fewer values than the header says.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise BadData(f"{name} is .npy version {version[0]}.{version[1]}; 1.0 and 2.0 are read")
        shape, fortran, dtype = read_header(file)
    except ValueError as error:
        raise BadData(f"{name} is no readable .npy file: {error}") from error
    if dtype.hasobject:
        raise BadData(
            f"{name} holds pickled Python objects, which can run code and are not read",
            hint="save numbers only: numpy.save of a float32, integer or uint8 array",
        )
    count = int(np.prod(shape, dtype=object)) if shape else 1
    body = memoryview(content)[file.tell() :]
    if min((0, *shape)) < 0 or count * dtype.itemsize != len(body):
        raise BadData(f"{name} says {shape} of {dtype} and holds {len(body)} bytes")
    flat = np.frombuffer(body, dtype=dtype, count=count)
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _from_npy(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    array = parse_npy(content, name)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size:
        raise BadData(
            f"{name} is {array.dtype} of shape {array.shape}; a picture is uint8 [H, W], [H, W, 1] "
            "or [H, W, 3]"
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise _too_large(name, array.shape[1], array.shape[0])
    return array


def _from_pillow(content: bytes, name: str, exif: bool) -> npt.NDArray[np.uint8]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingDependency(
            f"reading {name} needs Pillow", hint="install it: pip install pillow"
        ) from error
    Image.init()
    formats: list[str] = [known for known in _FORMATS if known in Image.OPEN]
    try:
        with Image.open(io.BytesIO(content), formats=formats) as picture:
            # Known from the header alone, before any pixel is unpacked.
            if picture.width * picture.height > MAX_PIXELS:
                raise _too_large(name, picture.width, picture.height)
            upright = ImageOps.exif_transpose(picture) if exif else picture
            return _pixels(upright, name)
    except BadData:
        raise
    except Exception as error:
        # Decoders fail on broken files with almost anything: OSError, SyntaxError, struct.error.
        raise BadData(
            f"{name} is no readable picture: {_reason(error)}",
            hint=f"readable formats: {', '.join(formats)}, .npy",
        ) from error


def _pixels(picture: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    if picture.mode.startswith("I;16"):
        high = np.asarray(picture).astype(np.uint16) >> 8
        return high.astype(np.uint8)[:, :, None]
    if picture.mode in ("I", "F"):
        raise BadData(
            f"{name} has {picture.mode} pixels (32 bits); 8 or 16 bits per channel are read"
        )
    if picture.mode == "P" and "transparency" in picture.info:
        # Straight to RGB would warn about transparency that cannot be kept; it is dropped anyway.
        picture = picture.convert("RGBA")
    mode = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
    pixels = np.asarray(picture.convert(mode), dtype=np.uint8)
    return pixels[:, :, None] if mode == "L" else pixels


def _too_large(name: str, width: int, height: int) -> BadData:
    return BadData(
        f"{name} is {width} x {height} pixels; at most {MAX_PIXELS} are decoded",
        hint="make the picture smaller before it goes into the data set",
    )


def _reason(error: Exception) -> str:
    # Pillow names the in-memory file by its address, which would differ from run to run.
    if type(error).__name__ == "UnidentifiedImageError":
        return "unknown format"
    return f"{type(error).__name__}: {error}"
