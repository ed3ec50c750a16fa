"""ExecuTorch (``.pte``) through another delegate than XNNPACK: Vulkan or Core ML, in float.

ExecuTorch lowers to both on any system, but its builds for computers run neither. What can be told
of such a file without running it is `Through.structure`. Where Core ML gets the whole model, its
emulation gives answers too (`edgekit.targets._coreml_run`).
"""

from __future__ import annotations

import collections
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadData, UnsupportedError
from edgekit.names import FLOAT_IO
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import Placement, Stored
from edgekit.targets._common import converter_error

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan
    from edgekit.runtime.session import Session
    from edgekit.targets._executorch_file import Contents

_MOVES = ("cast", "view", "permute", "clone", "expand", "slice", "unsqueeze", "squeeze", "reshape")
_SHOWN = {"vulkan": "Vulkan", "coreml": "Core ML"}
Finding = tuple[str, bool, str]
"""A check's name, whether it holds, and what was seen."""


@dataclass(frozen=True)
class Through:
    """The ExecuTorch target through ``delegate``; see `edgekit.targets.Target`."""

    delegate: str
    id: str = "executorch"
    suffix: str = ".pte"
    schemes: tuple[str, ...] = ("fp16", "fp32")
    ios: tuple[str, ...] = (FLOAT_IO,)
    io_reason: str = "its Vulkan and Core ML delegates take a model's own tensors alone"

    @property
    def delegates(self) -> tuple[str, ...]:
        """The one that it lowers to."""
        return (self.delegate,)

    @property
    def extra(self) -> str:
        """What installs it."""
        return "executorch,coreml" if self._apple else "executorch"

    @property
    def packages(self) -> tuple[str, ...]:
        """What has to be installed."""
        return ("executorch", "coremltools") if self._apple else ("executorch",)

    @property
    def systems(self) -> dict[str, tuple[str, ...]]:
        """The oldest systems that load a file of a scheme, where the delegate is a system's."""
        return dict.fromkeys(self.schemes, self._module().SYSTEMS) if self._apple else {}

    @property
    def _apple(self) -> bool:
        return self.delegate == "coreml"

    def _module(self) -> Any:
        return importlib.import_module(f"edgekit.targets._executorch_{self.delegate}")

    def convert(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        signature: Signature,
        out: Path,
    ) -> list[Path]:
        """See `edgekit.targets.Target.convert`."""
        import contextlib

        import torch

        from edgekit.compress.graph import example_args
        from edgekit.compress.render import render
        from edgekit.targets._executorch_file import quiet
        from edgekit.targets._executorch_kernels import check_kernels
        from edgekit.targets.executorch import lowered

        module = render(program, plan, "qdq-folded", bare_pads=True)
        try:
            with quiet(), torch.no_grad():
                exported = torch.export.export(module, example_args(program), strict=False)
                partitioner = self._module().partitioner(plan.scheme)
                alike = self._module().same_bytes() if self._apple else contextlib.nullcontext()
                with alike:
                    out.write_bytes(lowered(exported, partitioner))
                check_kernels(self._read(out))
        except Exception as error:
            raise converter_error(f"executorch:{self.delegate}", error) from error
        return [out]

    def inspect(self, path: Path) -> Placement:
        """Operators as the file lists them: the delegate's by its names, those outside by theirs.

        All of them compute in float. Bytes are those of the constants in the file.
        """
        return _placement(self._read(path), _SHOWN[self.delegate])

    def stored(self, path: Path) -> list[Stored]:
        """Weights in half precision, where Core ML gets the whole model; else none are told."""
        whole = self._read(path).whole if self._apple else None
        return [] if whole is None else list(self._module().stored(whole))

    def unemulated(self, path: Path) -> str | None:
        """Why nothing here can evaluate a file; None where Core ML's emulation can.

        Raises:
            BadData: it is damaged.
        """
        if not self._apple:
            return "there is no emulation of Vulkan"
        if (whole := self._read(path).whole) is None:
            return (
                "Core ML gets only a part of the model, and ExecuTorch's own part is not emulated"
            )
        found: str | None = self._module().unemulated(whole)
        return found

    def open_session(self, path: Path, signature: Signature, threads: int) -> Session:
        """ExecuTorch's runtime where it has the delegate, else the emulation of Core ML.

        Raises:
            UnsupportedError: neither is there; `unemulated` says why.
        """
        from edgekit.runtime import session

        if session.unavailable(f"{self.id}:{self.delegate}") is None:
            return session.open_session(self.id, path, signature, threads=threads)
        if (reason := self.unemulated(path)) is not None:
            raise UnsupportedError(f"executorch {path.name}: {reason}")
        opened: Session = self._module().EmulatedDelegate(
            self._read(path).whole, signature, threads
        )
        return opened

    def structure(self, path: Path, signature: Signature, scheme: str) -> list[Finding]:
        """What can be told of a file without running it.

        Args:
            path: the file.
            signature: that it has to have.
            scheme: that it is said to have.
        """
        from executorch.runtime import Runtime

        contents = self._read(path)
        try:
            methods = Runtime.get().load_program(path).method_names
        except RuntimeError as error:
            raise BadData(f"executorch cannot load {path.name}: {error}") from error
        inside = sum(o.delegated for o in contents.operators)
        halves = [self._module().is_half(options) for options in contents.options]
        wanted = scheme == "fp16"
        held = sorted({v.dtype for v in contents.values.values() if v.data is not None})
        floats = [d for d in held if d.startswith("float")]
        name, all_ = _SHOWN[self.delegate], len(contents.operators)
        checks = [
            ("loads", "forward" in methods, f"ExecuTorch reads it; methods: {', '.join(methods)}"),
            ("delegated", inside > 0, f"{inside} of {all_} operators are in {name}"),
            ("scheme", scheme in self.schemes, f"{scheme}, of {', '.join(self.schemes)}"),
            ("precision", set(halves) == {wanted}, f"compiled for {_precision(halves)} precision"),
        ]
        for side, values, specs in (
            ("inputs", contents.inputs, signature.inputs),
            ("outputs", contents.outputs, signature.outputs),
        ):
            seen = [(v.dtype, v.shape) for v in values]
            said = ", ".join(f"{dtype} {list(shape)}" for dtype, shape in seen) or "none"
            checks.append((side, seen == [_stated(spec) for spec in specs], said))
        if inside == all_ and floats:
            allowed = "float16" if wanted else "float32"
            large = sorted({d for d in floats if d != allowed})
            checks.append(("constants", not large, f"constants are {', '.join(held)}"))
        return checks

    def _read(self, path: Path) -> Contents:
        from edgekit.targets._executorch_file import read

        return read(path, self._module().BACKEND)


