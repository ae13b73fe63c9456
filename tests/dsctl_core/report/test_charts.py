"""Curves as SVG: points where they belong, few enough to be drawn, and averages without a bias."""

import re
import xml.etree.ElementTree as ET

import pytest

from dsctl_core.report.charts import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Curve, averaged, chart, text, thinned, ticks


def places(figure, kind="main"):
    found = re.findall(rf'<polyline class="{kind}"[^>]*points="([^"]*)"', figure)
    return [[tuple(map(float, place.split(","))) for place in line.split()] for line in found]


def test_a_curve_goes_from_left_to_right_and_high_values_are_above_low_ones():
    ((first, middle, last),) = places(chart("Loss", [Curve("a", [(1, 0.5), (2, 0.1), (3, 0.9)])]))
    assert first[0] == LEFT < middle[0] < last[0] <= WIDTH
    assert TOP <= last[1] < first[1] < middle[1] <= HEIGHT - BOTTOM


def test_the_horizontal_axis_says_what_it_is():
    figure = ET.fromstring(chart("Loss", [Curve("a", [(1, 0.5), (9, 0.1)])]))
    assert [label.text for label in figure.iter("text")].count("step") == 1


def test_an_amount_is_drawn_from_zero_and_another_axis_is_marked_where_it_is_cut():
    memory = [Curve("a", [(1, 482.0), (2, 484.0)])]
    ((first, last),), ((low, high),) = (places(chart("x", memory, from_zero=on)) for on in (True, False))
    bottom = HEIGHT - BOTTOM
    assert (bottom - first[1]) / (bottom - last[1]) == pytest.approx(482 / 484, abs=0.002)
    assert low[1] - high[1] > (bottom - TOP) / 2
    assert "axis cut: it begins at 481.9" in chart("x", memory) and 'class="cut"' in chart("x", memory)
    assert "cut" not in chart("x", memory, from_zero=True)
    assert "cut" not in chart("x", [Curve("a", [(1, -0.5), (2, 0.5)])])


def test_curves_of_one_chart_share_its_axes():
    one, other = places(chart("Loss", [Curve("a", [(1, 1.0), (9, 1.0)]), Curve("b", [(1, 1.0), (5, 3.0)], 1)]))
    assert one[0] == other[0]
    assert other[1][0] < one[1][0]


def test_a_figure_is_well_formed_whatever_the_run_is_called():
    curves = [Curve('<b>&"x"', [(1, 1.0), (2, 2.0)], smooth=True), Curve("y", [(3, 1.0)])]
    figure = ET.fromstring(chart("<loss> & more", curves))
    assert figure.find("figcaption").text == "<loss> & more"
    assert '<b>&"x", step 1: 1' in [title.text for title in figure.iter("title")]


@pytest.mark.parametrize("points", [[(1, 0.0)], [(1, 5.0)], [(0, -1.0)], [(1, 2.0), (2, 2.0)], [(1, 0.0), (2, 0.0)]])
def test_a_single_point_and_a_level_can_be_drawn(points):
    assert "nan" not in chart("x", [Curve("a", points)])


def test_nothing_is_drawn_of_nothing():
    assert chart("x", [Curve("a", [])]) == ""


def test_a_smooth_curve_is_drawn_as_it_is_and_averaged():
    figure = chart("x", [Curve("a", [(step, float(step % 2)) for step in range(200)], smooth=True)])
    ((*_, raw),), ((*_, mean),) = places(figure, "raw"), places(figure)
    assert raw[1] != mean[1]


def test_the_average_of_a_level_is_the_level_from_the_first_point_on():
    assert [y for _, y in averaged([(x, 3.0) for x in range(50)])] == pytest.approx([3.0] * 50)


@pytest.mark.parametrize("count", [1, 10, 600, 601, 100_000])
def test_thinning_keeps_the_ends_the_lowest_and_the_highest(count):
    points = [(float(x), float((x * 7919) % 1013)) for x in range(count)]
    found = thinned(points, 600)
    assert len(found) <= 603
    assert found == sorted(found)
    assert found[-1] == points[-1]
    heights = [y for _, y in points]
    assert {min(heights), max(heights)} <= {y for _, y in found}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.19, 0.221), (-3, 400), (1e-6, 2e-6), (0, 123456)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert low - 1e-12 <= found[0] and found[-1] <= high * (1 + 1e-9)
    assert all(len(text(value).replace("-", "").replace(".", "").lstrip("0")) <= 6 for value in found)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1234.5, "1234"),
        (2.5e-05, "2.5e-5"),
        (1e-4, "0.0001"),
        (3e8, "3e8"),
        (0.0012345, "0.001234"),
    ],
)
def test_numbers_are_said_as_people_read_them(value, said):
    assert text(value) == said
