"""The README that an app's team reads: what is in a bundle, what a file needs, how to feed it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgekit.clients import cpp, kotlin, python, swift
from edgekit.clients._escape import code
from edgekit.clients._escape import markdown as text
from edgekit.clients._facts import Facts, Piece
from edgekit.clients._template import fill, load
from edgekit.clients._words import resize_words, sound_words
from edgekit.names import NHWC_IO, PICTURE_IO
from edgekit.runtime.preprocess import AudioPreprocess, ImagePreprocess, TextPreprocess
from edgekit.signature import TensorSpec

__all__ = ["file"]

_RUNTIMES = {
    "tflite": "LiteRT",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "executorch": "ExecuTorch",
    "torch-mobile": "PyTorch Mobile",
    "coreml": "Core ML",
}

_TAKEN = {
    PICTURE_IO: "take the picture itself instead: uint8 `[1, height, width, channels]` in RGB "
    "order (or grey), after the resize; what follows is inside of the file.",
    NHWC_IO: "take what the model takes with its channels last: float32 `[1, height, width, "
    "channels]` in RGB order (or grey), each channel by its own numbers below; layout and order "
    "alone are inside of the file. Its TFLite Metadata tell these numbers.",
}
"""What artifacts with a picture border take."""

_BACKENDS = {
    ("executorch", "vulkan"): "its delegate `VulkanBackend`",
    ("executorch", "coreml"): "its delegate `CoreMLBackend`",
}
"""What of a runtime an app has to link beside the usual."""

# The last of their kind that their makers have published: PyTorch Mobile's library for Android, the
# Swift interpreter of TensorFlow Lite, ONNX Runtime's Swift package.
_TORCH_ANDROID = "2.1.0"
_TFLITE_SWIFT = "2.17.0"
_ONNXRUNTIME_SWIFT = "1.24.2"


def file(facts: Facts, languages: Sequence[str]) -> str:
    """The README, with a section for each of ``languages``."""
    fields = {
        "NAME": text(facts.name),
        "VERSION": text(facts.version),
        "EDGEKIT": text(facts.edgekit),
        "LICENCE": _licence(facts),
        "ARTIFACTS": _artifacts(facts),
        "ACCURACY": _accuracy(facts),
        "LATENCY": _latency(facts),
        "NEEDS": _needs(facts),
        "TENSORS": _tensors(facts),
        "IOS": _ios(facts),
        "LABELS": _labels(facts),
        "PREPROCESS": _preprocess(facts),
        "GOLDEN": _golden(facts, languages),
        "CLIENTS": "\n\n".join(_SECTIONS[language](facts) for language in languages),
    }
    return fill(load("README.md"), fields, what="README")


def _licence(facts: Facts) -> str:
    licence = facts.manifest.get("licence")
    return f" Licence of the model: {text(str(licence))}." if licence else ""


def _artifacts(facts: Facts) -> str:
    rows = []
    for piece in facts.pieces:
        evidence = piece.entry.get("evidence") or {}
        rows.append(
            [
                code(piece.id),
                code(piece.path),
                f"{int(piece.entry['bytes']):,}",
                ", ".join(text(device) for device in piece.entry.get("devices") or ()) or "any",
                text(str(piece.entry.get("verification", "none"))),
                _drop(evidence.get("accuracy")),
                _p50(evidence.get("bench")),
            ]
        )
    return _table(["artifact", "file", "bytes", "devices", "proof", "top-1", "p50 ms"], rows)


def _drop(accuracy: Mapping[str, Any] | None) -> str:
    if not accuracy or accuracy.get("value") is None:
        return "-"
    shown = f"{float(accuracy['value']):.2f} %"
    drop, interval = accuracy.get("drop_points"), accuracy.get("drop_ci95")
    if drop is not None:
        shown += f", {float(drop):+.2f} lost"
    if interval:
        shown += f" (95 %: {float(interval[0]):+.2f} to {float(interval[1]):+.2f})"
    return shown


def _p50(bench: Mapping[str, Any] | None) -> str:
    figures = (bench or {}).get("latency_ms") or {}
    return f"{float(figures['p50']):.3g}" if figures.get("p50") is not None else "-"


def _accuracy(facts: Facts) -> str:
    about = ((facts.manifest.get("lineage") or {}).get("evaluation")) or {}
    if not about.get("n"):
        return "No accuracy was measured. "
    source = text(str(about.get("source", "")))
    return (
        f"Accuracy is from {int(about['n'])} samples of {source}, points lost against the float "
        "model with their interval. "
    )


def _latency(facts: Facts) -> str:
    if all(_p50((p.entry.get("evidence") or {}).get("bench")) == "-" for p in facts.pieces):
        return "No latency was measured."
    return (
        "Latency is that of the machine that made the bundle, not of any device in the table: "
        "measure on yours."
    )


def _needs(facts: Facts) -> str:
    rows = []
    for piece in facts.pieces:
        requires = piece.requires
        runtime = _RUNTIMES.get(piece.target, piece.target)
        if backend := _BACKENDS.get((piece.target, _delegate(piece))):
            runtime += f" with {backend}"
        version = requires.get("min_version")
        system = ", ".join(text(str(one)) for one in requires.get("os") or ()) or "-"
        isa = "; ".join(_isa(entry) for entry in piece.isa)
        if requires.get("without_vnni"):
            settings = requires["without_vnni"].items()
            isa = "; ".join(f"`{k}` = `{v}` on x86 without VNNI" for k, v in sorted(settings))
        rows.append([code(piece.id), runtime, text(_release(version)) or "-", system, isa or "-"])
    table = _table(["artifact", "runtime", "proven in", "oldest system", "processor"], rows)
    said = f"{table}\n\nAn older runtime than the one that a file was proven in may refuse it."
    if any((p.target, _delegate(p)) in _BACKENDS for p in facts.pieces):
        said += (
            " What is for another delegate than XNNPACK was not run when this bundle was made, "
            "unless its proof above is `runtime`: judge its answers by the golden vectors on your "
            "device. The app has to link that delegate's library, or the file does not load; the "
            "C++ client's CMake file links XNNPACK's alone."
        )
    return said


def _isa(entry: str) -> str:
    architecture, _, flags = entry.partition(":")
    return f"on {architecture}: {text(flags.replace('|', ' or '))}"


def _release(version: object) -> str:
    return "" if version is None else str(version).partition("+")[0]


def _tensors(facts: Facts) -> str:
    rows = [["input", *_tensor(spec)] for spec in facts.signature.inputs]
    rows += [["output", *_tensor(spec)] for spec in facts.signature.outputs]
    return _table(["", "name", "type", "shape, batch first", "layout"], rows)


def _tensor(spec: TensorSpec) -> list[str]:
    return [
        text(spec.name),
        spec.dtype,
        " x ".join(str(n) for n in spec.shape) or "one number",
        text(spec.layout) or "-",
    ]


def _ios(facts: Facts) -> str:
    lines = []
    for io, said in _TAKEN.items():
        pieces = [code(piece.id) for piece in facts.pieces if piece.io == io]
        if pieces:
            lines.append(f"\n{', '.join(pieces)} {said}\n")
    return "".join(lines)


def _labels(facts: Facts) -> str:
    if not facts.labels:
        return ""
    scores = facts.scores
    where = "" if scores is None else f" of output {text(scores.name)}"
    shown = ", ".join(text(label) or "(empty)" for label in facts.labels[:20])
    more = f", ... {len(facts.labels)} in all" if len(facts.labels) > 20 else ""
    return (
        f"\nLabels, in the order of the last dimension{where} (`labels` in the manifest): "
        f"{shown}{more}.\n"
    )


def _preprocess(facts: Facts) -> str:
    if isinstance(facts.preprocess, ImagePreprocess):
        return _picture(facts.preprocess)
    if isinstance(facts.preprocess, TextPreprocess):
        return _text(facts.preprocess)
    if isinstance(facts.preprocess, AudioPreprocess):
        return sound_words(facts.preprocess)
    return "The model takes its tensors as they are; what they are made of is not told."


def _picture(step: ImagePreprocess) -> str:
    order = {"RGB": "red, green, blue", "BGR": "blue, green, red", "GRAY": "grey"}[step.color]
    shape = "channels, rows, columns" if step.layout == "NCHW" else "rows, columns, channels"
    values = "; ".join(
        f"channel {c}: (pixel * {step.scale!r} - {mean!r}) / {std!r}"
        for c, (mean, std) in enumerate(zip(step.mean, step.std, strict=True))
    )
    words = resize_words(step)
    lines = [
        f"1. Decode to 8-bit {'grey' if step.channels == 1 else 'RGB'}, alpha dropped"
        + (", turned upright as EXIF says." if step.exif else "; EXIF turns are left as they are."),
        f"2. {words[0].upper()}{words[1:]}.",
        f"3. Channels in the order {order}.",
        f"4. From pixels of 0 to 255: {values}.",
        f"5. As float32 [1, {shape}].",
        "",
        "The Python and C++ clients do this to the bit. The Kotlin and Swift ones leave the resize "
        "to the system, and say in `Preprocess` what that changes.",
    ]
    if step.channels == 1:
        lines[0] = lines[0].replace(
            "8-bit grey", "8-bit grey (of colours: 0.299 red + 0.587 green + 0.114 blue)"
        )
    return "\n".join(lines)


def _text(step: TextPreprocess) -> str:
    accents = step.lower_case if step.strip_accents is None else step.strip_accents
    types = f", {code(step.types_name)} all 0" if step.types_name else ""
    return (
        f"BERT's WordPiece with the {len(step.vocab):,} pieces in `preprocess.vocab` of the "
        "manifest, "
        f"{'lower-cased' if step.lower_case else 'case kept'}, "
        f"{'accents stripped' if accents else 'accents kept'}: {text(step.cls)}, the pieces, "
        f"{text(step.sep)}, cut to {step.max_length} tokens and padded with {text(step.pad)}. "
        f"Input {code(step.ids_name)} takes the ids, {code(step.mask_name)} 1 for tokens and 0 for "
        f"padding{types}. The Python clients have this tokenizer; the others take ids."
    )


def _golden(facts: Facts, languages: Sequence[str]) -> str:
    if facts.golden is None:
        return "This bundle has no golden vectors."
    name, count = facts.golden
    lines = [
        f"`{name}` holds {count} inputs (`input.NAME`) and the float model's answers "
        "(`output.NAME`), samples first. A file, its runtime and the processor together must give "
        "these again, with a signal to noise of at least "
        + ", ".join(
            f"{limit:.0f} dB (`{scheme}`)"
            for scheme, limit in dict((p.scheme, p.limit_db) for p in facts.pieces).items()
        )
        + ": that finds a broken runtime or a saturating kernel, not a point of accuracy.",
    ]
    if facts.golden_pictures is not None:
        lines.append(
            f"`{facts.golden_pictures}` holds the pictures that the first of them were made of "
            "(`picture.NUMBER`), so that the preprocessing is checked too."
        )
    if facts.golden_sounds is not None:
        lines.append(
            f"`{facts.golden_sounds}` holds the recordings that the first of them were made of "
            "(`sound.NUMBER`, and `rate.NUMBER` in Hz), so that the preprocessing is checked too."
        )
    for io, name in facts.golden_of.items():
        what = "pixels" if io == PICTURE_IO else "the picture with its channels last"
        lines.append(f"`{name}` is the same for files that take {what}.")
    commands = []
    piece = next((p for p in facts.pieces if python.carries(p)), None)
    if "python" in languages and piece is not None:
        commands.append(f"python client/python/{piece.module}.py --golden")
    piece = next((p for p in facts.pieces if p.target in cpp.NEEDS and p.unusual is None), None)
    if "cpp" in languages and piece is not None:
        commands.append(f"build/{piece.module} . --golden")
    block = "\n\n```sh\n" + "\n".join(commands) + "\n```" if commands else ""
    return " ".join(lines) + block + (_EXITS if block else "")


def _python(facts: Facts) -> str:
    rows = [
        [code(p.id), f"`python/{p.module}.py`, class `{p.kind}`", text(python.NEEDS[p.target])]
        for p in facts.pieces
        if python.carries(p)
    ]
    table = _table(["artifact", "client", "needs, beside numpy"], rows)
    return f"### Python\n\n{table}\n\n{_PYTHON}" if table else f"### Python\n\n{_NONE}"


def _cpp(facts: Facts) -> str:
    rows = [
        [
            code(p.id),
            f"`cpp/{p.module}.hpp`, class `edge_client::{p.kind}`",
            cpp.NEEDS[p.target] + ("" if p.unusual is None else f", with its {p.unusual} delegate"),
        ]
        for p in facts.pieces
        if p.target in cpp.NEEDS
    ]
    if not rows:
        return f"### C++\n\n{_NONE}"
    table = _table(["artifact", "client", "needs"], rows)
    return (
        f"### C++\n\n{table}\n\nC++20. `cmake -S client/cpp -B build -DCMAKE_PREFIX_PATH=...` "
        "builds a program for each runtime that it finds and names the rest; on Android the same "
        "files go into the app's native code. Files are not hashed here: compare them with the "
        "manifest. LiteRT and ExecuTorch take their own number of threads there."
    )


def _kotlin(facts: Facts) -> str:
    pieces = [piece for piece in facts.pieces if kotlin.carries(facts, piece)]
    if not pieces:
        return f"### Kotlin, for Android\n\n{_NONE}"
    table = _table(["artifact", "client"], [[code(p.id), f"`kotlin/{p.kind}.kt`"] for p in pieces])
    lines = dict.fromkeys(_gradle(piece) for piece in pieces)
    block = "\n".join(f"    {line}" for line in lines)
    return (
        f"### Kotlin, for Android\n\n{table}\n\n```kotlin\ndependencies {{\n{block}\n}}\n```\n\n"
        "The files lie in the app's assets under their names in the bundle. Versions are those "
        "that the files were proven in; PyTorch Mobile's is the last that was published, and older."
    )


def _gradle(piece: Piece) -> str:
    version = _release(piece.requires.get("min_version")) or "+"
    library = {
        "tflite": f"com.google.ai.edge.litert:litert:{version}",
        "onnxruntime": f"com.microsoft.onnxruntime:onnxruntime-android:{version}",
        "executorch": f"org.pytorch:executorch-android{_android(piece)}:{version}",
        "torch-mobile": f"org.pytorch:pytorch_android_lite:{_TORCH_ANDROID}",
    }[piece.target]
    return f'implementation("{library}")'


def _delegate(piece: Piece) -> str:
    return str(piece.entry.get("delegate") or "xnnpack")


def _android(piece: Piece) -> str:
    """ExecuTorch's library for Android comes with Vulkan under another name."""
    return "-vulkan" if _delegate(piece) == "vulkan" else ""


