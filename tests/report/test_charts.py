"""Drawing: scales, ticks, labels that keep apart, the Pareto front, lanes."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.report import figures
from edgekit.report.charts.curves import _apart
from edgekit.report.charts.lineage import Node, _lanes
from edgekit.report.charts.svg import SIZE, Box, Placer, Scale, number, shorten, tag, width_of
from edgekit.report.charts.tradeoff import Point, fronted

numbers = st.floats(-1e6, 1e6, allow_nan=False)
STEADY = settings(max_examples=50, derandomize=True, deadline=None)


@STEADY
@given(st.lists(numbers, min_size=1, max_size=9), st.booleans())
def test_a_scale_keeps_its_values_and_ticks_inside(values: list[float], zero: bool) -> None:
    values = [abs(v) for v in values] if zero else values
    scale = Scale.over(values, 10.0, 90.0, zero=zero)
    assert all(9.99 <= scale(v) <= 90.01 for v in values)
    ticks = scale.ticks(5)
    assert all(9.9 <= scale(t) <= 90.1 for t in ticks) and len(ticks) <= 12
    assert ticks == sorted(set(ticks))


def test_far_apart_values_get_a_logarithmic_scale() -> None:
    scale = Scale.over([1.0, 100.0], 0, 100, zero=True)
    assert scale.log and scale.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert not Scale.over([1.0, 10.0], 0, 100, zero=True).log
    assert not Scale.over([0.0, 100.0], 0, 100, zero=True).log


def test_equal_values_have_room_around_them() -> None:
    scale = Scale.over([99.5, 99.5], 0, 100, least=2.0, bounds=(0, 100))
    assert scale.low < 98.6 and scale.high == 100


@STEADY
@given(st.lists(st.tuples(st.floats(60, 440), st.floats(60, 260)), min_size=1, max_size=9))
def test_labels_keep_apart(places: list[tuple[float, float]]) -> None:
    placer = Placer(Box(0, 0, 520, 320))
    boxes = [placer.place(x, y, "onnxruntime", gap=8)[0] for x, y in places]
    for a, b in itertools.combinations(boxes, 2):
        assert a.overlap(b) < 0.01


@STEADY
@given(st.lists(st.floats(20, 180), min_size=1, max_size=8))
def test_labels_of_curves_keep_apart_in_order(levels: list[float]) -> None:
    found = _apart(levels, 18, 172)
    order = sorted(range(len(levels)), key=lambda i: (levels[i], i))
    gaps = [found[b] - found[a] for a, b in itertools.pairwise(order)]
    assert all(gap > SIZE * 1.2 - 0.01 for gap in gaps)


def test_the_front_is_what_nothing_beats() -> None:
    points = [
        Point("fast", 0, 1.0, 100, 90.0),
        Point("slow", 0, 2.0, 100, 90.0),
        Point("exact", 0, 3.0, 200, 95.0),
        Point("tiny", 0, 9.0, 50, 80.0),
        Point("bad", 0, 9.5, 210, 94.0),
        Point("untimed", 0, None, 1, 99.0),
    ]
    assert [p.label for p in fronted(points) if p.front] == ["fast", "exact", "tiny"]
    twins = [Point("a", 0, 1.0, 1, 90.0), Point("b", 1, 1.0, 1, 90.0)]
    assert all(p.front for p in fronted(twins))
    # One quantity alone has a winner and no front.
    assert not any(p.front for p in fronted([Point("a", 0, None, 1, None)]))


def test_lines_that_run_beside_each_other_have_lanes_of_their_own() -> None:
    nodes = [
        Node("a", "a", "stage", "", ""),
        Node("b", "b", "stage", "", "", ("a",)),
        Node("c", "c", "stage", "", "", ("a", "b")),
        Node("d", "d", "stage", "", "", ("c",)),
    ]
    lanes = _lanes(nodes, {n.id: i for i, n in enumerate(nodes)})
    assert lanes["a"] != lanes["b"] and lanes["c"] == 0


def test_what_is_drawn_is_escaped() -> None:
    made = str(tag("text", "<b>&", x=1.0, aria_label='"><script>'))
    assert made == '<text x="1" aria-label="&#34;&gt;&lt;script&gt;">&lt;b&gt;&amp;</text>'


@pytest.mark.parametrize(
    ("value", "said"), [(-0.001, "0"), (1.0, "1"), (2.345, "2.35"), (100.0, "100"), (0.1, "0.1")]
)
def test_coordinates_are_short(value: float, said: str) -> None:
    assert number(value) == said or math.isclose(float(number(value)), float(said), abs_tol=0.011)


@STEADY
@given(st.text(max_size=60), st.floats(20, 300))
def test_short_names_fit(name: str, room: float) -> None:
    short = shorten(name, room)
    assert width_of(short) <= room
    assert short == name or "…" in short


def test_figures_have_units_and_three_figures() -> None:
    assert figures.size(123) == "123 B" and figures.size(1536) == "1.50 KiB"
    assert figures.size(123_456_789) == "118 MiB" and figures.size(None) == figures.NONE
    assert figures.ms(0.01234) == "0.012 ms" and figures.ms(123.4) == "123 ms"
    assert figures.duration(61.2) == "1 min 1 s" and figures.duration(7200) == "2 h 0 min"
    assert figures.percent(97.777) == "97.78 %"
    assert figures.plain({"a": [1, 2.5, None]}) == "a 1, 2.5, none"
