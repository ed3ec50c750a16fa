"""Targets in line: what is converted first, when it is proven, and which error is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from edgekit.export.line import in_line


class Line:
    """A line of two at a time, with what happened in it."""

    def __init__(self, answers: Future[Any]) -> None:
        self.answers, self.seen, self.left = answers, list[str](), list[Sequence[Future[Any]]]()
        self.ended = 0

    def run(
        self,
        names: Sequence[str],
        convert: Callable[[str], Any] | None = None,
        prove: Callable[[str, Any], Any] | None = None,
        at_a_time: int = 1,
    ) -> Any:
        def first(name: str) -> str:
            self.seen.append(f"convert {name}")
            return name if convert is None else convert(name)

        def second(name: str, made: str) -> str:
            self.seen.append(f"prove {name}")
            return made.upper() if prove is None else prove(name, made)

        with ThreadPoolExecutor(at_a_time) as pool:
            return in_line(
                names,
                first,
                second,
                self.answers,
                pool=pool,
                at_a_time=at_a_time,
                abandon=self.left.append,
                done=self._done,
            )

    def _done(self) -> None:
        self.ended += 1


def known() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result("answers")
    return future


def test_long_ones_begin_and_are_proven_before_the_next_is_made() -> None:
    line = Line(known())
    made = line.run(["torch-mobile", "executorch:vulkan", "null", "tflite"])
    assert made == {n: n.upper() for n in ("torch-mobile", "executorch:vulkan", "null", "tflite")}
    order = ["tflite", "executorch:vulkan", "torch-mobile", "null"]
    assert line.seen == [f"{step} {name}" for name in order for step in ("convert", "prove")]
    assert line.ended == 4 and line.left == []


def test_nothing_waits_for_the_answers_but_proofs() -> None:
    answers: Future[Any] = Future()
    line = Line(answers)
    converted = threading.Semaphore(0)

    def convert(name: str) -> str:
        converted.release()
        if name == "onnxruntime":  # the last of them
            answers.set_result("answers")
        return name

    line.run(["onnxruntime", "openvino", "tflite"], convert)
    assert line.seen[:3] == ["convert tflite", "convert openvino", "convert onnxruntime"]
    assert sorted(line.seen[3:]) == ["prove onnxruntime", "prove openvino", "prove tflite"]


def test_where_the_answers_are_no_good_that_is_said_before_any_other_error() -> None:
    answers: Future[Any] = Future()
    line = Line(answers)

    def convert(name: str) -> str:
        threading.Timer(0.05, answers.set_exception, [ValueError("the model gives NaN")]).start()
        raise KeyError(name)

    with pytest.raises(ValueError, match="NaN"):
        line.run(["tflite", "openvino"], convert)
    assert line.seen == ["convert tflite"] and len(line.left) == 1


def test_an_error_abandons_what_is_running() -> None:
    line = Line(known())
    go = threading.Event()

    def convert(name: str) -> str:
        if name == "tflite":
            assert go.wait(10)
            return name
        raise KeyError(name)

    line.left = Abandoned(go)
    with pytest.raises(KeyError, match="executorch"):
        line.run(["executorch", "tflite", "openvino"], convert, at_a_time=2)
    ((running,),) = line.left
    assert running.result() == "tflite"
    assert sorted(line.seen) == ["convert executorch", "convert tflite"]


def test_of_several_errors_the_first_to_have_begun_is_told() -> None:
    for _ in range(10):
        answers: Future[Any] = Future()
        line = Line(answers)
        both = threading.Barrier(2)

        def convert(name: str, both: threading.Barrier = both) -> str:
            both.wait(10)
            raise KeyError(name)

        threading.Timer(0.02, answers.set_result, ["answers"]).start()
        with pytest.raises(KeyError, match="tflite"):
            line.run(["openvino", "tflite"], convert, at_a_time=2)


class Abandoned(list[Any]):
    """Lets go what waits for it."""

    def __init__(self, go: threading.Event) -> None:
        self._go = go

    def append(self, running: Any) -> None:
        super().append(running)
        self._go.set()
