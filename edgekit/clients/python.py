"""Python clients: numpy and the runtime's own wheel, nothing of edgekit."""

from __future__ import annotations

from importlib import resources

from edgekit.clients import _escape as escape
from edgekit.clients._escape import python as text
from edgekit.clients._facts import Facts, Piece
from edgekit.clients._template import fill, load
from edgekit.clients._words import head
from edgekit.names import FLOAT_IO, SCHEMES
from edgekit.runtime.preprocess import AudioPreprocess, ImagePreprocess, TextPreprocess
from edgekit.signature import TensorSpec

__all__ = ["NEEDS", "carries", "files"]

NEEDS = {
    "tflite": "ai-edge-litert",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "executorch": "executorch (its binding takes torch's tensors, so torch too)",
    "torch-mobile": "torch",
    "coreml": "coremltools, on macOS",
}
"""Targets that have a Python client, and what it needs beside numpy."""

_IMPORTS = {
    "tflite": ["from ai_edge_litert.interpreter import Interpreter"],
    "openvino": ["import openvino"],
    "onnxruntime": ["import onnxruntime"],
    "executorch": [
        "import torch",
        "from executorch.extension.pybindings import portable_lib",
        "from executorch.runtime import Runtime",
    ],
    "torch-mobile": ["import torch", "from torch.jit.mobile import _load_for_lite_interpreter"],
    "coreml": ["import coremltools"],
}

_EXAMPLES = {"a picture": "picture.jpg", "a text": "'some text'", "a WAV file": "sound.wav"}


def carries(piece: Piece) -> bool:
    """Whether there is a Python client for an artifact: a wheel's runtime loads it."""
    return piece.target in NEEDS and piece.unusual is None


def files(facts: Facts) -> dict[str, str]:
    """The Python clients of a bundle: contents by file name."""
    pieces = [piece for piece in facts.pieces if carries(piece)]
    if not pieces:
        return {}
    found = {"client.py": _shared(facts)}
    if facts.labels:
        rows = "".join(f"\n    {text(label)}," for label in facts.labels)
        found["labels.py"] = fill(
            load("python/labels.py"), {"HEAD": head(facts), "LABELS": f"{rows}\n"}, what="labels"
        )
    if facts.picture is not None:
        found["preprocess.py"] = _picture(facts, facts.picture)
        found["resample.py"] = _own("resample.py")
    if facts.text is not None:
        found["tokenizer.py"] = _tokenizer(facts, facts.text)
        found["wordpiece.py"] = _own("wordpiece.py")
    if facts.sound is not None:
        found["features.py"] = _features(facts, facts.sound)
        found |= {name: _own(name) for name in ("logmel.py", "wav.py")}
    if any(piece.isa or piece.requires.get("without_vnni") for piece in pieces):
        found["cpu.py"] = _own("cpu.py")
    return found | {f"{piece.module}.py": _model(facts, piece) for piece in pieces}


def _own(name: str) -> str:
    """A module of the device side, which needs numpy alone: what edgekit itself runs."""
    return (resources.files("edgekit.runtime") / name).read_text(encoding="utf-8")


def _picture(facts: Facts, step: ImagePreprocess) -> str:
    side = None
    if step.resize_mode == "shorter-side":
        side = step.resize_size or max(step.height, step.width)
    fields = {
        "HEAD": head(facts),
        "HEIGHT": str(step.height),
        "WIDTH": str(step.width),
        "CHANNELS": str(step.channels),
        "COLOR": text(step.color),
        "RESIZE": text(step.resize),
        "ANTIALIAS": str(step.antialias),
        "SHORTER_SIDE": str(side),
        "SCALE": escape.number(step.scale),
        "MEAN": "".join(f"{escape.number(v)}, " for v in step.mean).rstrip(),
        "STD": "".join(f"{escape.number(v)}, " for v in step.std).rstrip(),
        "LAYOUT": text(step.layout),
        "UPRIGHT": str(step.exif),
    }
    return fill(load("python/preprocess.py"), fields, what="preprocess")


