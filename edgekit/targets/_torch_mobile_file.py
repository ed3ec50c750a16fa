"""Writing a ``.ptl`` file so that equal models give equal bytes.

torch's writer adds the sources for the full interpreter, positions in files of the machine that it
ran on, and a number in class names that counts what the process had compiled before; none of that
is used by the lite interpreter, and none is kept.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct

import torch

_MANGLED = re.compile(r"\.___torch_mangle_\d+(?=[. ])")
_WRITERS_OWN = ("version", "byteorder", ".data/serialization_id")


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
