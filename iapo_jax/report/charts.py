"""The charts of a report: functions of arrays, drawn as SVG and PNG. The home of matplotlib.

Each chart is one panel whose text can be read at 350 pixels. What is drawn in the inks of the
light page is written to SVG as the page's own variables, so that a dark page has dark charts.
"""

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from iapo_jax.evaluation.metrics import Estimate
from iapo_jax.report.series import Band

# Light ink -> the page's variable. Told apart by the color-blind too; dashes and markers say the
# same once more.
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


_DOTS = 180  # of a PNG, an inch


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
    """One drawing, twice."""

    name: str  # of its file, and of the ids within a page
    title: str
    description: str  # what it shows, for who cannot see it
    svg: str
    png: bytes


class Curve(NamedTuple):
    """One line of a chart."""

    name: str
    look: int  # see `look`
    band: Band


class Point(NamedTuple):
    """One model of a chart of two figures."""

    name: str
    look: int
    x: Estimate
    y: Estimate


class Look(NamedTuple):
    """How one line or point is told from the others, by more than its color."""

    color: str
    dashes: str | tuple
    marker: str
    face: str


def look(index: int) -> Look:
    """The look of a method; a negative index is the start model's. 24 differ in two ways."""
    if index < 0:
        return Look(INK, (0, (1.2, 1.6)), "D", CARD)
    color = _COLORS[index % len(_COLORS)]
    face = color if index % 24 < 8 else CARD
    return Look(color, _DASHES[index % 4], _MARKERS[index % 8], face)


def curves(
    name: str,
    title: str,
    lines: Sequence[Curve],
    *,
    x_label: str,
    description: str,
    rule: bool = False,
) -> Chart:
    """Lines with their bands, and markers at a few of the points; `rule` draws the height 0."""

    def draw(axes: Axes) -> None:
        if rule:
            axes.axhline(0, color=SOFT, linewidth=0.9)
        for number, (_, index, band) in enumerate(lines):
            style = look(index)
            every = max(1, len(band.x) // 5)
            axes.fill_between(band.x, band.low, band.high, color=style.color, alpha=0.16, lw=0)
            axes.plot(
                *(band.x, band.middle),
                **_line(style),
                markevery=(number * every // max(len(lines), 1) % every, every),
            )
        axes.set_xlabel(x_label)
        whole = all(np.equal(np.mod(curve.band.x, 1), 0).all() for curve in lines)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))

    seen = {curve.name: curve.look for curve in lines}
    return _chart(name, title, description, draw, [_handle(*item) for item in seen.items()])


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
            style = look(point.look)
            for along in ("x", "y"):
                _interval(axes, point, along, style.color)
            axes.plot(
                *(point.x.value, point.y.value),
                **_line(style) | {"markersize": 7, "linestyle": "none", "zorder": 3},
            )
        axes.set_xlabel(x_label)
        axes.margins(0.08)
        best = [points[index] for index in front]
        if best:  # what is reached at this length or below it, to the end of the panel
            right = axes.get_xlim()[1]
            corners = [*((p.x.value, p.y.value) for p in best), (right, best[-1].y.value)]
            axes.plot(
                *zip(*corners, strict=True),
                **dict(drawstyle="steps-post", color=SOFT, linewidth=1.1, gid="front", zorder=1),
            )
            axes.set_xlim(right=right)

    handles = [_handle(p.name, p.look, line=False) for p in points]
    handles.append(Line2D([], [], color=SOFT, linewidth=1.1, label="Pareto front"))
    return _chart(name, title, description, draw, handles)


def _interval(axes: Axes, point: Point, along: str, color: str) -> None:
    one = getattr(point, along)
    if np.isfinite([one.low, one.high]).all():
        other = point.y.value if along == "x" else point.x.value
        ends = ([one.low, one.high], [other, other])
        axes.plot(*(ends if along == "x" else ends[::-1]), color=color, linewidth=1.3, zorder=2)


