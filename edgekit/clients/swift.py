"""Swift clients for iOS and macOS: one class per artifact, over the runtime's own library."""

from __future__ import annotations

from edgekit.clients import _escape as escape
from edgekit.clients._escape import swift as text
from edgekit.clients._facts import Facts, Piece
from edgekit.clients._picture import boolean, picture_fields
from edgekit.clients._template import fill, load
from edgekit.clients._words import difference, head, resize_words
from edgekit.names import FLOAT_IO, NHWC_IO, PICTURE_IO, SCHEMES
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.signature import TensorSpec

__all__ = ["carries", "files"]

_SCALARS = {
    "float32": "Float",
    "int64": "Int64",
    "int32": "Int32",
    "int8": "Int8",
    "uint8": "UInt8",
}
_IMPORTS = {
    "coreml": ["CoreML", "Foundation"],
    "tflite": ["Foundation", "TensorFlowLite"],
    "onnxruntime": ["Foundation", "OnnxRuntimeBindings"],
    "executorch": ["ExecuTorch", "Foundation"],
}
_FEEDS = {FLOAT_IO: "tensor", PICTURE_IO: "pixels", NHWC_IO: "channelsLast"}
_Parts = tuple[list[str], list[str], list[str]]
"""Lines of the fields, of the initializer, and of the call."""


def carries(facts: Facts, piece: Piece) -> bool:
    """Whether there is a Swift client for an artifact: its runtime and its types are known.

    ExecuTorch's Swift package has no Vulkan.
    """
    if piece.target == "executorch" and piece.entry.get("delegate") == "vulkan":
        return False
    types = {spec.dtype for spec in (*piece.inputs, *facts.signature.outputs)}
    # Core ML's arrays are floats or int32; what is uint8 there is an image.
    known = _SCALARS.keys() - ({"int8"} if piece.target == "coreml" else set())
    single = len(piece.files) == 1 or piece.target == "coreml"
    return piece.target in _IMPORTS and types <= known and single


def files(facts: Facts) -> dict[str, str]:
    """The Swift clients of a bundle: contents by file name."""
    pieces = [piece for piece in facts.pieces if carries(facts, piece)]
    if not pieces:
        return {}
    origin = {"HEAD": head(facts)}
    found = {"Files.swift": fill(load("swift/Files.swift"), origin, what="files")}
    if facts.labels:
        rows = "".join(f"    {text(label)},\n" for label in facts.labels)
        found["Labels.swift"] = fill(
            load("swift/Labels.swift"), {**origin, "LABELS": rows}, what="labels"
        )
    if facts.picture is not None:
        found["Preprocess.swift"] = _picture(facts, facts.picture)
    return found | {f"{piece.kind}.swift": _model(facts, piece) for piece in pieces}


def _picture(facts: Facts, step: ImagePreprocess) -> str:
    quality = "none" if step.resize in ("none", "nearest") else "high" if step.antialias else "low"
    fields = {
        **picture_fields(facts, step),
        "RESIZE_WORDS": resize_words(step),
        "QUALITY": f".{quality}",
        "DIFFERENCE": difference(step),
        "RESIZES": boolean(step.resize != "none"),
    }
    return fill(load("swift/Preprocess.swift"), fields, what="preprocess")