def delegate_of(backend: str) -> str | None:
    """The delegate whose backend has this name in files; None for one that is not known here."""
    return next((d for d in _SHOWN if backend == Through(d)._module().BACKEND), None)


def _precision(halves: Sequence[bool]) -> str:
    said = {True: "half", False: "single"}
    return " and ".join(said[half] for half in dict.fromkeys(halves)) or "no"


def _stated(spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    return spec.dtype, tuple(spec.shape)


def _placement(contents: Contents, delegate: str) -> Placement:
    ops: collections.Counter[str] = collections.Counter()
    outside: collections.Counter[str] = collections.Counter()
    roles: collections.Counter[str] = collections.Counter()
    waste: collections.Counter[str] = collections.Counter()
    first: str | None = None
    for operator in contents.operators:
        ops[operator.kind] += 1
        moves = _plain(operator.kind).startswith(_MOVES)
        roles["move" if moves else "float"] += 1
        if moves:
            waste[operator.kind] += 1
        if not operator.delegated:
            outside[operator.kind] += 1
            first = first or f"{operator.kind} runs outside of {delegate}"
    sizes: collections.Counter[str] = collections.Counter()
    for value in contents.values.values():
        if value.data is not None:
            sizes[value.dtype] += len(value.data)
    computes = (o.kind for o in contents.operators if not _plain(o.kind).startswith(_MOVES))
    in_float = next((f"{kind} computes in float" for kind in computes), None)
    return Placement(
        ops=dict(sorted(ops.items())),
        float_ops=roles["float"],
        undelegated_ops=outside.total(),
        undelegated=dict(sorted(outside.items())),
        first_undelegated=first,
        first_fallback=first or in_float,
        bytes_by_dtype=dict(sorted(sizes.items())),
        waste=dict(sorted(waste.items())),
        ops_by_dtype=dict(sorted(roles.items())),
    )


def _plain(kind: str) -> str:
    """``aten.view_copy.default``, ``aten::view_copy.out`` and ``view_copy`` are one."""
    return kind.rpartition("::")[2].removeprefix("aten.").removeprefix("et_vk.").strip("_")