def histogram(
    name: str,
    title: str,
    edges: np.ndarray,
    counts: np.ndarray,
    *,
    index: int,
    tops: tuple[float, float],
    limit: int | None,
    description: str,
) -> Chart:
    """Shares of all completions by length: right ones upwards, wrong ones downwards.

    counts [2, bars], the right ones first; `tops` are the highest shares of all charts beside it.
    """

    def draw(axes: Axes) -> None:
        shares = 100 * counts / max(counts.sum(), 1)
        color = look(index).color
        axes.stairs(shares[0], edges, fill=True, color=color, alpha=0.85, gid="right")
        axes.stairs(-shares[1], edges, fill=True, facecolor=CARD, edgecolor=color, lw=1.2,
                    hatch="/////", gid="wrong")  # fmt: skip
        axes.axhline(0, color=SOFT, linewidth=0.9)
        if limit is not None:
            axes.axvline(limit + 0.5, color=SOFT, linewidth=1, linestyle=(0, (1.2, 1.6)))
        axes.set_xlim(edges[0], max(edges[-1], limit or 0) + 0.5)
        up, down = 108 * max(tops[0], 0.2 * tops[1]), 108 * max(tops[1], 0.2 * tops[0])
        axes.set_ylim(-down, up)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.3g}%")
        axes.set_xlabel("tokens")

    color = look(index).color
    handles = [
        Patch(facecolor=color, alpha=0.85, label="right"),
        Patch(facecolor=CARD, edgecolor=color, hatch="/////", label="wrong"),
    ]
    return _chart(name, title, description, draw, handles)


def swatch(index: int, place: str, *, line: bool = True) -> str:
    """The line and marker of a look, for a legend in HTML; `place` is of its ids in the page."""
    name = f"key-{place}-{index if index >= 0 else 'start'}"
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(34 / 72, 14 / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        style = _line(look(index)) | ({} if line else {"linestyle": "none", "markersize": 7})
        axes.plot([0, 0.5, 1], [0, 0, 0], **style, markevery=[1], clip_on=False)
        axes.set_xlim(-0.03, 1.03)
        svg = _svg(figure, name)
    return svg.replace("<svg ", '<svg class="swatch" aria-hidden="true" ', 1)


def _line(style: Look) -> dict:
    return dict(
        color=style.color,
        linestyle=style.dashes,
        linewidth=1.7,
        marker=style.marker,
        markersize=5,
        markerfacecolor=style.face,
        markeredgecolor=style.color,
        markeredgewidth=1.3,
    )


def _handle(name: str, index: int, line: bool = True) -> Line2D:
    style = _line(look(index)) | ({} if line else {"linestyle": "none", "markersize": 7})
    return Line2D([], [], **style, label=name)


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
    """For the PNG, which stands alone: the title, and below the panel what is what."""
    axes.set_title(title, loc="left", fontsize=12)
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = max(1, min(4, len(handles), 52 // (longest + 6)))
    rows = -(-len(handles) // columns)
    figure.set_size_inches(_SIZE[0], _SIZE[1] + 0.3 + 0.22 * rows)
    if handles:
        labels = [_shorter(handle.get_label()) for handle in handles]
        figure.legend(
            *(handles, labels),
            **dict(loc="outside lower left", ncols=columns, frameon=False, fontsize=10),
            **dict(handlelength=2.6, columnspacing=1.2, labelspacing=0.3),
        )


def _shorter(text: str, limit: int = 50) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 + 1 :]}"


def _svg(figure: Figure, name: str, title: str = "", description: str = "") -> str:
    """The figure to be put into a page: its inks and fonts, ids of its own, no address in it."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text)[0]
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    text = re.sub(
        r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else _kept(m[1]), text
    )
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for ink, variable in INKS.items():
        text = text.replace(ink, f"var({variable})")
    told = ""
    if title:
        told = (
            f' role="img" aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{escape(title)}'
            f'</title><desc id="{name}-d">{escape(description)}</desc'
        )
    return re.sub(r"<svg[^>]*", lambda _: f"<svg {box}{told}", text, count=1).strip()


def _kept(id_: str) -> str:
    """Ids of matplotlib's own groups repeat from chart to chart; ours become classes."""
    return f' class="{id_}"' if id_ in ("front", "right", "wrong") else ""