def _model(facts: Facts, piece: Piece) -> str:
    outputs, imports = facts.signature.outputs, list(_IMPORTS[piece.target])
    write = {
        "coreml": _coreml,
        "tflite": _litert,
        "onnxruntime": _onnxruntime,
        "executorch": _executorch,
    }[piece.target]
    fields, init, call = write(piece, outputs)
    scores, takes, extra = facts.scores, facts.picture_input, ""
    classifies = takes is not None and len(piece.inputs) == 1 and piece.io in _FEEDS
    if classifies and scores is not None and scores.dtype == "float32":
        imports.append("CoreGraphics")
        own = {"FEED": _FEEDS[piece.io], "OUTPUT": f"output{outputs.index(scores)}"}
        extra = fill(load("swift/classify.swift"), own, what="classify")
    if piece.target == "coreml" and any(spec.dtype == "uint8" for spec in piece.inputs):
        imports.append("CoreVideo")
        extra += load("swift/pixel_buffer.swift")
    rows = {
        "TITLE": escape.comment(f"{piece.id}: {SCHEMES.get(piece.scheme, piece.scheme)}."),
        "HEAD": head(facts),
        "IMPORTS": "".join(f"import {name}\n" for name in sorted(imports)),
        "ID": escape.comment(piece.id),
        "KIND": piece.kind,
        "OUTPUTS": "".join(
            f"        /// {_about(s)}\n        public let output{i}: [{_scalar(s, piece)}]\n"
            for i, s in enumerate(outputs)
        ),
        "PATH": text(piece.path),
        "SHA256": text(str(piece.entry["sha256"])),
        "FIELDS": _indented(fields, 4),
        "INIT": _indented(init, 4),
        "DOCS": "".join(
            f"    ///   - input{i}: {_about(spec)}\n" for i, spec in enumerate(piece.inputs)
        ),
        "PARAMETERS": ", ".join(
            f"_ input{i}: [{_scalar(spec, piece)}]" for i, spec in enumerate(piece.inputs)
        ),
        "CHECKS": _indented(
            [
                f'try checkCount(input{i}.count, {_count(spec)}, "input {i}")'
                for i, spec in enumerate(piece.inputs)
            ],
            8,
        ),
        "CALL": _indented(call, 8),
        "EXTRA": extra,
    }
    return fill(load("swift/model.swift"), rows, what="model")


def _coreml(piece: Piece, outputs: tuple[TensorSpec, ...]) -> _Parts:
    fields = ["private let model: MLModel"]
    init = [
        "///",
        "/// - Parameter url: the .mlpackage, which is compiled first, or the .mlmodelc that Xcode",
        "///   makes of it.",
        "public init(",
        "    url: URL, configuration: MLModelConfiguration = MLModelConfiguration()",
        ") throws {",
        '    let done = url.pathExtension == "mlmodelc"',
        "    let compiled = done ? url : try MLModel.compileModel(at: url)",
        "    model = try MLModel(contentsOf: compiled, configuration: configuration)",
        "}",
    ]
    call = ["let features = try MLDictionaryFeatureProvider(dictionary: ["]
    for i, spec in enumerate(piece.inputs):
        shape = ", ".join(str(n) for n in spec.shape)
        if spec.dtype == "uint8":
            _, height, width, channels = spec.shape
            sizes = f"height: {height}, width: {width}, channels: {channels}"
            call += [
                f"    {text(spec.name)}: MLFeatureValue(",
                f"        pixelBuffer: try {piece.kind}.image(input{i}, {sizes})),",
            ]
            continue
        scalar = _scalar(spec, piece)
        call += [
            f"    {text(spec.name)}: MLFeatureValue(",
            f"        shapedArray: MLShapedArray<{scalar}>(scalars: input{i}, shape: [{shape}])),",
        ]
    call += ["])", "let answer = try model.prediction(from: features)"]
    for i, spec in enumerate(outputs):
        name, scalar = text(spec.name), _scalar(spec, piece)
        call += [
            f"guard let output{i} = answer.featureValue(for: {name})?",
            f"    .shapedArrayValue(of: {scalar}.self)?.scalars",
            f'else {{ throw ClientError.noOutput("output {i}") }}',
        ]
    return fields, init, [*call, _returned(len(outputs))]


def _litert(piece: Piece, outputs: tuple[TensorSpec, ...]) -> _Parts:
    takes = ", ".join(text(spec.name) for spec in piece.inputs)
    gives = ", ".join(text(spec.name) for spec in outputs)
    fields = [
        "private let interpreter: Interpreter",
        "private let inputs: [Int]",
        "private let outputs: [Int]",
    ]
    init = [
        "public init(url: URL, threads: Int = 1) throws {",
        "    var options = Interpreter.Options()",
        "    options.threadCount = threads",
        "    options.isXNNPackEnabled = true",
        f"    let path = try checkedPath(url, sha256: {piece.kind}.sha256)",
        "    let loaded = try Interpreter(modelPath: path, options: options)",
        "    try loaded.allocateTensors()",
        "    // By name where the file kept it, else in order.",
        "    let takes = try (0..<loaded.inputTensorCount).map { try loaded.input(at: $0).name }",
        "    let gives = try (0..<loaded.outputTensorCount).map { try loaded.output(at: $0).name }",
        f"    inputs = [{takes}].enumerated().map {{ takes.firstIndex(of: $1) ?? $0 }}",
        f"    outputs = [{gives}].enumerated().map {{ gives.firstIndex(of: $1) ?? $0 }}",
        "    interpreter = loaded",
        "}",
    ]
    call = [
        f"try interpreter.copy(bytes(input{i}), toInputAt: inputs[{i}])"
        for i in range(len(piece.inputs))
    ]
    call += ["try interpreter.invoke()"]
    for i, spec in enumerate(outputs):
        data = f"try interpreter.output(at: outputs[{i}]).data"
        call += _read(i, spec, piece, data)
    return fields, init, [*call, _returned(len(outputs))]


