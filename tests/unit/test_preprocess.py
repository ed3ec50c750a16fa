"""Preprocessing against the libraries whose results it has to reproduce."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import BadData, MissingDependency
from edgekit.runtime import decode as decode_module
from edgekit.runtime.preprocess import (
    ImagePreprocess,
    TextPreprocess,
    decode,
    preprocess_from_json,
)
from edgekit.runtime.resample import FILTERS, resize_float, resize_u8

PIL = pytest.importorskip("PIL")
from PIL import Image  # noqa: E402

PILLOW_MAJOR = int(PIL.__version__.split(".")[0])
SIZES = [
    ((32, 32), (224, 224)),
    ((97, 61), (31, 29)),
    ((61, 97), (64, 97)),
    ((50, 80), (50, 13)),
    ((1, 1), (5, 7)),
    ((3, 200), (9, 2)),
    ((76, 76), (57, 57)),
    ((40, 30), (40, 30)),
]
# Pillow 13 filters the height first for these.
TALL = [((96, 20), (24, 18)), ((54, 6), (1, 65)), ((120, 64), (32, 64))]


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    """Noise in the left half, smooth ramps in the right."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = ((rows * 3 + columns * 5) % 256).astype(np.uint8)
    pixels[:, width // 2 :] = ramp[:, width // 2 :, None]
    return pixels


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("algorithm", FILTERS)
@pytest.mark.parametrize(("old", "new"), SIZES + (TALL if PILLOW_MAJOR >= 13 else []))
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_u8_equals_pillow_bit_for_bit(
    algorithm: str, old: tuple[int, int], new: tuple[int, int], channels: int
) -> None:
    pixels = picture(*old, channels)
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    theirs = np.asarray(image.resize(new[::-1], getattr(Image.Resampling, algorithm.upper())))
    ours = resize_u8(pixels, new, algorithm)
    np.testing.assert_array_equal(ours, theirs.reshape(*new, channels))


@pytest.mark.parametrize("algorithm", FILTERS)
def test_resize_u8_equals_pillow_over_random_sizes(algorithm: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        h, w, new_h, new_w = (int(n) for n in rng.integers(1, 70, 4))
        if PILLOW_MAJOR < 13 and h - new_h > 2 * (w - new_w):
            continue
        pixels = rng.integers(0, 2, (h, w, 1), dtype=np.uint8) * 255
        resampling = getattr(Image.Resampling, algorithm.upper())
        theirs = np.asarray(Image.fromarray(pixels[:, :, 0]).resize((new_w, new_h), resampling))
        ours = resize_u8(pixels, (new_h, new_w), algorithm)[:, :, 0]
        np.testing.assert_array_equal(ours, theirs, err_msg=f"{h}x{w} -> {new_h}x{new_w}")


@pytest.mark.parametrize("algorithm", FILTERS)
@pytest.mark.parametrize(("old", "new"), SIZES + TALL)
def test_resize_float_equals_torch_interpolate(
    algorithm: str, old: tuple[int, int], new: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch")
    pixels = picture(*old)
    tensor = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    mode = "area" if algorithm == "box" else algorithm
    corners = {"align_corners": False} if algorithm in ("bilinear", "bicubic") else {}
    theirs = torch.nn.functional.interpolate(tensor, size=new, mode=mode, **corners)
    ours = resize_float(pixels, new, algorithm)
    assert ours.dtype == np.float32
    # Of 255; torch computes the sampling positions in float32.
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).numpy(), atol=5e-3)


@pytest.mark.parametrize("resize", [resize_u8, resize_float])
@pytest.mark.parametrize("algorithm", FILTERS)
def test_a_window_is_that_part_of_the_whole(resize: Any, algorithm: str) -> None:
    pixels = picture(90, 41)
    for size in ((60, 50), (20, 40)):
        whole = resize(pixels, size, algorithm)
        np.testing.assert_array_equal(
            resize(pixels, size, algorithm, (7, 3, 10, 30)), whole[7:17, 3:33]
        )


def test_equals_torchvision_imagenet_transforms() -> None:
    torch = pytest.importorskip("torch")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = ImagePreprocess(
        224, 224, resize_mode="shorter-side", resize_size=256, mean=mean, std=std
    )
    for height, width in ((333, 500), (500, 333), (257, 256), (64, 91)):
        pixels = picture(height, width)
        # Resize(256), CenterCrop(224), ToTensor, Normalize, as torchvision defines them.
        short = min(height, width)
        size = (int(256 * height / short), int(256 * width / short))
        image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
        top, left = (round((n - 224) / 2.0) for n in size)
        cropped = np.asarray(image.crop((left, top, left + 224, top + 224)))
        tensor = torch.from_numpy(cropped.copy()).permute(2, 0, 1).float() / 255
        tensor = (tensor - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        np.testing.assert_allclose(ours.apply(pixels), tensor[None].numpy(), atol=1e-6, rtol=1e-6)


def test_normalization_is_rounded_once() -> None:
    step = ImagePreprocess(1, 256, channels=1, color="GRAY", resize="none", mean=(0.3,), std=(0.7,))
    got = step.apply(np.arange(256, dtype=np.uint8)[None, :])
    want = ((np.arange(256) * (1 / 255) - 0.3) / 0.7).astype(np.float32)
    np.testing.assert_array_equal(got[0, 0, 0], want)


def test_colour_order_layout_and_contiguity() -> None:
    pixels = picture(6, 5)
    plain = dict(height=6, width=5, resize="none", scale=1.0)
    rgb = ImagePreprocess(**plain).apply(pixels)
    np.testing.assert_array_equal(rgb[0].transpose(1, 2, 0), pixels)
    bgr = ImagePreprocess(**plain, color="BGR", mean=(1.0, 2.0, 3.0)).apply(pixels)
    np.testing.assert_array_equal(
        bgr[0].transpose(1, 2, 0), pixels[:, :, ::-1].astype(np.float32) - [1, 2, 3]
    )
    nhwc = ImagePreprocess(**plain, layout="NHWC").apply(pixels)
    np.testing.assert_array_equal(nhwc[0], pixels)
    for result in (rgb, bgr, nhwc):
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
    assert rgb.shape == (1, 3, 6, 5) == ImagePreprocess(**plain).shape
    assert nhwc.shape == (1, 6, 5, 3) == ImagePreprocess(**plain, layout="NHWC").shape


def test_grey_and_alpha() -> None:
    pixels = picture(9, 7)
    grey = ImagePreprocess(9, 7, channels=1, color="GRAY", resize="none", scale=1.0)
    luma = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(grey.apply(pixels)[0, 0], luma)
    np.testing.assert_array_equal(grey.apply(luma)[0, 0], luma)
    colour = ImagePreprocess(9, 7, resize="none", scale=1.0)
    np.testing.assert_array_equal(colour.apply(luma)[0], np.stack([luma] * 3))
    opaque = np.concatenate([pixels, picture(9, 7, 1, seed=1)], axis=2)
    np.testing.assert_array_equal(colour.apply(opaque), colour.apply(pixels))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_refuses_what_is_no_picture(pixels: Any) -> None:
    with pytest.raises(BadData, match="picture is"):
        ImagePreprocess(4, 4).apply(pixels)


def test_resize_none_takes_one_size_only() -> None:
    with pytest.raises(BadData, match=r"5 x 4 .*takes 4 x 4"):
        ImagePreprocess(4, 4, resize="none").apply(np.zeros((5, 4, 3), np.uint8))


def test_a_sliver_is_refused_before_it_is_blown_up() -> None:
    step = ImagePreprocess(224, 224, resize_mode="shorter-side")
    with pytest.raises(BadData, match="too narrow"):
        step.apply(np.zeros((1, 5000, 3), np.uint8))


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        (dict(height=0), "height"),
        (dict(height=True), "height"),
        (dict(width=10**9), "width"),
        (dict(channels=4), "channels"),
        (dict(channels=1), "color"),
        (dict(color="GRAY"), "color"),
        (dict(resize="lanczos"), "resize"),
        (dict(antialias=1), "antialias"),
        (dict(resize_mode="pad"), "resize_mode"),
        (dict(resize_size=9), "resize_size"),
        (dict(resize_mode="shorter-side", resize_size=7), "resize_size"),
        (dict(resize_mode="shorter-side", resize="none"), "shorter-side"),
        (dict(scale=float("nan")), "scale"),
        (dict(scale=0.0), "scale"),
        (dict(mean=(1.0, 2.0)), "mean"),
        (dict(std=(1.0, 0.0, 1.0)), "std"),
        (dict(std=(1.0, "2", 1.0)), "std"),
        (dict(layout="CHWN"), "layout"),
    ],
)
def test_image_fields_are_checked(fields: dict[str, Any], culprit: str) -> None:
    with pytest.raises(BadData, match=culprit):
        ImagePreprocess(**{"height": 8, "width": 8, **fields})


