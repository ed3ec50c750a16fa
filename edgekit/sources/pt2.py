"""`.pt2`: programs saved by `torch.export.save`, loaded without ever unpickling anything.

`torch.export.load` runs whatever a file tells it to: weights flagged ``use_pickle``, the sample
inputs (pickled in every file), custom objects, and code in the graph's JSON. So the archive is
read and vetted here first, and a new one is built in memory out of nothing but raw weights and a
rebuilt graph; torch's loader sees only that one. Sample inputs are left out: shapes come from the
graph. Layout: torch/export/pt2_archive of torch 2.13.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive._package import load_pt2 as load_archive

from edgekit.errors import BadData, EdgekitError, TrustError, UnsupportedError
from edgekit.model import Model
from edgekit.signature import Signature
from edgekit.sources._pt2_graph import CleanProgram, clean_program
from edgekit.sources._vetted import parse_json, read_file, stored_members

__all__ = ["load_program", "load_pt2", "rebuild"]

MAX_JSON_BYTES = 512 * 2**20
"""A graph or configuration above this is refused before it is parsed."""

_NAME = r"[^/]+"
_KNOWN = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id"
    rf"|models/{_NAME}\.json|data/sample_inputs/{_NAME}\.pt|extra/.+"
    rf"|data/weights/(?:weight_\d+|{_NAME}_weights_config\.json)"
    rf"|data/constants/(?:tensor_\d+|{_NAME}_constants_config\.json)"
)
_REFUSED = (
    (r"data/constants/(custom_obj|opaque_obj)_.*", "custom objects, which only a pickle restores"),
    (r"data/(weights|constants)/.+\.pt", "weights in the old, pickled form"),
    (r"data/aotinductor/.*|.*\.(so|o|cpp|cubin)", "compiled code"),
    (r"serialized_.*|(.*/)?(data\.pkl|constants\.pkl|code/.*)", "a pickle"),
)
_STRIDED = 7
_SCALARS: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
}


def load_pt2(path: Path) -> Model:
    """A model out of a file that `torch.export.save` wrote.

    Inputs and outputs keep the names of forward()'s parameters and of the keys it returned; sizes
    that were dynamic are fixed to those of the example the program was exported with.

    Raises:
        BadData: unreadable, cut short, malformed, or without exactly one program.
        TrustError: a pickle, compiled code, or an archive that two readers could read differently.
        UnsupportedError: an operator, format version or kind of input that we don't take.
    """
    loaded, program = _load(path)
    module = loaded.module(check_guards=False)
    model = Model.from_module(module, _examples(program), name=path.stem)
    outputs = zip(model.signature.outputs, program.outputs, strict=True)
    named = Signature(
        model.signature.inputs, tuple(replace(spec, name=name) for spec, name in outputs)
    )
    return replace(model, signature=named)


def load_program(path: Path) -> torch.export.ExportedProgram:
    """The program itself, node by node as it was saved, without its example inputs.

    Raises:
        BadData, TrustError, UnsupportedError: as `load_pt2`.
    """
    return _load(path)[0]


def _load(path: Path) -> tuple[torch.export.ExportedProgram, CleanProgram]:
    clean, program = rebuild(read_file(path), path.name)
    try:
        # What torch.export.load calls first; when that fails, it goes on to try an older format.
        contents = load_archive(io.BytesIO(clean))
        loaded: torch.export.ExportedProgram = contents.exported_programs["model"]
        loaded.module(check_guards=False)
    except Exception as error:
        raise UnsupportedError(
            f"torch {torch.__version__} cannot load {path.name}: {_last_line(error)}",
            hint="export it again with this version of torch",
        ) from error
    return loaded, program


def rebuild(data: bytes, what: str) -> tuple[bytes, CleanProgram]:
    """The same program in an archive that holds raw weights and a vetted graph, and no pickle.

    Args:
        data: the whole file.
        what: its name, for messages.

    Raises:
        BadData, TrustError, UnsupportedError: as `load_pt2`.
    """
    members = _members(data, what)
    name = _only_program(members, what)
    program = clean_program(_text(members, f"models/{name}.json"), f"the graph of {what}")
    weights = _payloads(members, f"data/weights/{name}_weights_config.json", "weight_", what)
    constants = _payloads(members, f"data/constants/{name}_constants_config.json", "tensor_", what)
    missing = program.weights - set(weights) - set(constants)
    if missing:
        raise BadData(f"{what} lacks the weights {', '.join(sorted(missing))}")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:

        def write(member: str, content: bytes | memoryview) -> None:
            archive.writestr(zipfile.ZipInfo(f"model/{member}"), bytes(content))

        for config, directory, kind in (
            (weights, "weights", "weights"),
            (constants, "constants", "constants"),
        ):
            write(f"data/{directory}/model_{kind}_config.json", _json({"config": config}))
            for file in sorted({payload["path_name"] for payload in config.values()}):
                write(f"data/{directory}/{file}", members[f"data/{directory}/{file}"])
        write("models/model.json", _json(program.document))
        write("data/sample_inputs/model.pt", b"")
        write("archive_format", b"pt2")
        write("archive_version", b"0")
        write("byteorder", b"little")
        write(".data/version", b"6\n")
    return buffer.getvalue(), program


def _members(data: bytes, what: str) -> dict[str, memoryview]:
    """The archive's members without their common first folder, all of them known and harmless."""
    if data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise TrustError(f"{what} is a pickle, not a program of torch.export.save", hint=_AGAIN)
    members: dict[str, memoryview] = {}
    found = stored_members(data, what)
    for full, content in found.items():
        _, _, name = full.partition("/")
        for pattern, holds in _REFUSED:
            if re.fullmatch(pattern, full) or re.fullmatch(pattern, name):
                raise TrustError(f"{what} holds {holds} ({full})", hint=_AGAIN)
        if not _KNOWN.fullmatch(name):
            raise TrustError(f"{what} holds {full!r}, which no exported program has")
        members[name] = content
    roots = {full.partition("/")[0] for full in found}
    if len(roots) > 1:
        raise TrustError(f"{what} has more than one top folder: {', '.join(sorted(roots))}")
    if bytes(members.get("archive_format", b"")) != b"pt2":
        raise BadData(f"{what} is no archive of torch.export.save", hint=_AGAIN)
    if bytes(members.get("archive_version", b"")) != b"0":
        raise UnsupportedError(f"{what} has an archive version other than 0", hint=_AGAIN)
    if bytes(members.get("byteorder", b"little")) != b"little":
        raise UnsupportedError(f"{what} was written on a big-endian machine", hint=_AGAIN)
    return members


