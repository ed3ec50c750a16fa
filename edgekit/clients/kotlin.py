"""Kotlin clients for Android: one class per artifact, over the runtime's own Android library."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.clients import _escape as escape
from edgekit.clients._escape import kotlin as text
from edgekit.clients._facts import Facts, Piece
from edgekit.clients._picture import boolean, picture_fields
from edgekit.clients._template import fill, load
from edgekit.clients._words import difference, head, resize_words
from edgekit.names import FLOAT_IO, NHWC_IO, PICTURE_IO, SCHEMES
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.signature import TensorSpec

__all__ = ["carries", "files"]

_LABELS_A_PART = 500

# Kotlin's arrays for the types that the Android libraries take.
_ARRAYS = {
    "float32": "FloatArray",
    "int64": "LongArray",
    "int32": "IntArray",
    "int8": "ByteArray",
    "uint8": "ByteArray",
}


@dataclass(frozen=True)
class _Runtime:
    """How a runtime is called: lines of Kotlin, with {} for what differs from tensor to tensor."""

    imports: tuple[str, ...]
    threads: bool
    types: frozenset[str]


_RUNTIMES = {
    "tflite": _Runtime(
        ("com.google.ai.edge.litert.Accelerator", "com.google.ai.edge.litert.CompiledModel"),
        True,
        frozenset(("float32", "int64", "int32", "int8", "uint8")),
    ),
    "onnxruntime": _Runtime(
        ("ai.onnxruntime.OnnxTensor", "ai.onnxruntime.OrtEnvironment", "ai.onnxruntime.OrtSession"),
        True,
        frozenset(("float32", "int64", "int32", "int8", "uint8")),
    ),
    "executorch": _Runtime(
        (
            "org.pytorch.executorch.EValue",
            "org.pytorch.executorch.Module",
            "org.pytorch.executorch.Tensor",
        ),
        True,
        frozenset(("float32", "int64", "int32", "int8", "uint8")),
    ),
    "torch-mobile": _Runtime(
        (
            "org.pytorch.IValue",
            "org.pytorch.LiteModuleLoader",
            "org.pytorch.Module",
            "org.pytorch.Tensor",
        ),
        False,
        frozenset(("float32", "int64", "int32", "int8", "uint8")),
    ),
}


def carries(facts: Facts, piece: Piece) -> bool:
    """Whether there is a Kotlin client for an artifact: its runtime and its types are known.

    ExecuTorch's library for Android has no Core ML.
    """
    if piece.target == "executorch" and piece.entry.get("delegate") == "coreml":
        return False
    runtime = _RUNTIMES.get(piece.target)
    specs = (*piece.inputs, *facts.signature.outputs)
    return (
        runtime is not None and len(piece.files) == 1 and {s.dtype for s in specs} <= runtime.types
    )


def files(facts: Facts) -> dict[str, str]:
    """The Kotlin clients of a bundle: contents by file name."""
    pieces = [piece for piece in facts.pieces if carries(facts, piece)]
    if not pieces:
        return {}
    found = {"Files.kt": fill(load("kotlin/Files.kt"), {"HEAD": head(facts)}, what="files")}
    if facts.labels:
        found["Labels.kt"] = _labels(facts)
    if facts.picture is not None:
        found["Preprocess.kt"] = _picture(facts, facts.picture)
    return found | {f"{piece.kind}.kt": _model(facts, piece) for piece in pieces}


def _labels(facts: Facts) -> str:
    starts = range(0, len(facts.labels), _LABELS_A_PART)
    parts = []
    for number, start in enumerate(starts):
        rows = facts.labels[start : start + _LABELS_A_PART]
        lines = "".join(f"    {text(label)},\n" for label in rows)
        parts.append(f"private fun labels{number}(): List<String> = listOf(\n{lines})")
    fields = {
        "HEAD": head(facts),
        "SUM": " + ".join(f"labels{number}()" for number in range(len(starts))),
        "PARTS": "\n\n".join(parts),
    }
    return fill(load("kotlin/Labels.kt"), fields, what="labels")


def _picture(facts: Facts, step: ImagePreprocess) -> str:
    smooth = step.resize != "nearest"
    fields = {
        **picture_fields(facts, step),
        "RESIZE_WORDS": resize_words(step),
        "FILTER_WORDS": "with filter = true: bilinear, from the four nearest pixels"
        if smooth
        else "with filter = false: the nearest pixel",
        "DIFFERENCE": difference(step),
        "RESIZES": boolean(step.resize != "none"),
        "SMOOTH": boolean(smooth),
    }
    return fill(load("kotlin/Preprocess.kt"), fields, what="preprocess")


def _model(facts: Facts, piece: Piece) -> str:
    runtime, outputs = _RUNTIMES[piece.target], facts.signature.outputs
    write = {
        "tflite": _litert,
        "onnxruntime": _onnxruntime,
        "executorch": _executorch,
        "torch-mobile": _torch_mobile,
    }[piece.target]
    fields, call, close = write(piece, outputs)
    imports, extra = [*runtime.imports, "android.content.Context"], ""
    scores, takes = facts.scores, facts.picture_input
    classifies = takes is not None and len(piece.inputs) == 1 and piece.io in _FEEDS
    if classifies and scores is not None and scores.dtype == "float32":
        imports.append("android.graphics.Bitmap")
        own = {"FEED": _FEEDS[piece.io], "OUTPUT": f"output{outputs.index(scores)}"}
        extra = fill(load("kotlin/classify.kt"), own, what="classify")
    if piece.target == "onnxruntime":
        imports += sorted({_BUFFERS[s.dtype] for s in piece.inputs})
        if any(s.dtype == "uint8" for s in piece.inputs):
            imports.append("ai.onnxruntime.OnnxJavaType")
    rows = {
        "TITLE": escape.comment(f"{piece.id}: {SCHEMES.get(piece.scheme, piece.scheme)}."),
        "HEAD": head(facts),
        "IMPORTS": "".join(f"import {name}\n" for name in sorted(imports)),
        "ID": escape.comment(piece.id),
        "FILE": escape.comment(piece.file),
        "KIND": piece.kind,
        "THREADS": ", threads: Int = 1" if runtime.threads else "",
        "OUTPUTS": _lines(
            f"/** {_about(s)} */\nval output{i}: {_ARRAYS[s.dtype]}," for i, s in enumerate(outputs)
        ),
        "FIELDS": _indented(fields, 4),
        "DOCS": "".join(
            f"     * @param input{i} {_about(spec)}\n" for i, spec in enumerate(piece.inputs)
        ),
        "PARAMETERS": ", ".join(
            f"input{i}: {_ARRAYS[s.dtype]}" for i, s in enumerate(piece.inputs)
        ),
        "CHECKS": _indented([_check(i, spec) for i, spec in enumerate(piece.inputs)], 8),
        "CALL": _indented(call, 8),
        "EXTRA": extra,
        "CLOSE": _indented(close, 8),
        "PATH": text(piece.path),
        "SHA256": text(piece.files[0][1]),
    }
    return fill(load("kotlin/model.kt"), rows, what="model")


def _check(i: int, spec: TensorSpec) -> str:
    said = f"input {i} has ${{input{i}.size}} values, not {_count(spec)}"
    return f'require(input{i}.size == {_count(spec)}) {{ "{said}" }}'


_FEEDS = {FLOAT_IO: "tensor", PICTURE_IO: "pixels", NHWC_IO: "channelsLast"}
_Parts = tuple[list[str], list[str], list[str]]
"""Lines of the fields, of the call, and of what closes them."""


def _litert(piece: Piece, outputs: tuple[TensorSpec, ...]) -> _Parts:
    kinds = {"float32": "Float", "int64": "Long", "int32": "Int", "int8": "Int8", "uint8": "Int8"}
    takes = ", ".join(text(spec.name) for spec in piece.inputs)
    gives = ", ".join(text(spec.name) for spec in outputs)
    fields = [
        "private val model = CompiledModel.create(",
        "    modelFile(context, ASSET, SHA256).path,",
        "    CompiledModel.Options(Accelerator.CPU).apply {",
        "        cpuOptions = CompiledModel.CpuOptions(numThreads = threads)",
        "    },",
        ")",
        f"private val inputs = listOf({takes}).map {{ it to model.createInputBuffer(it) }}",
        f"private val outputs = listOf({gives}).map {{ it to model.createOutputBuffer(it) }}",
    ]
    call = [
        f"inputs[{i}].second.write{kinds[spec.dtype]}(input{i})"
        for i, spec in enumerate(piece.inputs)
    ]
    call += ["model.run(inputs.toMap(), outputs.toMap())", "return Outputs("]
    call += [f"    outputs[{i}].second.read{kinds[s.dtype]}()," for i, s in enumerate(outputs)]
    close = ["(inputs + outputs).forEach { it.second.close() }", "model.close()"]
    return fields, [*call, ")"], close


_BUFFERS = {
    "float32": "java.nio.FloatBuffer",
    "int64": "java.nio.LongBuffer",
    "int32": "java.nio.IntBuffer",
    "int8": "java.nio.ByteBuffer",
    "uint8": "java.nio.ByteBuffer",
}


def _onnxruntime(piece: Piece, outputs: tuple[TensorSpec, ...]) -> _Parts:
    settings = sorted((piece.requires.get("without_vnni") or {}).items())
    fields = [
        "private val environment = OrtEnvironment.getEnvironment()",
        "private val session = OrtSession.SessionOptions().use { options ->",
        "    options.setIntraOpNumThreads(threads)",
        *(
            f"    options.addConfigEntry({text(name)}, {text(value)}) // exact on x86 without VNNI"
            for name, value in settings
        ),
        "    environment.createSession(modelFile(context, ASSET, SHA256).path, options)",
        "}",
    ]
    call = ["val tensors = mapOf("]
    for i, spec in enumerate(piece.inputs):
        buffer = _BUFFERS[spec.dtype].rpartition(".")[2]
        data, shape = f"{buffer}.wrap(input{i})", f"longArrayOf({_shape(spec)})"
        if spec.dtype in ("int8", "uint8"):
            # Bytes have to lie outside of the Java heap, and their sign has to be told.
            data = f"ByteBuffer.allocateDirect(input{i}.size).apply {{ put(input{i}).rewind() }}"
            kind = "INT8" if spec.dtype == "int8" else "UINT8"
            shape += f", OnnxJavaType.{kind}"
        made = f"OnnxTensor.createTensor(environment, {data}, {shape})"
        call.append(f"    {text(spec.name)} to {made},")
    reads = {"float32": "float", "int64": "long", "int32": "int", "int8": "byte", "uint8": "byte"}
    call += [")", "return try {", "    session.run(tensors).use { results ->", "        Outputs("]
    for spec in outputs:
        read = reads[spec.dtype]
        call += [
            f"            (results.get({text(spec.name)}).get() as OnnxTensor).{read}Buffer",
            f"                .let {{ from -> {_ARRAYS[spec.dtype]}(from.remaining())"
            ".also { from.get(it) } },",
        ]
    call += ["        )", "    }", "} finally {", "    tensors.values.forEach { it.close() }", "}"]
    return fields, call, ["session.close()"]


def _blobs(piece: Piece, value: str) -> list[str]:
    made = []
    for i, spec in enumerate(piece.inputs):
        name = "fromBlobUnsigned" if spec.dtype == "uint8" else "fromBlob"
        made.append(f"{value}(Tensor.{name}(input{i}, longArrayOf({_shape(spec)}))),")
    return made


_READS = {
    "float32": "dataAsFloatArray",
    "int64": "dataAsLongArray",
    "int32": "dataAsIntArray",
    "int8": "dataAsByteArray",
    "uint8": "dataAsUnsignedByteArray",
}


def _executorch(piece: Piece, outputs: tuple[TensorSpec, ...]) -> _Parts:
    fields = [
        "private val module = Module.load(",
        "    modelFile(context, ASSET, SHA256).path, Module.LOAD_MODE_MMAP, threads,",
        ")",
    ]
    call = ["val results = module.forward("]
    call += [f"    {line}" for line in _blobs(piece, "EValue.from")]
    call += [")", "return Outputs("]
    call += [f"    results[{i}].toTensor().{_READS[s.dtype]}," for i, s in enumerate(outputs)]
    return fields, [*call, ")"], ["module.destroy()"]


def _torch_mobile(piece: Piece, outputs: tuple[TensorSpec, ...]) -> _Parts:
    fields = [
        "private val module: Module = "
        "LiteModuleLoader.load(modelFile(context, ASSET, SHA256).path)",
    ]
    call = ["val answer = module.forward("]
    call += [f"    {line}" for line in _blobs(piece, "IValue.from")]
    call += [")"]
    if len(outputs) == 1:
        call.append("val results = if (answer.isTensor) arrayOf(answer) else answer.toTuple()")
    else:
        call.append("val results = answer.toTuple()")
    call.append("return Outputs(")
    call += [f"    results[{i}].toTensor().{_READS[s.dtype]}," for i, s in enumerate(outputs)]
    return fields, [*call, ")"], ["module.destroy()"]


def _about(spec: TensorSpec) -> str:
    return f"{escape.comment(spec.name)}: {spec.dtype} {list(spec.shape)}"


def _shape(spec: TensorSpec) -> str:
    return ", ".join(str(n) for n in spec.shape)


def _count(spec: TensorSpec) -> int:
    count = 1
    for n in spec.shape:
        count *= n
    return count


def _lines(items: object) -> str:
    return _indented([line for item in items for line in str(item).split("\n")], 8)  # type: ignore[attr-defined]


def _indented(lines: list[str], by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in lines)