def _onnxruntime(piece: Piece, outputs: tuple[TensorSpec, ...]) -> _Parts:
    kinds = {
        "float32": "float",
        "int64": "int64",
        "int32": "int32",
        "int8": "int8",
        "uint8": "uInt8",
    }
    settings = sorted((piece.requires.get("without_vnni") or {}).items())
    fields = ["private let environment: ORTEnv", "private let session: ORTSession"]
    init = [
        "public init(url: URL, threads: Int = 1) throws {",
        "    environment = try ORTEnv(loggingLevel: .error)",
        "    let options = try ORTSessionOptions()",
        "    try options.setIntraOpNumThreads(Int32(threads))",
        *(
            f"    try options.addConfigEntry(withKey: {text(key)}, value: {text(value)})"
            for key, value in settings
        ),
        f"    let path = try checkedPath(url, sha256: {piece.kind}.sha256)",
        "    session = try ORTSession(env: environment, modelPath: path, sessionOptions: options)",
        "}",
    ]
    call = ["let answer = try session.run(", "    withInputs: ["]
    for i, spec in enumerate(piece.inputs):
        shape = ", ".join(str(n) for n in spec.shape)
        call += [
            f"        {text(spec.name)}: try ORTValue(",
            f"            tensorData: NSMutableData(data: bytes(input{i})),",
            f"            elementType: .{kinds[spec.dtype]}, shape: [{shape}]),",
        ]
    names = ", ".join(text(spec.name) for spec in outputs)
    call += ["    ],", f"    outputNames: [{names}], runOptions: nil)"]
    for i, spec in enumerate(outputs):
        call += [
            f"guard let value{i} = answer[{text(spec.name)}]",
            f'else {{ throw ClientError.noOutput("output {i}") }}',
            *_read(i, spec, piece, f"try value{i}.tensorData() as Data"),
        ]
    return fields, init, [*call, _returned(len(outputs))]


def _executorch(piece: Piece, outputs: tuple[TensorSpec, ...]) -> _Parts:
    fields = ["private let module: Module"]
    init = [
        "public init(url: URL) throws {",
        f"    module = Module(filePath: try checkedPath(url, sha256: {piece.kind}.sha256))",
        '    try module.load("forward")',
        "}",
    ]
    call = ["let answer: [Value] = try module.forward(["]
    for i, spec in enumerate(piece.inputs):
        shape = ", ".join(str(n) for n in spec.shape)
        call.append(f"    Tensor<{_scalar(spec, piece)}>(input{i}, shape: [{shape}]),")
    call.append("])")
    for i, spec in enumerate(outputs):
        scalar = _scalar(spec, piece)
        call.append(f"let output{i} = try Tensor<{scalar}>([answer[{i}]]).scalars()")
    return fields, init, [*call, _returned(len(outputs))]


def _read(i: int, spec: TensorSpec, piece: Piece, data: str) -> list[str]:
    """Lines that make an array of an output's bytes."""
    scalar = _scalar(spec, piece)
    return [
        f"let output{i} = try array(",
        f'    {data}, of: {scalar}.self, count: {_count(spec)}, name: "output {i}")',
    ]


def _returned(count: int) -> str:
    return f"return Outputs({', '.join(f'output{i}: output{i}' for i in range(count))})"


def _scalar(spec: TensorSpec, piece: Piece) -> str:
    if piece.target == "coreml" and spec.dtype == "int64":
        return "Int32"
    return _SCALARS[spec.dtype]


def _about(spec: TensorSpec) -> str:
    return f"{escape.comment(spec.name)}: {spec.dtype} {list(spec.shape)}"


def _count(spec: TensorSpec) -> int:
    count = 1
    for n in spec.shape:
        count *= n
    return count


def _indented(lines: list[str], by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in lines)