_AGAIN = "save the program again: torch.export.save(torch.export.export(model, inputs), path)"


def _only_program(members: Mapping[str, memoryview], what: str) -> str:
    names = [
        name.removeprefix("models/").removesuffix(".json")
        for name in members
        if name.startswith("models/")
    ]
    if len(names) != 1:
        raise BadData(
            f"{what} holds {len(names)} programs ({', '.join(sorted(names))}); one is wanted"
        )
    return names[0]


def _text(members: Mapping[str, memoryview], name: str) -> memoryview:
    if name not in members:
        raise BadData(f"the archive lacks {name}")
    if len(members[name]) > MAX_JSON_BYTES:
        raise TrustError(f"{name} is larger than {MAX_JSON_BYTES >> 20} MiB")
    return members[name]


def _payloads(
    members: Mapping[str, memoryview], config: str, prefix: str, what: str
) -> dict[str, dict[str, Any]]:
    """The entries of a weights or constants configuration, rebuilt; raw tensors only."""
    document = parse_json(_text(members, config), f"{config} of {what}")
    directory = config.rpartition("/")[0]
    out: dict[str, dict[str, Any]] = {}
    try:
        for name, entry in document["config"].items():
            # Any truthy value makes torch unpickle, so nothing but false will do.
            if entry["use_pickle"] is not False:
                raise TrustError(
                    f"{what} stores {name!r} as a pickle",
                    hint="export a model whose weights are plain tensors, not a subclass",
                )
            file = entry["path_name"]
            if not re.fullmatch(prefix + r"\d+", file) or f"{directory}/{file}" not in members:
                raise TrustError(f"{what} takes {name!r} from {file!r}")
            meta = _tensor_meta(entry["tensor_meta"], len(members[f"{directory}/{file}"]), name)
            out[name] = {
                "path_name": file,
                "is_param": entry["is_param"] is True,
                "use_pickle": False,
                "tensor_meta": meta,
            }
    except EdgekitError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadData(
            f"{config} of {what} is malformed: {type(error).__name__}: {error}"
        ) from error
    return out


def _tensor_meta(meta: Mapping[str, Any], stored: int, name: str) -> dict[str, Any]:
    """A tensor's description, rebuilt on the CPU; what it spans must lie within its file."""
    sizes = [_count(n, name) for n in meta["sizes"]]
    strides = [_count(n, name) for n in meta["strides"]]
    offset = _count(meta["storage_offset"], name)
    dtype = _SCALARS.get(meta["dtype"])
    if dtype is None or meta["layout"] != _STRIDED:
        raise UnsupportedError(f"weight {name!r} has a dtype or layout that no target takes")
    if len(sizes) != len(strides):
        raise BadData(f"weight {name!r} has {len(sizes)} sizes and {len(strides)} strides")
    last = sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    needed = 0 if 0 in sizes else (offset + last + 1) * dtype.itemsize
    if needed > stored or stored % dtype.itemsize:
        raise BadData(f"weight {name!r} needs {needed} bytes; the file holds {stored} for it")
    return {
        "dtype": meta["dtype"],
        "sizes": [{"as_int": n} for n in sizes],
        "requires_grad": meta["requires_grad"] is True,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": n} for n in strides],
        "storage_offset": {"as_int": offset},
        "layout": _STRIDED,
    }


def _count(size: Mapping[str, Any], name: str) -> int:
    number = size["as_int"]
    if type(number) is not int or not 0 <= number < 2**48:
        raise BadData(f"weight {name!r} has the size {number!r}")
    return number


def _examples(program: CleanProgram) -> dict[str, torch.Tensor]:
    """Inputs to learn the signature with: zeros index every table, ones mask nothing."""
    examples = {}
    for name, shape, number in zip(program.inputs, program.shapes, program.dtypes, strict=True):
        dtype = _SCALARS.get(number)
        if dtype is None:
            raise UnsupportedError(f"input {name!r} has a dtype that no target takes")
        fill = torch.ones if "mask" in name.lower() else torch.zeros
        examples[name] = fill(shape, dtype=dtype)
    return examples


def _json(document: Any) -> bytes:
    return json.dumps(document, allow_nan=False).encode()


def _last_line(error: BaseException) -> str:
    """The innermost complaint: torch wraps it in the text of the whole node."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
