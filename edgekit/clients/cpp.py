"""C++ clients: one header per artifact, over the runtime's own C or C++ interface."""

from __future__ import annotations

from edgekit.clients import _escape as escape
from edgekit.clients._escape import cpp as text
from edgekit.clients._facts import Facts, Piece
from edgekit.clients._picture import boolean, picture_fields
from edgekit.clients._template import fill, load
from edgekit.clients._words import head
from edgekit.names import NHWC_IO, PICTURE_IO, SCHEMES
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.signature import TensorSpec

__all__ = ["NEEDS", "files"]

NEEDS = {
    "tflite": "LiteRT's C interface: headers litert/c, library LiteRt",
    "openvino": "OpenVINO's C++ interface: openvino/openvino.hpp, by its CMake package",
    "onnxruntime": "ONNX Runtime's C interface: onnxruntime_c_api.h, library onnxruntime",
    "executorch": "ExecuTorch's C++ interface: extension/module, by its CMake package",
    "torch-mobile": "libtorch's lite interpreter: torch/csrc/jit/mobile, by its CMake package",
}
"""Targets that have a C++ client, and what it is compiled against."""

_INCLUDES = {
    "tflite": [
        "<algorithm>",
        '"litert/c/litert_common.h"',
        '"litert/c/litert_compiled_model.h"',
        '"litert/c/litert_environment.h"',
        '"litert/c/litert_model.h"',
        '"litert/c/litert_options.h"',
        '"litert/c/litert_tensor_buffer.h"',
        '"litert/c/litert_tensor_buffer_requirements.h"',
    ],
    "openvino": ["<map>", "<openvino/openvino.hpp>"],
    "onnxruntime": ["<onnxruntime_c_api.h>"],
    "executorch": [
        "<executorch/extension/module/module.h>",
        "<executorch/extension/tensor/tensor.h>",
    ],
    "torch-mobile": [
        "<ATen/Context.h>",
        "<ATen/Parallel.h>",
        "<ATen/ops/from_blob.h>",
        "<c10/core/InferenceMode.h>",
        "<torch/csrc/jit/mobile/import.h>",
        "<torch/csrc/jit/mobile/module.h>",
    ],
}

_FINDS = {
    "tflite": """find_path(LITERT_INCLUDE litert/c/litert_compiled_model.h)
find_library(LITERT_LIBRARY LiteRt)
if(LITERT_INCLUDE AND LITERT_LIBRARY)
{targets}
else()
  message(STATUS "LiteRT's headers or library were not found: {names} left out")
endif()""",
    "openvino": """find_package(OpenVINO QUIET COMPONENTS Runtime)
if(OpenVINO_FOUND)
{targets}
else()
  message(STATUS "OpenVINO was not found: {names} left out")
endif()""",
    "onnxruntime": """find_path(ONNXRUNTIME_INCLUDE onnxruntime_c_api.h PATH_SUFFIXES onnxruntime)
find_library(ONNXRUNTIME_LIBRARY onnxruntime)
if(ONNXRUNTIME_INCLUDE AND ONNXRUNTIME_LIBRARY)
{targets}
else()
  message(STATUS "ONNX Runtime's header or library was not found: {names} left out")
endif()""",
    "executorch": """find_package(executorch QUIET)
if(TARGET executorch::runtime)
{targets}
else()
  message(STATUS "ExecuTorch was not found: {names} left out")
endif()""",
    "torch-mobile": """find_package(Torch QUIET)
if(TORCH_LIBRARIES)
{targets}
else()
  message(STATUS "libtorch was not found: {names} left out")
endif()""",
}

_LINKS = {
    "tflite": """  target_include_directories({module} PRIVATE ${{LITERT_INCLUDE}})
  target_link_libraries({module} PRIVATE ${{LITERT_LIBRARY}})""",
    "openvino": """  target_link_libraries({module} PRIVATE openvino::runtime)""",
    "onnxruntime": """  target_include_directories({module} PRIVATE ${{ONNXRUNTIME_INCLUDE}})
  target_link_libraries({module} PRIVATE ${{ONNXRUNTIME_LIBRARY}})""",
    "executorch": """  target_link_libraries(
    {module} PRIVATE executorch::runtime executorch::kernels_optimized
    executorch::kernels_quantized executorch::backend_xnnpack executorch::threadpool)""",
    "torch-mobile": """  target_link_libraries({module} PRIVATE ${{TORCH_LIBRARIES}})""",
}

_TYPES = {
    "float32": "float32",
    "float16": "float16",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint8": "uint8",
    "bool": "boolean",
}

_BORDERS = {PICTURE_IO: "pixels", NHWC_IO: "channels_last"}


def files(facts: Facts) -> dict[str, str]:
    """The C++ clients of a bundle: contents by file name."""
    pieces = [piece for piece in facts.pieces if piece.target in NEEDS]
    if not pieces:
        return {}
    origin = {"HEAD": head(facts)}
    found = {
        "CMakeLists.txt": _cmake(facts, pieces),
        "client.hpp": fill(load("cpp/client.hpp"), origin, what="client"),
        "main.cpp": _main(facts),
    }
    if facts.labels:
        rows = "".join(f"\n      {text(label)}," for label in facts.labels)
        found["labels.hpp"] = fill(
            load("cpp/labels.hpp"), {**origin, "LABELS": f"{rows}\n  "}, what="labels"
        )
    if facts.picture is not None:
        found["preprocess.hpp"] = _picture(facts, facts.picture)
    return found | {f"{piece.module}.hpp": _model(facts, piece) for piece in pieces}