def _tokenizer(facts: Facts, step: TextPreprocess) -> str:
    fields = {
        "HEAD": head(facts),
        "MAX_LENGTH": str(step.max_length),
        "LOWER_CASE": str(step.lower_case),
        "STRIP_ACCENTS": str(step.lower_case if step.strip_accents is None else step.strip_accents),
        "IDS": text(step.ids_name),
        "MASK": text(step.mask_name),
        "TYPES": text(step.types_name),
        "DTYPE": text(step.dtype),
        "UNK": text(step.unk),
        "CLS": text(step.cls),
        "SEP": text(step.sep),
        "PAD": text(step.pad),
        "MASK_TOKEN": text(step.mask),
    }
    return fill(load("python/tokenizer.py"), fields, what="tokenizer")


def _features(facts: Facts, step: AudioPreprocess) -> str:
    fields = {
        "HEAD": head(facts),
        "SAMPLE_RATE": str(step.sample_rate),
        "SAMPLES": str(step.samples),
        "FIT": text(step.fit),
        "RESAMPLE": text(step.resample),
        "WINDOW": str(step.window),
        "HOP": str(step.hop),
        "FFT": str(step.fft),
        "CENTERED": str(step.framing == "centered"),
        "POWER": str(step.power),
        "MELS": str(step.mels),
        "FMIN": escape.number(step.fmin),
        "FMAX": escape.number(step.top),
        "SCALE": text(step.scale),
        "AREA": str(step.area),
        "OFFSET": escape.number(step.log_offset),
        "MEAN": "".join(f"{escape.number(v)}, " for v in step.mean).rstrip(),
        "STD": "".join(f"{escape.number(v)}, " for v in step.std).rstrip(),
        "LAYOUT": text(step.layout),
        "SHAPE": str(step.shape),
    }
    return fill(load("python/features.py"), fields, what="features")


def _shared(facts: Facts) -> str:
    what, lines = _feeds(facts)
    fields = {
        "HEAD": head(facts),
        "GOLDEN": _goldens(facts),
        "PICTURES": "None" if facts.golden_pictures is None else text(facts.golden_pictures),
        "PICTURE_INPUT": text(facts.picture_input.name if facts.picture_input else ""),
        "SOUNDS": "None" if facts.golden_sounds is None else text(facts.golden_sounds),
        "SOUND_INPUT": text(facts.sound_input.name if facts.sound_input else ""),
        "SCORES": "None" if facts.scores is None else text(facts.scores.name),
        "BATCH": str(facts.signature.inputs[0].shape[0]) if facts.signature.inputs else "1",
        "WHAT": what,
        "FEEDS": "\n".join(f"    {line}".rstrip() for line in lines),
    }
    return fill(load("python/client.py"), fields, what="client")


def _goldens(facts: Facts) -> str:
    """The golden vectors' files by what the artifact takes, as the items of a dictionary."""
    own = {} if facts.golden is None else {FLOAT_IO: facts.golden[0]}
    return ", ".join(f"{text(io)}: {text(name)}" for io, name in {**own, **facts.golden_of}.items())


def _feeds(facts: Facts) -> tuple[str, list[str]]:
    """What the command line takes, and the lines that make the inputs of it."""
    if facts.picture_input is not None and len(facts.signature.inputs) == 1:
        name = text(facts.picture_input.name)
        return "a picture", [
            "from preprocess import decode, feed",
            "",
            "del bundle",
            f"return {{{name}: feed(decode(source), io)}}",
        ]
    if facts.sound_input is not None and len(facts.signature.inputs) == 1:
        name = text(facts.sound_input.name)
        return "a WAV file", [
            "from features import decode, feed",
            "",
            "del io, bundle",
            f"return {{{name}: feed(*decode(source))}}",
        ]
    if facts.text is not None:
        return "a text", [
            "from tokenizer import Tokenizer",
            "",
            "del io",
            "return Tokenizer(bundle)(source)",
        ]
    return "an .npz with an array for each input", [
        "del io, bundle",
        "with np.load(source, allow_pickle=False) as file:",
        "    return {name: file[name] for name in file.files}",
    ]


