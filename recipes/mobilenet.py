"""Trains a small MobileNetV2 and exports it, in int8, for two phones, a Raspberry Pi and a server.

    python recipes/mobilenet.py --out out/demo

The pictures are scikit-learn's handwritten digits: 1797 of 8 x 8 pixels, which come with that
package. The last 360 are the test set and nothing else. Training takes under a minute on two cores;
its weights are kept in edgekit's store, and made again only when this file changes. Then comes one
quantization, a file for each of three runtimes, each run in its runtime, compared with the plan
and with the float model, measured, and packed: `out/demo/bundle` and `out/demo/report.json`.

The same in one command, with the functions of this file:

    edgekit export recipes/mobilenet.py:model --device pixel-8 -o out/bundle \\
        --calib recipes/mobilenet.py:calibration --eval recipes/mobilenet.py:evaluation

References: Sandler et al., "MobileNetV2", 2018 (arXiv:1801.04381); Alpaydin and Kaynak, "Optical
Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from edgekit import ExportRequest, ImagePreprocess, Model, Store, export_bundle

# `import torchvision` fails beside some builds of torch; this one does not.
from edgekit._torchvision import torchvision
from edgekit.artifact import fingerprint, sha256_of
from edgekit.cli.export import Terminal
from edgekit.data import ArraySamples
from edgekit.errors import EdgekitError
from edgekit.schemas import validate

DEVICES = ("pixel-8", "iphone-15-pro", "raspberry-pi-5", "x86-server")
LABELS = tuple("0123456789")
TEST = 360
CALIBRATION = 256

WIDTH = 0.5
# MobileNetV2's table of expansion, channels, repeats and stride, cut to what small pictures need:
# eleven blocks in place of seventeen, and 4 x 4 pixels left at the end of 32 x 32.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 1),
    (6, 64, 3, 2),
    (6, 96, 2, 1),
)
EPOCHS = 16
BATCH = 64
LEARNING_RATE = 6e-3

# Mean and standard deviation of the training pictures, scaled to 0..1.
PREPROCESS = ImagePreprocess(
    height=32, width=32, resize="bilinear", mean=(0.3054,) * 3, std=(0.3753,) * 3
)


# -- data -----------------------------------------------------------------------------------------


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """All digits: pictures uint8 [1797, 8, 8], grey, and classes [1797]."""
    digits = load_digits()
    # They are stored as counts of 0..16.
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def training() -> tuple[np.ndarray, np.ndarray]:
    """Pictures and classes to train on: all but the last 360."""
    x, y = pictures()
    return x[:-TEST], y[:-TEST]


def calibration() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pictures and classes that set the int8 ranges: the first 256 of the training set."""
    x, y = training()
    return {"x": x[:CALIBRATION]}, y[:CALIBRATION]