def test_json_round_trip_keeps_every_bit() -> None:
    image = ImagePreprocess(
        7, 9, color="BGR", resize="bicubic", antialias=False, resize_mode="shorter-side",
        resize_size=11, scale=1 / 127.5, mean=(0.1, 0.2, 1 / 3), std=(0.3, 0.7, 0.9),
        layout="NHWC", exif=False,
    )  # fmt: skip
    text = TextPreprocess(
        vocab=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "ä"),
        lower_case=False,
        max_length=9,
        dtype="int32",
    )
    for step in (image, text):
        back = preprocess_from_json(json.loads(json.dumps(step.to_json())))
        assert back == step
        assert hash(back) == hash(step)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "audio"},
        {"kind": "image"},
        {**ImagePreprocess(4, 4).to_json(), "sharpen": 1},
        {**ImagePreprocess(4, 4).to_json(), "mean": 0.5},
        {**ImagePreprocess(4, 4).to_json(), "height": "4"},
        {"kind": "text", "vocab": ["a"]},
    ],
)
def test_json_that_is_not_ours_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(BadData):
        preprocess_from_json(data)


def test_decode_formats_and_modes(tmp_path: Path) -> None:
    pixels = picture(12, 17)
    image = Image.fromarray(pixels)
    for kind in ("PNG", "BMP", "PPM", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(image, kind)), pixels)
    path = tmp_path / "grün.png"
    path.write_bytes(encoded(image))
    np.testing.assert_array_equal(decode(path), pixels)
    np.testing.assert_array_equal(decode(str(path)), pixels)
    jpeg = encoded(image, "JPEG")
    np.testing.assert_array_equal(decode(jpeg), np.asarray(Image.open(io.BytesIO(jpeg))))
    luma = image.convert("L")
    np.testing.assert_array_equal(decode(encoded(luma))[:, :, 0], np.asarray(luma))
    transparent = image.convert("RGBA")
    transparent.putalpha(luma)
    np.testing.assert_array_equal(decode(encoded(transparent)), pixels)
    bilevel = luma.convert("1")
    np.testing.assert_array_equal(decode(encoded(bilevel))[:, :, 0], np.asarray(bilevel) * 255)


