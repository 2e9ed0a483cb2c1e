"""The numbers of the charts against brute force, and what is drawn against the numbers."""

import itertools
import re

import numpy as np
import pytest
from result_directories import inspection

from iapo_jax.evaluation.intervals import Estimate, resample
from iapo_jax.evaluation.metrics import Outcomes
from iapo_jax.information.inspection import Inspection
from iapo_jax.report.charts import (
    INKS,
    Curve,
    Point,
    curves,
    frontier,
    histogram,
    style_of,
    swatch,
)
from iapo_jax.report.series import (
    Band,
    accuracy_within,
    information_curve,
    length_counts,
    length_edges,
    pareto_front,
    seed_band,
)

# ------------------------------------------------------------------ the numbers


def test_a_band_is_from_the_lowest_to_the_highest_seed():
    steps, values = np.array([1, 2, 3]), np.array([[1.0, 5, 3], [3, 1, 3], [2, 3, 9]])
    band = seed_band(steps, values)
    np.testing.assert_allclose(band, [[1, 2, 3], [2, 3, 5], [1, 1, 3], [3, 5, 9]])


def test_one_seed_has_no_band():
    band = seed_band(np.array([1, 2]), np.array([[4.0, 5.0]]))
    assert band.middle.tolist() == [4, 5] and np.isnan([band.low, band.high]).all()


def test_smoothing_is_the_mean_of_so_many_steps_and_of_a_rest():
    """Of 5 steps by 2: means of (1, 2), (3, 4) and 5, each at its last step."""
    values = np.array([[1.0, 3, 5, 9, 10], [3, 3, 5, 7, 20]])
    band = seed_band(np.arange(1, 6), values, smooth=2)
    np.testing.assert_allclose(band, [[2, 4, 5], [2.5, 6.5, 15], [2, 6, 10], [3, 7, 20]])


def test_a_step_without_a_value_is_a_gap_and_not_a_zero():
    values = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]])
    band = seed_band(np.arange(3), values)
    assert np.isnan(band.middle).tolist() == [False, True, False]


@pytest.mark.parametrize("seed", range(20))
def test_the_pareto_front_is_what_no_point_beats(seed):
    """By brute force over all pairs; few values, so that ties occur."""
    rng = np.random.default_rng(seed)
    cost, gain = rng.integers(0, 6, (2, 12)).astype(float)

    def beats(a, b):
        return (
            cost[a] <= cost[b] and gain[a] >= gain[b] and (cost[a], gain[a]) != (cost[b], gain[b])
        )

    kept = {b for b in range(12) if not any(beats(a, b) for a in range(12))}
    front = pareto_front(cost, gain)
    assert set(front.tolist()) == kept and len(front) == len(kept)
    assert (np.diff(cost[front]) >= 0).all()


@pytest.mark.parametrize("longest", [1, 7, 24, 25, 96, 512, 2048, 32768])
def test_bars_are_few_equal_and_hold_every_length(longest):
    edges = length_edges(longest)
    width = np.diff(edges)
    assert len(set(width)) == 1 and len(width) <= 24
    assert str(int(width[0])).rstrip("0") in {"1", "2", "5"}
    assert edges[0] == 0.5 and edges[-1] > longest >= edges[-2]
    length = np.arange(1, longest + 1)
    assert length_counts(length, length > 0, edges).sum() == longest


def test_counts_are_those_by_hand():
    length, correct = np.array([1, 2, 3, 4, 4]), np.array([True, False, True, True, False])
    counts = length_counts(length, correct, np.array([0.5, 2.5, 4.5]))
    assert counts.tolist() == [[1, 2], [1, 1]]


def inspected(told, prompt="p", after=0):
    return Inspection(**inspection(prompt, told, after=after))


def test_information_by_position_of_as_many_tokens_as_bins():
    one = information_curve([inspected([0, 1, 2, 3], after=3)], bins=4)
    np.testing.assert_allclose(one.middle, [0, 1, 2, 3])
    np.testing.assert_allclose(one.x, [0.125, 0.375, 0.625, 0.875])
    assert np.isnan(one.low).all()  # one problem: nothing to resample


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 23])
def test_information_by_position_keeps_the_mean(count):
    """Whatever the lengths: bins of equal width average to the mean of the tokens."""
    told = np.random.default_rng(count).normal(size=count)
    assert information_curve([inspected(told)]).middle.mean() == pytest.approx(told.mean())


