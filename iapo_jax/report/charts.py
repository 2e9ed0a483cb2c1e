"""The charts of a report: functions of arrays, drawn as SVG and PNG.

Each chart is one panel whose text can be read at 350 pixels. In the SVG, CSS variables of the page
replace the colors of the light page, so that a dark page has dark charts. The only module that
imports matplotlib.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from iapo_jax.evaluation.intervals import Estimate
from iapo_jax.information.templates import Markup, render
from iapo_jax.report.series import Band

# Color of the light page -> CSS variable of the page. Color-blind readers can tell the colors
# apart; dashes and markers differ as well.
INKS = {
    "#1c1e21": "--ink",
    "#5d636b": "--soft",
    "#dcdcd6": "--line",
    "#ffffff": "--card",
    "#1466b8": "--c0",
    "#c45c0a": "--c1",
    "#0b7a5c": "--c2",
    "#a3478f": "--c3",
    "#7a6a00": "--c4",
    "#55606e": "--c5",
}
INK, SOFT, RULE, CARD, *_COLORS = INKS
_DASHES = ("solid", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
_MARKERS = "os^DvPX*"
_SIZE = (5.0, 3.0)  # inches of 72 points: 360 x 216
_DOTS = 180  # per inch of a PNG
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 11.5,
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.9,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "figure.facecolor": CARD,
    "axes.facecolor": "none",
    "savefig.facecolor": CARD,
    "path.simplify": True,
}


class Chart(NamedTuple):
    """One drawing in two formats."""

    name: str  # of its file, and prefix of its ids within a page
    title: str
    description: str  # for readers who cannot see it
    svg: Markup
    png: bytes


class Curve(NamedTuple):
    """One line of a chart."""

    name: str
    style: int  # see `style_of`
    band: Band


class Point(NamedTuple):
    """One model of a chart of two metrics."""

    name: str
    style: int
    x: Estimate
    y: Estimate


class Style(NamedTuple):
    """How a line or point is drawn, so that more than its color distinguishes it."""

    color: str
    dashes: str | tuple
    marker: str
    face: str


def style_of(index: int) -> Style:
    """The style of a method; negative indices are for the initial model.

    The first 24 styles are distinct.
    """
    if index < 0:
        return Style(color=INK, dashes=(0, (1.2, 1.6)), marker="D", face=CARD)
    color = _COLORS[index % len(_COLORS)]
    return Style(
        color=color,
        dashes=_DASHES[index % 4],
        marker=_MARKERS[index % 8],
        face=color if index % 24 < 8 else CARD,
    )


def curves(
    name: str,
    title: str,
    lines: Sequence[Curve],
    *,
    x_label: str,
    description: str,
    rule: bool = False,
) -> Chart:
    """Lines with their bands, and markers at a few of the points; `rule` draws a line at 0."""

    def draw(axes: Axes) -> None:
        if rule:
            axes.axhline(0, color=SOFT, linewidth=0.9)
        for number, (_, style, band) in enumerate(lines):
            every = max(1, len(band.x) // 5)
            first = number * every // max(len(lines), 1) % every
            color = style_of(style).color
            axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.16, lw=0)
            axes.plot(band.x, band.middle, **_line(style), markevery=(first, every))
        axes.set_xlabel(x_label)
        integers = all(np.equal(np.mod(curve.band.x, 1), 0).all() for curve in lines)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=integers))

    styles = {curve.name: curve.style for curve in lines}
    handles = [_handle(name, _line(style)) for name, style in styles.items()]
    return _chart(name, title, description, draw, handles)


def frontier(
    name: str,
    title: str,
    points: Sequence[Point],
    front: np.ndarray,
    *,
    x_label: str,
    description: str,
) -> Chart:
    """Points with intervals along both axes, and the steps of the Pareto front behind them."""

    def draw(axes: Axes) -> None:
        for point in points:
            color = style_of(point.style).color
            if _is_finite(point.x):
                ends, at = [point.x.low, point.x.high], [point.y.value] * 2
                axes.plot(ends, at, color=color, linewidth=1.3, zorder=2)
            if _is_finite(point.y):
                at, ends = [point.x.value] * 2, [point.y.low, point.y.high]
                axes.plot(at, ends, color=color, linewidth=1.3, zorder=2)
            axes.plot(point.x.value, point.y.value, **_marker(point.style), zorder=3)
        axes.set_xlabel(x_label)
        axes.margins(0.08)
        if len(front):  # the best accuracy at this length or below it, to the end of the panel
            right = axes.get_xlim()[1]
            best = [points[index] for index in front]
            x = [*(point.x.value for point in best), right]
            y = [*(point.y.value for point in best), best[-1].y.value]
            look = {"color": SOFT, "linewidth": 1.1}
            axes.plot(x, y, **look, drawstyle="steps-post", gid="front", zorder=1)
            axes.set_xlim(right=right)

    handles = [_handle(point.name, _marker(point.style)) for point in points]
    handles.append(Line2D([], [], color=SOFT, linewidth=1.1, label="Pareto front"))
    return _chart(name, title, description, draw, handles)


def _is_finite(estimate: Estimate) -> bool:
    return bool(np.isfinite([estimate.low, estimate.high]).all())


def histogram(
    name: str,
    title: str,
    edges: np.ndarray,
    counts: np.ndarray,
    *,
    style: int,
    tops: tuple[float, float],
    limit: int | None,
    description: str,
) -> Chart:
    """Shares of all completions by length: the correct ones upwards, the incorrect ones downwards.

    Args:
      counts: [2, bars], the correct ones first.
      tops: the highest correct and incorrect shares among all charts of the section.
      limit: the length limit, drawn as a dotted line.
    """
    color = style_of(style).color
    up = {"color": color, "alpha": 0.85}
    down = {"facecolor": CARD, "edgecolor": color, "hatch": "/////"}

    def draw(axes: Axes) -> None:
        shares = 100 * counts / max(counts.sum(), 1)
        axes.stairs(shares[0], edges, fill=True, **up, gid="correct")
        axes.stairs(-shares[1], edges, fill=True, **down, lw=1.2, gid="incorrect")
        axes.axhline(0, color=SOFT, linewidth=0.9)
        if limit is not None:
            axes.axvline(limit + 0.5, color=SOFT, linewidth=1, linestyle=(0, (1.2, 1.6)))
        axes.set_xlim(edges[0], max(edges[-1], limit or 0) + 0.5)
        highest, lowest = max(tops[0], 0.2 * tops[1]), max(tops[1], 0.2 * tops[0])
        axes.set_ylim(-108 * lowest, 108 * highest)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.3g}%")
        axes.set_xlabel("tokens")

    handles = [
        Patch(facecolor=color, alpha=0.85, label="correct"),
        Patch(**down, label="incorrect"),
    ]
    return _chart(name, title, description, draw, handles)


def swatch(style: int, place: str, *, line: bool = True) -> Markup:
    """The line and marker of a style, for a legend in HTML.

    Args:
      place: makes the ids of the drawing unique in the page.
      line: False draws the marker alone.
    """
    name = f"key-{place}-{style if style >= 0 else 'start'}"
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(34 / 72, 14 / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        look = _line(style) if line else _marker(style)
        axes.plot([0, 0.5, 1], [0, 0, 0], **look, markevery=[1], clip_on=False)
        axes.set_xlim(-0.03, 1.03)
        return _svg(figure, name)


def _line(index: int) -> dict[str, Any]:
    style = style_of(index)
    return {
        "color": style.color,
        "linestyle": style.dashes,
        "linewidth": 1.7,
        "marker": style.marker,
        "markersize": 5,
        "markerfacecolor": style.face,
        "markeredgecolor": style.color,
        "markeredgewidth": 1.3,
    }


def _marker(index: int) -> dict[str, Any]:
    return _line(index) | {"linestyle": "none", "markersize": 7}


def _handle(name: str, look: dict[str, Any]) -> Line2D:
    return Line2D([], [], **look, label=name)


def _chart(
    name: str, title: str, description: str, draw: Callable[[Axes], None], handles: list
) -> Chart:
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=3)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        draw(axes)
        svg = _svg(figure, name, title, description)
        _with_legend(figure, axes, title, handles)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=_DOTS, metadata={"Software": None})
    return Chart(name, title, description, svg, png.getvalue())


def _with_legend(figure: Figure, axes: Axes, title: str, handles: list) -> None:
    """Gives the PNG, which stands alone, a title and a legend below the panel."""
    axes.set_title(title, loc="left", fontsize=12)
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = max(1, min(4, len(handles), 52 // (longest + 6)))
    rows = -(-len(handles) // columns)
    figure.set_size_inches(_SIZE[0], _SIZE[1] + 0.3 + 0.22 * rows)
    if handles:
        figure.legend(
            handles,
            [_shorter(handle.get_label()) for handle in handles],
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            fontsize=10,
            handlelength=2.6,
            columnspacing=1.2,
            labelspacing=0.3,
        )


def _shorter(text: str, limit: int = 50) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 + 1 :]}"


def _svg(figure: Figure, name: str, title: str = "", description: str = "") -> Markup:
    """The figure as an element of the page: the page's colors and fonts, distinct ids, no links."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text)[0]
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    text = re.sub(
        r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else _class(m[1]), text
    )
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for ink, variable in INKS.items():
        text = text.replace(ink, f"var({variable})")
    return render(
        "chart.svg.jinja",
        name=name,
        box=Markup(box),
        title=title,
        description=description,
        body=Markup(text[text.index(">") + 1 :].strip()),
    )


def _class(id_: str) -> str:
    """Drops the ids of matplotlib's groups, which all charts share; ours become classes."""
    return f' class="{id_}"' if id_ in ("front", "correct", "incorrect") else ""
