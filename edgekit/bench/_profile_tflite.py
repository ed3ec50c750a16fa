"""LiteRT's profiler, with XNNPACK's own events in it.

The wheel's `Interpreter` has no profiler in Python, but `libLiteRt.so` beside it has one in its C
interface (``litert/c/litert_profiler.h``), which is called here: the file is loaded a second time,
as LiteRT's ``CompiledModel``, by the same XNNPACK. The interface has changed between versions and
does not say which it is, so it is called in those alone whose form is known.
"""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections.abc import Mapping
from ctypes import byref
from pathlib import Path
from typing import Any

from edgekit.bench._profile import Layer, Layers, Task
from edgekit.errors import UnsupportedError
from edgekit.runtime.session import Array, installed_version
from edgekit.runtime.session_tflite import TfliteSession

_KNOWN = ("2.3.",)
_CPU = 1  # kLiteRtHwAcceleratorCpu
_WRITE = 1  # kLiteRtTensorBufferLockModeWrite
_TYPE_BYTES = 512  # room for a LiteRtRankedTensorType
_OPERATOR, _IN_DELEGATE = 2, 8  # of tflite::Profiler::EventType
_Pointer, _Size = ctypes.c_void_p, ctypes.c_size_t


class _Event(ctypes.Structure):
    """ProfiledEventData of ``litert/c/litert_profiler_event.h``."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory_before", _Size * 3),
        ("memory_after", _Size * 3),
        ("operator", ctypes.c_uint64),
        ("subgraph", ctypes.c_uint64),
        ("source", ctypes.c_int),
    )


def profile(task: Task) -> Layers:
    """See `edgekit.bench._profile`."""
    found = Layers(how="LiteRT's profiler (CompiledModel)", resolution_us=1.0)
    session = TfliteSession(task.path, task.signature, task.threads)
    inputs = {session.tensor_name(i): value for i, value in session.encoded(task.feeds).items()}
    session.close()
    model = _Model(task.path, task.threads, inputs)
    model.run()
    calls: list[list[Layer]] = []
    end = time.perf_counter() + task.seconds
    while len(calls) < task.runs:
        model.start()
        begun = time.perf_counter_ns()
        model.run()
        found.profiled_ns.append(time.perf_counter_ns() - begun)
        layers, inside = _told(model.stop())
        calls.append(layers)
        found.inside_ns.extend(inside)
        if time.perf_counter() >= end:
            break
    found.add(calls)
    return found


def _told(
    events: list[tuple[str, int, int, int]],
) -> tuple[list[Layer], list[int]]:
    """Layers of one call, and what LiteRT says that all of it took, in ns."""
    layers: list[Layer] = []
    inside = []
    for tag, kind, operator, took in events:
        if kind == _IN_DELEGATE:
            layers.append((f"{operator}: {tag}", tag, "XNNPACK", took))
        elif kind == _OPERATOR and "elegate" not in tag:
            layers.append((f"{operator}: {tag}", tag, "LiteRT", took))
        elif tag == "Invoke" and kind == 1:
            inside.append(took)
    return layers, inside


class _Model:
    """A file in LiteRT's C interface, with its profiler and its buffers."""

    def __init__(self, path: Path, threads: int, inputs: Mapping[str, Array]) -> None:
        self._library = _library()
        self._kept: list[Any] = []
        self._environment = self._made("LiteRtCreateEnvironment", ctypes.c_int(0), None)
        file = ctypes.c_char_p(str(path).encode())
        model = self._made("LiteRtCreateModelFromFile", self._environment, file)
        options = self._made("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, ctypes.c_int(_CPU))
        self._option(options, b"runtime_options_string", b"enable_profiling = true\n")
        self._option(options, b"xnnpack", f"num_threads = {threads}\n".encode())
        make = "LiteRtCreateCompiledModel"
        self._model = self._made(make, self._environment, model, options)
        self._profiler = self._made("LiteRtCompiledModelGetProfiler", self._model)
        entry = self._made("LiteRtGetModelSignature", model, _Size(0))
        self._inputs = self._buffers(entry, "Input", inputs)
        self._outputs = self._buffers(entry, "Output", {})

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise UnsupportedError(
                f"tflite has no profile of its layers: LiteRT's {name} gave status {status}"
            )

    def _made(self, name: str, *arguments: Any) -> Any:
        """What a function gives through its last argument."""
        result = _Pointer()
        self._call(name, *arguments, byref(result))
        return result

    def _option(self, options: Any, identifier: bytes, toml: bytes) -> None:
        payload = ctypes.create_string_buffer(toml)
        self._kept += [payload, free := _FREE(_nothing)]
        name = ctypes.c_char_p(identifier)
        opaque = self._made("LiteRtCreateOpaqueOptions", name, payload, free)
        self._call("LiteRtAddOpaqueOptions", options, opaque)

    def _buffers(self, entry: Any, side: str, values: Mapping[str, Array]) -> Any:
        count = _Size()
        self._call(f"LiteRtGetNumSignature{side}s", entry, byref(count))
        made = []
        for index in map(_Size, range(count.value)):
            tensor = self._made(f"LiteRtGetSignature{side}TensorByIndex", entry, index)
            kind = ctypes.create_string_buffer(_TYPE_BYTES)
            self._call("LiteRtGetRankedTensorType", tensor, kind)
            needs = f"LiteRtGetCompiledModel{side}BufferRequirements"
            wanted = self._made(needs, self._model, _Size(0), index)
            make = "LiteRtCreateManagedTensorBufferFromRequirements"
            buffer = self._made(make, self._environment, kind, wanted)
            if side == "Input":
                name = ctypes.c_char_p()
                self._call("LiteRtGetTensorName", tensor, byref(name))
                self._fill(buffer, values, (name.value or b"").decode("utf-8", "replace"))
            made.append(buffer)
        return (_Pointer * len(made))(*(buffer.value for buffer in made))

    def _fill(self, buffer: Any, values: Mapping[str, Array], name: str) -> None:
        size = _Size()
        self._call("LiteRtGetTensorBufferSize", buffer, byref(size))
        if name not in values or values[name].nbytes > size.value:
            raise UnsupportedError(f"tflite has no profile of its layers: no value for {name!r}")
        raw = values[name].tobytes()
        address = _Pointer()
        self._call("LiteRtLockTensorBuffer", buffer, byref(address), ctypes.c_int(_WRITE))
        ctypes.memmove(address, raw, len(raw))
        self._call("LiteRtUnlockTensorBuffer", buffer)

    def run(self) -> None:
        """One call."""
        given, taken = self._inputs, self._outputs
        counts = _Size(len(given)), _Size(len(taken))
        make = "LiteRtRunCompiledModel"
        self._call(make, self._model, _Size(0), counts[0], given, counts[1], taken)

    def start(self) -> None:
        """Forgets what was recorded and records from now on."""
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)

    def stop(self) -> list[tuple[str, int, int, int]]:
        """Tag, type, operator and ns of each event since `start`."""
        self._call("LiteRtStopProfiler", self._profiler)
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, byref(count))
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        return [
            ((e.tag or b"").decode("utf-8", "replace"), e.type, e.operator, e.elapsed_us * 1000)
            for e in events
        ]


_FREE = ctypes.CFUNCTYPE(None, _Pointer)


def _nothing(_: Any) -> None:
    """The payload is Python's, which frees it."""


def _library() -> ctypes.CDLL:
    """LiteRT's own library out of the wheel.

    Raises:
        UnsupportedError: there is none, or of a version whose interface is not known.
    """
    version = installed_version("ai-edge-litert") or "none"
    if not version.startswith(_KNOWN):
        raise UnsupportedError(
            "tflite has no profile of its layers: LiteRT's interface is known of ai-edge-litert "
            f"{', '.join(k + 'x' for k in _KNOWN)}, and {version} is installed"
        )
    found = importlib.util.find_spec("ai_edge_litert")
    folder = Path((found and found.origin) or "").parent
    libraries = [
        path for name in ("so", "dylib") if (path := folder / f"libLiteRt.{name}").is_file()
    ]
    if not libraries:
        raise UnsupportedError(f"tflite has no profile of its layers: no libLiteRt in {folder}")
    return ctypes.CDLL(str(libraries[0]))
