"""The memory of this process, in bytes (proc(5): status, smaps_rollup, clear_refs)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from edgekit.bench import _files
from edgekit.errors import BadData

__all__ = ["PeakMemory", "memory", "pss", "reported"]

_KIB = 1024
_ROOT = Path("/")
_BUFFER_SIZES = 8  # of ExecutionPlan in ExecuTorch's program.fbs: non_const_buffer_sizes


def memory(root: Path = _ROOT) -> dict[str, int]:
    """``VmHWM``, ``VmRSS`` and ``VmSwap``, 0 where the kernel doesn't tell.

    Without /proc, as on a Mac, only the high-water mark is known, and stands for both.
    """
    found = _files.fields(root, "proc/self/status")
    if not found:
        mark = _high_water_mark()
        return {"VmHWM": mark, "VmRSS": mark, "VmSwap": 0}
    return {key: _bytes(found.get(key)) or 0 for key in ("VmHWM", "VmRSS", "VmSwap")}


def _high_water_mark() -> int:
    import resource

    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark if sys.platform == "darwin" else mark * _KIB


def pss(root: Path = _ROOT) -> int | None:
    """Memory with what is shared counted by its share (Pss and SwapPss); None where unknown.

    The runtime's library that another process also has loaded counts half.
    """
    found = _files.fields(root, "proc/self/smaps_rollup")
    held = _bytes(found.get("Pss"))
    return None if held is None else held + (_bytes(found.get("SwapPss")) or 0)


def _bytes(stated: str | None) -> int | None:
    words = (stated or "").split()
    return int(words[0]) * _KIB if words and words[0].isdigit() else None


def reported(target: str, path: Path) -> dict[str, Any] | None:
    """What the runtime itself states of its memory; None: nothing, as most do.

    ExecuTorch allocates exactly what its file plans (``planned_bytes``): the tensors outside of
    delegates, which have memory of their own.
    """
    if target != "executorch":
        return None
    from edgekit.bench import _flat

    try:
        program = _flat.root(path.read_bytes(), identifier=None)
        plans = [sum(plan.numbers(_BUFFER_SIZES, "<q")) for plan in program.tables(1)]
    except (BadData, OSError):
        return None
    return {"planned_bytes": max(plans)} if plans else None


class PeakMemory:
    """Follows the largest memory the process held, in RAM and in swap, since it was created.

    The kernel's high-water mark counts RAM alone, and zram moves pages out of it, so samples of RAM
    plus swap stand beside it: the larger of the two counts.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        before = memory(root)
        self.start = before["VmRSS"] + before["VmSwap"]
        self.process_peak = max(before["VmHWM"], self.start)
        self.reset = _reset_high_water_mark(root)
        self.peak = self.start

    def sample(self) -> None:
        """Looks now; the high-water mark covers what happened since the last look."""
        now = memory(self._root)
        mark = now["VmHWM"] if self.reset else now["VmRSS"]
        self.peak = max(self.peak, mark, now["VmRSS"] + now["VmSwap"])
        self.process_peak = max(self.process_peak, self.peak, now["VmHWM"])


def _reset_high_water_mark(root: Path) -> bool:
    """Sets VmHWM back to VmRSS, so that importing's peak doesn't hide the model's."""
    try:
        (root / "proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