def test_information_by_position_of_tokens_that_straddle_bins():
    """3 tokens on 2 bins: the middle one lies half in each. (a + b/2) / 1.5 by hand."""
    middle = information_curve([inspected([3, 6, 9])], bins=2).middle
    np.testing.assert_allclose(middle, [(3 + 3) / 1.5, (3 + 9) / 1.5])


def test_information_bands_resample_problems_whole():
    """Against percentiles by hand; two completions of one problem are one problem."""
    values = {"a": [[1.0, 0.0], [3.0, 0.0]], "b": [[4.0, 2.0]], "c": [[0.0, 1.0]]}
    seen = [inspected(told, prompt) for prompt, many in values.items() for told in many]
    band = information_curve(seen, bins=2)
    np.testing.assert_allclose(band.middle, [2.0, 0.75])
    sums, counts = np.array([[4.0, 0], [4, 2], [0, 1]]), np.array([2, 1, 1])
    spread = [w @ sums / (w @ counts) for w in resample(3).problems]
    np.testing.assert_allclose([band.low, band.high], np.percentile(spread, [2.5, 97.5], axis=0))


def test_no_thinking_is_no_information():
    assert np.isnan(information_curve([inspected([], after=3)]).middle).all()


@pytest.mark.parametrize("banded", [True, False])
def test_accuracy_within_a_budget_by_hand(banded):
    one = Outcomes(
        *(np.array([[True, False], [True, True]]), np.array([[1, 2], [3, 4]])),
        *(np.ones((2, 2), bool), np.zeros((2, 2), int)),
    )
    band = accuracy_within([one, one], banded=banded)
    assert band.x.tolist() == [1, 2, 3, 4] and band.middle.tolist() == [0.25, 0.25, 0.5, 0.75]
    assert np.isnan(band.low).all() != banded


# ------------------------------------------------------------------ the drawings


def flat(x, y):
    return Band(np.array(x, float), np.array(y, float), *np.full((2, len(x)), np.nan))


def path_of(svg, ink):
    """Corners of the first open line in an ink."""
    for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg):
        if f"stroke: var({ink})" in style and "fill: none" in style and "z" not in path:
            return np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path), float)
    raise AssertionError(f"no line in {ink}")


def test_a_line_is_where_its_numbers_are():
    """Corners of the path are one affine map of the numbers, upwards positive."""
    x, y = np.array([1.0, 2, 5, 9]), np.array([0.0, 3, -1, 7])
    svg = curves("a", "A", [Curve("a", 0, flat(x, y))], x_label="step", description="d").svg
    drawn = path_of(svg, "--c0")
    for column, numbers, sign in ((0, x, 1), (1, y, -1)):
        slope, offset = np.polyfit(numbers, drawn[:, column], 1)
        np.testing.assert_allclose(slope * numbers + offset, drawn[:, column], atol=1e-3)
        assert slope * sign > 0


def test_the_front_is_drawn_through_its_points():
    points = [
        Point(str(n), n, Estimate(x, x - 1, x + 1), Estimate(y, y - 0.1, y + 0.1))
        for n, (x, y) in enumerate([(30.0, 0.5), (40.0, 0.9), (50.0, 0.7)])
    ]
    front = np.array([0, 1])
    svg = frontier("f", "F", points, front, x_label="tokens", description="d").svg
    group = re.search(r'<g class="front">(.*?)</g>', svg, re.DOTALL)[1]
    corners = np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", group), float)
    # right from (30, 0.5) to 40, up to 0.9, right to the end of the panel
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners[:4]
    assert (corners[3:] == corners[3]).all()
    assert y0 == y1 > y2 == y3 and x0 < x1 == x2 < x3
    markers = re.findall(r'<use href="#[^"]*" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--c', svg)
    assert np.allclose(np.array(markers[:2], float), [[x0, y0], [x2, y2]], atol=1e-3)


