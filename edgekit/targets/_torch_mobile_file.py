"""Writing a ``.ptl`` file, so that equal models give equal bytes.

torch's writer adds the sources for the full interpreter, positions in files of the machine that it
ran on, and a number in class names that counts what the process had compiled before; none of that
is used by the lite interpreter, and none is kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickletools
import re
import struct
from collections.abc import Iterator

import torch

from edgekit.runtime.ptl import STATED
from edgekit.signature import Signature

_MANGLED = re.compile(r"\.___torch_mangle_\d+(?=[. ])")
_WRITERS_OWN = ("version", "byteorder", ".data/serialization_id")


@contextlib.contextmanager
def qnnpack() -> Iterator[None]:
    """torch packs weights for QNNPACK meanwhile."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def saved(
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    signature: Signature,
    *,
    freeze: bool = False,
) -> bytes:
    """The file of a module.

    Args:
        module: in eval mode; packed for QNNPACK.
        args: example inputs.
        signature: stated in the file, which has no other place for names and shapes.
        freeze: takes the layers apart. A quantized layer of torch's is restored by code of its own,
            which a reader would have to run.
    """
    stated = json.dumps(signature.to_json(), sort_keys=True)
    # A unit of its own, so that names do not count what the process had compiled before.
    unit = torch._C.CompilationUnit()
    traced = torch.jit.trace(module, args, check_trace=False, _compilation_unit=unit)
    if freeze:
        traced = torch.jit.freeze(traced)
    return canonical_bytes(traced._save_to_buffer_for_lite_interpreter({STATED: stated}))


def canonical_bytes(written: bytes) -> bytes:
    """What `torch.jit.ScriptModule._save_for_lite_interpreter` wrote, without what differs."""
    source = torch._C.PyTorchFileReader(io.BytesIO(written))
    out = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(out)
    for name in source.get_all_records():
        left_out = name.startswith(("code/", "traced_inputs")) or name.endswith(".debug_pkl")
        if left_out or name in _WRITERS_OWN:
            continue
        data = source.get_record(name)
        if name.endswith(".pkl"):
            data = _unmangled(data)
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return out.getvalue()


def _unmangled(data: bytes) -> bytes:
    """A pickle with the counting part of class names removed."""
    ops = list(pickletools.genops(data))
    ends = [*(position for _, _, position in ops[1:]), len(data)]
    parts = []
    for (op, arg, start), end in zip(ops, ends, strict=True):
        part = data[start:end]
        if isinstance(arg, str) and _MANGLED.search(arg):
            text = _MANGLED.sub("", arg)
            if op.name == "BINUNICODE":
                part = b"X" + struct.pack("<I", len(text.encode())) + text.encode()
            else:  # a class, its module and its name in a line each
                assert op.name == "GLOBAL"
                part = b"c" + text.replace(" ", "\n").encode() + b"\n"
        parts.append(part)
    return b"".join(parts)