def test_decode_palette_with_transparency_and_sixteen_bits() -> None:
    image = Image.fromarray(picture(12, 17)).quantize(8)
    content = encoded(image, transparency=bytes([0, 128, 255, 255, 255, 255, 255, 255]))
    np.testing.assert_array_equal(decode(content), np.asarray(image.convert("RGB")))
    deep = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 77
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(deep)))[:, :, 0], np.arange(256).reshape(16, 16)
    )


def test_decode_turns_pictures_upright() -> None:
    pixels = picture(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held so that the picture has to turn a quarter clockwise.
    content = encoded(Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(decode(content, exif=True), np.rot90(pixels, k=-1))
    np.testing.assert_array_equal(decode(content, exif=False), pixels)
    np.testing.assert_array_equal(ImagePreprocess(4, 4, exif=False).decode(content), pixels)


def test_decode_npy_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for pixels in (picture(5, 4), picture(5, 4, 1), np.asfortranarray(picture(5, 4))):
        np.save(path, pixels)
        np.testing.assert_array_equal(decode(path), pixels)
    np.save(path, picture(5, 4)[:, :, 0])
    assert decode(path).shape == (5, 4, 1)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def _npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "unknown format"),
        (b"not a picture", "unknown format"),
        (encoded(Image.new("RGB", (60, 60)), "JPEG")[:400], "no readable picture"),
        (encoded(Image.fromarray(picture(50, 50)))[:900], "no readable picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "unknown format"),
        (_png_header(10_000, 9_000), "10000 x 9000 pixels"),
        (_png_header(100_000, 100_000), "DecompressionBomb"),
        (_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (99999, 99999, 3)}"), "holds 0 b"),
        (_npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"), "pickled"),
        (_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1)}", bytes(4)), "float32"),
        (_npy("__import__('os')"), "no readable .npy"),
        (b"\x93NUMPY\x09\x00" + bytes(20), "npy"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "F pixels"),
    ],
)
def test_decode_refuses_broken_and_hostile_files(content: bytes, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        decode(content)


def test_decode_names_an_absent_or_irregular_file(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"nowhere\.png"):
        decode(tmp_path / "nowhere.png")
    with pytest.raises(BadData):
        decode(tmp_path)
    with pytest.raises(BadData, match="/dev/zero"):
        decode("/dev/zero")


def test_decode_limits_the_file_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(encoded(Image.fromarray(picture(50, 50))))
    monkeypatch.setattr(decode_module, "MAX_FILE_BYTES", 100)
    with pytest.raises(BadData, match=r"big\.png is larger"):
        decode(path)


def test_without_pillow_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("RGB", (4, 4)))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependency, match="Pillow") as caught:
        decode(content)
    assert "pip install pillow" in caught.value.hint


def test_the_device_side_needs_numpy_alone() -> None:
    code = (
        "import sys, numpy as np\n"
        "from edgekit.runtime.preprocess import ImagePreprocess, TextPreprocess\n"
        "ImagePreprocess(8, 8).apply(np.zeros((9, 9, 3), np.uint8))\n"
        "TextPreprocess(vocab=('[PAD]', '[UNK]', '[CLS]', '[SEP]')).apply('hi')\n"
        "print([m for m in ('torch', 'PIL', 'transformers', 'pydantic') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