def _picture(facts: Facts, step: ImagePreprocess) -> str:
    fields = {
        **picture_fields(facts, step),
        "RESIZE": step.resize,
        "ANTIALIAS": boolean(step.antialias),
    }
    return fill(load("cpp/preprocess.hpp"), fields, what="preprocess")


def _main(facts: Facts) -> str:
    takes = facts.picture_input if len(facts.signature.inputs) == 1 else None
    scores = facts.scores
    if scores is not None and scores.dtype != "float32":
        scores = None
    feeds = load("cpp/feeds_arrays")
    if takes is not None:
        feeds = fill(load("cpp/feeds_picture"), {"INPUT": text(takes.name)}, what="feeds")
    show = load("cpp/show_arrays")
    if scores is not None:
        show = fill(load("cpp/show_scores"), {"OUTPUT": text(scores.name)}, what="show")
    used = (['"labels.hpp"'] if facts.labels else []) + (
        ['"preprocess.hpp"'] if facts.picture is not None else []
    )
    fields = {
        "HEAD": head(facts),
        "SOURCE": "PICTURE" if takes is not None else "ARRAYS.npz",
        "SHOWN": "the outputs" if scores is None else "the best labels",
        "INCLUDES": _includes(used),
        "FEEDS": feeds,
        "SHOW": show,
        "GOLDEN": _golden(facts),
    }
    return fill(load("cpp/main.cpp"), fields, what="main")


def _golden(facts: Facts) -> str:
    if facts.golden is None:
        return '    throw std::runtime_error("this bundle has no golden vectors");\n'
    takes, pictures = facts.picture_input, ""
    if facts.golden_pictures is not None and takes is not None:
        names = {"FILE": text(facts.golden_pictures), "INPUT": text(f"input.{takes.name}")}
        pictures = fill(load("cpp/golden_pictures"), names, what="golden pictures")
    fields = {
        "PIXELS": _or_null(facts.golden_of.get(PICTURE_IO)),
        "LAST": _or_null(facts.golden_of.get(NHWC_IO)),
        "TENSORS": text(facts.golden[0]),
        "PICTURES": pictures,
        "BATCH": str(facts.signature.inputs[0].shape[0]),
    }
    return fill(load("cpp/golden"), fields, what="golden")


def _or_null(name: str | None) -> str:
    return "nullptr" if name is None else text(name)


def _model(facts: Facts, piece: Piece) -> str:
    body = load(f"cpp/body_{piece.target.replace('-', '_')}.hpp").rstrip("\n")
    own = {"KIND": piece.kind}
    if piece.target == "onnxruntime":
        settings = piece.requires.get("without_vnni") or {}
        own["SETTINGS"] = "".join(
            f"    if (lacks_vnni()) check(api().AddSessionConfigEntry(options_, {text(name)}, "
            f"{text(value)}));\n"
            for name, value in sorted(settings.items())
        )
    body = fill(body, own, what=piece.target)
    fields = {
        "TITLE": escape.comment(f"{piece.id}: {SCHEMES.get(piece.scheme, piece.scheme)}."),
        "HEAD": head(facts),
        "INCLUDES": _includes(_INCLUDES[piece.target]).rstrip("\n"),
        "ID": escape.comment(piece.id),
        "KIND": piece.kind,
        "PATH": text(piece.path),
        "LIMIT_DB": escape.number(piece.limit_db),
        "BORDER": _BORDERS.get(piece.io, "tensor"),
        "NEEDS_VNNI": boolean(any(entry.startswith("x86_64:") for entry in piece.isa)),
        "INPUTS": _specs(piece.inputs),
        "OUTPUTS": _specs(facts.signature.outputs),
        "BODY": body,
    }
    return fill(load("cpp/model.hpp"), fields, what="model")


def _cmake(facts: Facts, pieces: list[Piece]) -> str:
    blocks = []
    for target in dict.fromkeys(piece.target for piece in pieces):
        mine = [piece for piece in pieces if piece.target == target]
        targets = "\n".join(
            f"  edge_client({piece.module} {piece.kind})\n"
            + _LINKS[target].format(module=piece.module)
            for piece in mine
        )
        names = " ".join(piece.module for piece in mine)
        blocks.append("\n" + _FINDS[target].replace("{targets}", targets).replace("{names}", names))
    fields = {"HEAD": head(facts), "TARGETS": "\n".join(blocks)}
    return fill(load("cpp/CMakeLists.txt"), fields, what="cmake")


def _specs(specs: tuple[TensorSpec, ...]) -> str:
    rows = []
    for spec in specs:
        shape = ", ".join(str(n) for n in spec.shape)
        rows.append(f"\n        {{{text(spec.name)}, {{{shape}}}, Type::{_TYPES[spec.dtype]}}},")
    return "".join(rows) + "\n    "


def _includes(names: list[str]) -> str:
    return "".join(f"#include {name}\n" for name in names)