def evaluation() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Pictures and classes that accuracy is measured on: the last 360."""
    x, y = pictures()
    return {"x": x[-TEST:]}, y[-TEST:]


# -- model ----------------------------------------------------------------------------------------


def network() -> torch.nn.Module:
    """An untrained MobileNetV2 for pictures [N, 3, 32, 32] and ten classes."""
    build = torchvision().models.MobileNetV2
    module: torch.nn.Module = build(
        num_classes=len(LABELS),
        width_mult=WIDTH,
        inverted_residual_setting=[list(row) for row in BLOCKS],
    )
    return module


def augment(x: torch.Tensor) -> torch.Tensor:
    """Each picture of [N, C, H, W] turned, sheared, scaled and moved a little, as hands do."""

    def spread(amount: float, *shape: int) -> torch.Tensor:
        return (torch.rand(shape) * 2 - 1) * amount

    n = len(x)
    angle, shear, scale = spread(0.26, n), spread(0.2, n), 1 + spread(0.12, n)
    rows = [
        torch.stack((scale * angle.cos(), shear - angle.sin()), 1),
        torch.stack((angle.sin(), scale * angle.cos()), 1),
    ]
    matrices = torch.cat((torch.stack(rows, 1), spread(0.15, n, 2, 1)), 2)
    grid = torch.nn.functional.affine_grid(matrices, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Holds torch to one thread: layers this small are no faster with more, and far slower where
    another program wants the same cores. It also gives the same weights on any number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(epochs: int) -> dict[str, torch.Tensor]:
    """The state of a network trained from random weights; the same every time on one machine.

    AdamW with one cycle of the learning rate (Smith and Topin, 2017, arXiv:1708.07120) and label
    smoothing.
    """
    torch.manual_seed(0)
    images, classes = training()
    x = torch.from_numpy(np.concatenate([PREPROCESS.apply(image) for image in images]))
    y = torch.from_numpy(classes)
    # Channels last is what torch's CPU kernels for depthwise convolutions are fastest with.
    module = network().train().to(memory_format=torch.channels_last)
    steps = len(x) // BATCH
    optimizer = torch.optim.AdamW(module.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * steps
    )
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    with one_thread(), Terminal().progress(f"training for {epochs} epochs", epochs) as advance:
        for _ in range(epochs):
            order = torch.randperm(len(x))[: steps * BATCH]
            for batch in order.split(BATCH):
                inputs = augment(x[batch]).to(memory_format=torch.channels_last)
                loss = loss_of(module(inputs), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            advance(1)
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items()}


def weights(epochs: int = EPOCHS) -> Path:
    """The trained weights, a ``.safetensors`` file out of the store, where they are if need be."""
    key = fingerprint(
        recipe=sha256_of(Path(__file__)),
        epochs=epochs,
        torch=torch.__version__,
        sklearn=sklearn.__version__,
    )
    name = "mobilenet.safetensors"
    entry = Store().make(key, lambda folder: save_file(train(epochs), folder / name), what="train")
    return entry / name


def model(epochs: int = EPOCHS) -> Model:
    """The trained network with its preprocessing and labels."""
    module = network()
    module.load_state_dict(load_file(weights(epochs)))
    return Model.from_module(
        module.eval(),
        {"x": torch.zeros(PREPROCESS.shape)},
        name="digits-mobilenet",
        preprocess=PREPROCESS,
        labels=LABELS,
    )


# -- export ---------------------------------------------------------------------------------------


def export(made: Model, out: Path, *, bench: bool = True) -> tuple[Mapping[str, Any], int]:
    """Exports the model to ``out/bundle`` and writes ``out/report.json``.

    Returns:
        The ``edgekit.export/1`` document, and 0, or 1 if an artifact or a gate failed.
    """
    (calib, _), (held_out, classes) = calibration(), evaluation()
    about = {"signature": made.signature, "preprocess": made.preprocess}
    result = export_bundle(
        made,
        ExportRequest(
            devices=DEVICES,
            calib=ArraySamples(calib, **about, source="digits, training"),
            evaluation=ArraySamples(held_out, classes, **about, source="digits, test"),
            out=out / "bundle",
            max_drop=1.0,
            bench=bench,
            listener=Terminal(),
        ),
    )
    validate(result.document)
    report = json.dumps(result.document, indent=2, sort_keys=True, allow_nan=False)
    (out / "report.json").write_text(report + "\n")
    return result.document, result.exit_code


def table(document: Mapping[str, Any]) -> str:
    """The document's artifacts as lines of text."""

    def figure(value: float | None, form: str, scale: float = 1) -> str:
        return "-" if value is None else format(value * scale, form)

    heads = "artifact,KiB,float,top-1 %,drop,SQNR dB,p50 ms,float,MiB,proof"
    rows = [tuple(heads.split(","))]
    for row in document["artifacts"]:
        parity, latency, twin = row["parity"] or {}, row["latency_ms"] or {}, row["float"] or {}
        rows.append(
            (
                row["id"],
                figure(row["bytes"], ".0f", 1 / 1024),
                figure(twin.get("bytes"), ".0f", 1 / 1024),
                figure(row["value"], ".2f"),
                figure(row["drop_points"], ".2f"),
                figure(parity.get("sqnr_db"), ".1f"),
                figure(latency.get("p50"), ".3f"),
                figure(twin.get("latency_p50_ms"), ".3f"),
                figure(row["peak_memory_mib"], ".0f"),
                row["verification"] if row["status"] == "ok" else f"failed: {row['reason']}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def gates(document: Mapping[str, Any]) -> str:
    """Every gate of the document, a line for each kind."""
    words = {True: "held", False: "FAILED", None: "not judged"}
    kinds: dict[str, list[str]] = {}
    for gate in document["gates"]:
        kinds.setdefault(gate["name"], []).append(f"{gate['artifact']} {words[gate['passed']]}")
    return "\n".join(f"gate {name}: {', '.join(found)}" for name, found in kinds.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; the exit code is the export's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--no-bench", action="store_true", help="do not measure latency and memory")
    options = parser.parse_args(argv)
    try:
        document, code = export(model(options.epochs), options.out, bench=not options.no_bench)
    except EdgekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    reference = document["reference"]
    print(f"float model: {reference['value']:.2f} % top-1 on {reference['n']} test pictures\n")
    print(table(document))
    print(f"\n{gates(document)}")
    print(f"\nbundle: {document['bundle'] or 'not written, see the report'}")
    print(f"report: {options.out / 'report.json'}")
    return code


if __name__ == "__main__":
    # The converters' own remarks say nothing that the verification does not.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sys.exit(main())
