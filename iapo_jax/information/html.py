"""Probed completions as one HTML page that needs nothing else: no network, no files."""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from iapo_jax.information.inspection import (
    FAINT,
    Inspection,
    color_scale,
    signed,
    strength,
    to_json,
    total,
    visible,
    why_certain,
)
from iapo_jax.information.templates import Markup, asset, render

_BIG = 0.15  # share of the scale from which the up and down keys stop at a token
_SHORT = 400  # characters; a longer prompt is folded at first
_INK = 0.62  # opacity of the strongest background: text on it stays readable
_EMBEDDED = ("uncertainty", "informativeness", "entropy", "log_prob", "thinking_length")
_NOTHING = "∅"  # a token without text
_VERDICTS = {
    True: ("correct", "correct"),
    False: ("incorrect", "incorrect"),
    None: ("not checked", "none"),
}


class Axes(NamedTuple):
    """The upper ends of the axes, shared by all completions, so that shorter ones look shorter."""

    tokens: int
    nats: float


class Facts(NamedTuple):
    """How the model was probed: the same for all completions of a prompt."""

    estimator: str
    postfix: str
    answer: str | None
    prompt: str
    tokens: int
    open: bool


class Step(NamedTuple):
    """A color of the legend."""

    sign: str
    style: str
    text: str


class Legend(NamedTuple):
    """What the colors mean."""

    label: str
    steps: list[Step]


class Token(NamedTuple):
    """One token of the colored text."""

    text: str
    sign: str
    style: str
    after: bool  # not a thinking token: the end of thinking, or after it
    big: bool
    blank: str  # what a screen reader says if the token is blank


class Curve(NamedTuple):
    """u_t over tokens; the plot is 1 wide and 1 high, and stretched."""

    index: int
    top: str
    columns: int
    description: str
    line: str
    last: str  # where the line ends
    end: str  # where thinking ends; empty if it ends with the completion, or if there is none
    veil: str  # width of the part after it


class Card(NamedTuple):
    """One probed completion."""

    index: int
    name: str
    verdict: str
    verdict_style: str
    sums: list[tuple[str, str]]
    note: str
    curve: Curve
    tokens: list[Token]


class PlainCard(NamedTuple):
    """A completion that was not probed, with its text and what its row states."""

    name: str
    verdict: str
    verdict_style: str
    sums: list[tuple[str, str]]
    text: str


def render_page(
    inspections: Sequence[Inspection], title: str = "Information about the answer, token by token"
) -> str:
    """The page: a legend, and for each completion its curve, its colored text and a table.

    All completions share one color scale and one pair of axes.
    """
    names = [f"completion {number}" for number in range(1, len(inspections) + 1)]
    return render_document(
        "inspect.html.jinja",
        title,
        inspections,
        facts=facts_of(inspections[0]) if inspections else None,
        legend=legend_of(inspections),
        cards=cards_of(inspections, names),
    )


def render_document(
    template: str,
    title: str,
    inspections: Sequence[Inspection],
    *,
    styles: Sequence[str] = (),
    **values: Any,
) -> str:
    """A self-contained page of a template that extends document.html.jinja.

    Texts of models and users are escaped everywhere; a content security policy forbids every
    script but the page's own, and every connection.

    Args:
      inspections: those whose cards the page holds, in their order.
      styles: further style sheets of assets/.
    """
    script = asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = render(
        template,
        title=title,
        policy=Markup(policy),
        css=Markup("").join(asset(name) for name in ("page.css", *styles)),
        script=script,
        data=_embedded(inspections),
        **values,
    )
    return str(page)


def cards_of(inspections: Sequence[Inspection], names: Sequence[str]) -> list[Card]:
    """A card for each completion, under its name."""
    scale, axes = color_scale(inspections), _axes(inspections)
    return [
        _card(inspection, index, scale, axes, names[index])
        for index, inspection in enumerate(inspections)
    ]


def facts_of(inspection: Inspection) -> Facts:
    """How the model was probed."""
    return Facts(
        estimator=inspection.estimator,
        postfix=inspection.postfix,
        answer=inspection.answer,
        prompt=inspection.prompt,
        tokens=len(inspection.prompt_ids),
        open=len(inspection.prompt) <= _SHORT,
    )