def _model(facts: Facts, piece: Piece) -> str:
    target = piece.target
    body = load(f"python/body_{target.replace('-', '_')}.py").rstrip("\n")
    if target == "onnxruntime":
        body = fill(body, {"WITHOUT_VNNI": _without_vnni(piece)}, what=target)
    if target == "coreml":
        body = fill(body, {"PATH": text(piece.path)}, what=target)
    what, _ = _feeds(facts)
    fields = {
        "TITLE": escape.comment(f"{piece.id}: {SCHEMES.get(piece.scheme, piece.scheme)}."),
        "HEAD": head(facts),
        "MODULE": piece.module,
        "EXAMPLE": _EXAMPLES.get(what, "inputs.npz"),
        "NEEDS": NEEDS[target],
        "IMPORTS": _imports(piece),
        "KIND": piece.kind,
        "ID": escape.comment(piece.id),
        "IO": text(piece.io),
        "LIMIT_DB": escape.number(piece.limit_db),
        "FILES": _lines([f"{text(path)}: {text(digest)}" for path, digest in _first(piece)]),
        "ISA": "".join(f"{text(entry)}, " for entry in piece.isa).rstrip(),
        "INPUTS": _lines([_tensor(spec) for spec in piece.inputs]),
        "OUTPUTS": _lines([_tensor(spec) for spec in facts.signature.outputs]),
        "BODY": body,
    }
    return fill(load("python/model.py"), fields, what="model")


def _imports(piece: Piece) -> str:
    target = piece.target
    standard = ["from __future__ import annotations", ""]
    standard += ["import re"] if target == "tflite" else []
    mappings = "Mapping, Sequence" if target == "openvino" else "Mapping"
    standard += [
        "import sys",
        f"from collections.abc import {mappings}",
        "from pathlib import Path",
    ]
    any_ = "Any, " if target in ("tflite", "openvino", "coreml") else ""
    standard += [f"from typing import {any_}ClassVar"]
    used = ["BUNDLE", "Array", "Tensor", "by_name", "checked", "fit", "main", "restored"]
    if target in ("executorch", "torch-mobile"):
        used.remove("by_name")
    numpy = ["import numpy as np"] if target in ("openvino", "onnxruntime", "coreml") else []
    theirs = sorted([*numpy, *_IMPORTS[target]], key=lambda line: (line[:4] == "from", line))
    guard = [
        'if __name__ == "__main__":',
        "    # Bytecode beside the sources would be files that the manifest does not list.",
        "    sys.dont_write_bytecode = True",
        "",
    ]
    ours = ["from client import " + ", ".join(used) + ""]
    if target == "onnxruntime" and piece.requires.get("without_vnni"):
        ours.append("from cpu import lacks_vnni")
    return "\n".join([*standard, "", *theirs, "", *guard, *ours])


def _first(piece: Piece) -> list[tuple[str, str]]:
    """The artifact's files, the one to load first."""
    return sorted(piece.files, key=lambda file: (file[0] != piece.path, file[0]))


def _without_vnni(piece: Piece) -> str:
    settings = piece.requires.get("without_vnni") or {}
    if not settings:
        return ""
    lines = ["        # Exact sums on x86 without VNNI, where the kernels for u8 x s8 saturate."]
    lines += ["        if lacks_vnni():"]
    lines += [
        f"            options.add_session_config_entry({text(name)}, {text(value)})"
        for name, value in sorted(settings.items())
    ]
    return "\n".join(lines) + "\n"


def _tensor(spec: TensorSpec) -> str:
    return f"({text(spec.name)}, {tuple(spec.shape)}, {text(spec.dtype)})"


def _lines(items: list[str]) -> str:
    """Items of a literal, one a line."""
    return "\n" + "".join(f"        {item},\n" for item in items) + "    "
