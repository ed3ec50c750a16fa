"""Targets in line: each is converted, and proven once the answers to hold it against are known."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Final, TypeVar

__all__ = ["in_line"]

_LONGEST: Final = (
    "tflite",
    "executorch",
    "openvino",
    "coreml",
    "onnxruntime",
    "torch-mobile",
)
"""Targets by about how long converting takes. Those that take long begin first, so that no core
waits for one of them in the end."""

_Made = TypeVar("_Made")
_Proven = TypeVar("_Proven")


def in_line(
    names: Sequence[str],
    convert: Callable[[str], _Made],
    prove: Callable[[str, _Made], _Proven],
    answers: Future[Any],
    *,
    pool: ThreadPoolExecutor,
    at_a_time: int,
    abandon: Callable[[Sequence[Future[Any]]], None],
    done: Callable[[], None],
) -> Mapping[str, _Proven]:
    """Both steps for every name, some at a time; what can be proven goes before what is to be made.

    Args:
        names: targets, or ``TARGET:DELEGATE``.
        convert: the first step.
        prove: the second, which needs ``answers``.
        answers: where they end with an error, that is raised before any other.
        pool: of ``at_a_time`` threads.
        at_a_time: steps at a time.
        abandon: given what is running when an error ends it all.
        done: called after every second step.
    """
    waiting = deque(sorted(names, key=_rank))
    made: deque[tuple[str, _Made]] = deque()
    running: dict[Future[Any], tuple[str, bool]] = {}
    proven: dict[str, _Proven] = {}
    try:
        while waiting or made or running:
            while len(running) < at_a_time and (waiting or (made and answers.done())):
                if made and answers.done():
                    name, some = made.popleft()
                    running[pool.submit(prove, name, some)] = (name, True)
                else:
                    name = waiting.popleft()
                    running[pool.submit(convert, name)] = (name, False)
            pending = () if answers.done() else (answers,)
            now, _ = wait([*running, *pending], return_when=FIRST_COMPLETED)
            if answers in now or any(future.exception() for future in now):
                answers.result()
            # In the order in which they began: of several errors, the same is told each time.
            for future in [future for future in running if future.done()]:
                name, last = running.pop(future)
                if last:
                    proven[name] = future.result()
                    done()
                else:
                    made.append((name, future.result()))
    except BaseException:
        abandon(list(running))
        raise
    return proven


def _rank(name: str) -> int:
    target = name.partition(":")[0]
    return _LONGEST.index(target) if target in _LONGEST else len(_LONGEST)