def legend_of(inspections: Sequence[Inspection]) -> Legend:
    """What the colors mean, on the scale shared by these inspections."""
    scale = color_scale(inspections)
    strengths = (-1.0, -0.7, -0.4, 0.4, 0.7, 1.0)  # roots of the share
    return Legend(
        label=f"from {_signed(-scale)} to {_signed(scale)} nats per token",
        steps=[Step(_sign(s), _style(s), _signed(s * abs(s) * scale)) for s in strengths],
    )


def plain_card(name: str, row: dict[str, Any]) -> PlainCard:
    """The card of a row of a completions file."""
    correct = row.get("correct")
    verdict, style = _VERDICTS[correct if isinstance(correct, bool) else None]
    fields = {"answer": "extracted", "tokens": "length", "thinking tokens": "thinking_length"}
    sums = [
        (label, visible(str(row[field])))
        for label, field in fields.items()
        if row.get(field) is not None
    ]
    return PlainCard(
        name=name, verdict=verdict, verdict_style=style, sums=sums, text=row["completion"]
    )


def _axes(inspections: Sequence[Inspection]) -> Axes:
    return Axes(
        tokens=max([1, *(len(one.tokens) for one in inspections)]),
        nats=max([FAINT, *(u for one in inspections for u in one.uncertainty)]),
    )


def _embedded(inspections: Sequence[Inspection]) -> list[dict[str, Any]]:
    """The numbers that the script of the page reads."""
    axes = _axes(inspections)._asdict()
    rows = []
    for inspection in inspections:
        fields = to_json(inspection)
        row = {name: fields[name] for name in _EMBEDDED}
        shown = [visible(text) or _NOTHING for text in inspection.tokens]
        rows.append(row | {"shown": shown, "axes": axes})
    return rows


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _sign(color: float) -> str:
    return "plus" if color >= 0 else "minus"


def _style(color: float) -> str:
    """Opacity of the background and thickness of the underline, so that not only color differs."""
    size = abs(color)
    return f"--a:{_INK * size:.3f};--w:{3 * size:.1f}px"


def _card(one: Inspection, index: int, scale: float, axes: Axes, name: str) -> Card:
    verdict, verdict_style = _VERDICTS[one.correct]
    end = one.uncertainty[one.thinking_length]
    stopped = "" if one.finished else ", no stop token"
    return Card(
        index=index,
        name=name,
        verdict=verdict,
        verdict_style=verdict_style,
        sums=[
            ("answer", visible(one.extracted) if one.extracted else "no answer"),
            ("tokens", f"{len(one.tokens)}{stopped}"),
            ("thinking tokens", str(one.thinking_length)),
            ("u while thinking", f"{one.uncertainty[0]:.2f} → {end:.2f}"),
            ("information", signed(total(one))),
        ],
        note=why_certain(one),
        curve=_curve(one, index, axes),
        tokens=[_token(one, i, scale) for i in range(len(one.tokens))],
    )


def _curve(one: Inspection, index: int, axes: Axes) -> Curve:
    points = [(t / axes.tokens, 1 - max(u, 0.0) / axes.nats) for t, u in enumerate(one.uncertainty)]
    if len(points) == 1:
        points.append((0.5 / axes.tokens, points[0][1]))  # makes a single value visible
    closed = 0 < one.thinking_length < len(one.tokens)
    end, last = one.thinking_length / axes.tokens, points[-1][0]
    return Curve(
        index=index,
        top=f"{axes.nats:.2f}",
        columns=axes.tokens,
        description=(
            f"from {one.uncertainty[0]:.3f} to {one.uncertainty[one.thinking_length]:.3f} nats at "
            f"the end of thinking, {one.uncertainty[-1]:.3f} at the last token; maximum "
            f"{max(one.uncertainty):.3f}"
        ),
        line="M" + "L".join(f"{x:.5g} {y:.4g}" for x, y in points),
        last=f"{last:.5g}",
        end=f"{end:.5g}" if closed else "",
        veil=f"{last - end:.5g}",
    )


def _token(one: Inspection, i: int, scale: float) -> Token:
    text, information = one.tokens[i], one.informativeness[i]
    color = strength(information, scale)
    blank = ""
    if text and not text.strip(" "):
        blank = "1 space" if len(text) == 1 else f"{len(text)} spaces"
    return Token(
        text=text,
        sign=_sign(color),
        style=_style(color),
        after=i >= one.thinking_length,
        big=abs(information) >= _BIG * scale,
        blank=blank,
    )