def _swift(facts: Facts) -> str:
    pieces = [piece for piece in facts.pieces if swift.carries(facts, piece)]
    if not pieces:
        return f"### Swift, for iOS and macOS\n\n{_NONE}"
    table = _table(
        ["artifact", "client", "library"],
        [[code(p.id), f"`swift/{p.kind}.swift`", _package(p)] for p in pieces],
    )
    return (
        f"### Swift, for iOS and macOS\n\n{table}\n\nEach takes the file's URL. Core ML's arrays "
        "ask for iOS 15 at least; the oldest system for a package is in the table above."
    )


def _package(piece: Piece) -> str:
    version = _release(piece.requires.get("min_version"))
    return {
        "coreml": "of the system",
        "tflite": f"CocoaPods: `pod 'TensorFlowLiteSwift', '~> {_TFLITE_SWIFT}'`",
        "onnxruntime": '`.package(url: "https://github.com/microsoft/'
        f'onnxruntime-swift-package-manager", from: "{_ONNXRUNTIME_SWIFT}")`',
        "executorch": '`.package(url: "https://github.com/pytorch/executorch", branch: '
        f'"swiftpm-{version or "VERSION"}")`, products executorch, '
        f"backend\\_{_delegate(piece)}, kernels\\_optimized, kernels\\_quantized",
    }[piece.target]


_EXITS = "\n\nFrom the bundle's folder; the exit code is 0 if it holds."
_PYTHON = (
    "Python 3.10 or newer. Copy the folder out of the bundle to import a client from an app: what "
    "Python writes beside it would be files that the manifest does not list, and such a bundle is "
    "refused."
)
_NONE = "None of these artifacts has one."
_SECTIONS = {"python": _python, "cpp": _cpp, "kotlin": _kotlin, "swift": _swift}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; empty without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines])
