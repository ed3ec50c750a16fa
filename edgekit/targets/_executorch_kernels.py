"""Kernels for operators outside of ExecuTorch's delegates.

The exporter writes any operator that torch has an out variant of. Whether a runtime has a kernel
for it shows when the file is loaded, on the phone, as error 0x14.
"""

from __future__ import annotations

from edgekit.errors import UnsupportedError
from edgekit.targets._executorch_file import Contents

__all__ = ["check_kernels"]


def check_kernels(contents: Contents) -> None:
    """Refuses a program with operators that ExecuTorch's own kernels don't have.

    Raises:
        UnsupportedError: names them.
    """
    outside = {o.kind for o in contents.operators if not o.delegated}
    if not outside:
        return
    absent = sorted(outside - _registered())
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise UnsupportedError(
            f"executorch: its portable kernels have no {', '.join(absent[:3])}{more}, and no "
            "delegate takes it: a phone could not load the file",
            hint="replace the operator in the model, or leave this target out with --target",
        )


def _registered() -> set[str]:
    """Names such as ``aten::cumsum.out`` of all kernels in this build, the portable ones."""
    from executorch.runtime import Runtime

    return set(Runtime.get().operator_registry.operator_names)