def test_bars_stand_where_the_counts_are():
    counts = np.array([[6, 2], [0, 2]])
    edges = np.array([0.5, 2.5, 4.5])
    svg = histogram(
        *("h", "H", edges, counts), style=0, tops=(0.6, 0.2), limit=4, description="d"
    ).svg
    group = re.search(r'<g class="correct">(.*?)</g>', svg, re.DOTALL)[1]
    corners = np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", group), float)
    heights = sorted({round(y, 3) for _, y in corners})
    zero, low, high = heights[::-1]
    assert (zero - high) / (zero - low) == pytest.approx(3, rel=1e-3)  # 60% and 20%
    wrong = re.search(r'<g class="incorrect">(.*?)</g>', svg, re.DOTALL)[1]
    below = np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", wrong), float)
    assert below[:, 1].max() - zero == pytest.approx(zero - low, rel=1e-3)  # 20%, downwards


def chart(names, **options):
    lines = [Curve(name, n, flat([1, 2, 3], [n, n + 1, n])) for n, name in enumerate(names)]
    options = {"x_label": "step", "description": "what it shows"} | options
    return curves("chart", "A <title>", lines, **options)


def test_an_svg_brings_nothing_and_takes_the_pages_inks_and_type():
    svg = chart(["a", "b"]).svg
    assert "http" not in svg and "DejaVu" not in svg and "<metadata" not in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert {"var(--c0)", "var(--c1)", "var(--soft)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert "A &lt;title&gt;</title>" in svg and "what it shows</desc>" in svg


def test_ids_of_charts_do_not_meet():
    """One page holds them all: every id once, every reference to one of its own."""
    svgs = [chart(["a", "b"]).svg, swatch(0, "a"), swatch(1, "a"), swatch(0, "b", line=False)]
    other = curves("other", "A", [Curve("a", 0, flat([1], [1]))], x_label="", description="")
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in [*svgs, other.svg]]
    assert all(not a & b for a, b in itertools.combinations(ids, 2))
    for svg, own in zip([*svgs, other.svg], ids, strict=True):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert used <= own and len(re.findall(r'\bid="', svg)) == len(own)


def test_a_name_is_a_text_and_no_formula():
    names = ["$x^2$", "a & b", "<script>", "$\\frac{"]
    png = chart(names).png
    assert png.startswith(b"\x89PNG")


def test_the_same_numbers_are_the_same_drawing():
    one, other = (chart(["a", "b"]) for _ in range(2))
    assert one == other


def test_styles_differ_by_more_than_their_color():
    styles = [style_of(index) for index in range(-1, 23)]
    assert len({(one.marker, one.face != one.color, one.dashes) for one in styles[:17]}) == 17
    assert len(set(styles)) == 24
    assert {one.color for one in styles} <= set(INKS)


def luminance(ink):
    parts = [int(ink[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_can_be_seen_in_both_themes(root, theme):
    """WCAG: 3 to 1 for graphics against the page's ground."""
    css = (root / "iapo_jax" / "assets" / "report.css").read_text()
    block = css.partition('data-theme="dark"]')[2] if theme == "dark" else css
    inks = dict(re.findall(r"(--c\d): (#[0-9a-f]{6})", block.partition("}")[0]))
    assert len(inks) == 6
    if theme == "light":
        assert {v: k for k, v in INKS.items() if v in inks} == inks
    ground = luminance({"light": "#fbfbf9", "dark": "#15171a"}[theme])
    for ink in inks.values():
        high, low = sorted([luminance(ink), ground], reverse=True)
        assert (high + 0.05) / (low + 0.05) > 3


def test_a_png_of_many_long_names_grows_below():
    """The legend takes its own room: the panel keeps its height."""

    def size(png):
        return [int.from_bytes(png[at : at + 4], "big") for at in (16, 20)]

    few, many = (size(chart([f"{'long' * 12} {n}" for n in range(k)]).png) for k in (2, 12))
    assert few[0] == many[0] and many[1] - few[1] > 10 * 30
