"""Completions under the probe as one HTML page that needs nothing else: no network, no files."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import NamedTuple

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

_BIG = 0.15  # share of the scale from which a token is a stop of the up and down keys


_SHORT = 400  # characters of a prompt that is shown at once


_INK = 0.62  # opacity of the strongest background: text on it stays readable


_EMBEDDED = ("uncertainty", "informativeness", "entropy", "log_prob", "thinking_length")


_NOTHING = "∅"  # a token without text


class Axes(NamedTuple):
    """Where the curves end; the same for all completions, so that shorter ones look shorter."""

    tokens: int
    nats: float


def render_page(inspections: Sequence[Inspection], title: str = "What each token tells") -> str:
    """The page: a legend, and for each completion its curve, its colored text and a table.

    One color scale and one pair of axes for all.
    """
    names = [f"completion {number}" for number in range(1, len(inspections) + 1)]
    cards = "\n".join(render_cards(inspections, names))
    body = f"""<main>
<p class="lead">After every prefix the model was made to answer at once. u is its uncertainty about
the answer, in nats; a token tells what u falls by. Hover, tap or use the arrow keys; up and down
go to the telling tokens.</p>
{render_facts(inspections[0]) if inspections else ""}
{render_legend(inspections)}
<div class="cards">
{cards}
</div>
</main>"""
    return render_document(title, body, inspections)


def render_document(
    title: str, body: str, inspections: Sequence[Inspection], styles: Sequence[str] = ()
) -> str:
    """A self-contained page around `body`, which holds the cards of `inspections`, in their order.

    Texts of models and users are escaped everywhere; a content security policy forbids every
    script but the page's own, and every connection. `styles` are further style sheets of assets.
    """
    css = "".join(_asset(name) for name in ("page.css", *styles))
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    shown = escape(visible(title))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{shown}</title>
<style>
{css}</style>
</head>
<body>
<header><h1>{shown}</h1><button id="theme" type="button">light / dark</button></header>
{body}
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">{_embedded(inspections)}</script>
<script>{script}</script>
</body>
</html>
"""


def render_cards(
    inspections: Sequence[Inspection], names: Sequence[str], level: int = 2
) -> list[str]:
    """A card for each completion, under its name as a heading of that level."""
    scale, axes = color_scale(inspections), _axes(inspections)
    return [
        _card(one, index, scale, axes, names[index], level) for index, one in enumerate(inspections)
    ]


def _axes(inspections: Sequence[Inspection]) -> Axes:
    return Axes(
        max([1, *(len(one.tokens) for one in inspections)]),
        max([FAINT, *(u for one in inspections for u in one.uncertainty)]),
    )


def _asset(name: str) -> str:
    return resources.files("iapo_jax").joinpath("assets", name).read_text(encoding="utf-8")


def _embedded(inspections: Sequence[Inspection]) -> str:
    """Figures for the script, as JSON that cannot end its element."""
    rows, axes = [], _axes(inspections)
    for one in inspections:
        whole = to_json(one)
        shown = [visible(text) or _NOTHING for text in one.tokens]
        figures = {name: whole[name] for name in _EMBEDDED}
        rows.append(figures | {"shown": shown, "axes": axes._asdict()})
    text = json.dumps(rows, allow_nan=False)  # ASCII: no line separators that end a statement
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def render_facts(one: Inspection) -> str:
    """How the model was asked, and what: the same for completions of one prompt."""
    is_open = " open" if len(one.prompt) <= _SHORT else ""
    answer = (
        f"<dt>gold answer</dt><dd><code>{escape(visible(one.answer))}</code></dd>"
        if one.answer
        else ""
    )
    return f"""<dl class="facts">
<dt>uncertainty</dt><dd>{escape(visible(one.estimator))}</dd>
<dt>exit postfix</dt><dd><code>{escape(visible(one.postfix))}</code></dd>
{answer}
<dt>prompt</dt><dd><details{is_open}><summary>{len(one.prompt_ids)} tokens</summary>\
<div class="prompt">{render_text(one.prompt)}</div></details></dd>
</dl>"""


def render_legend(inspections: Sequence[Inspection]) -> str:
    """What the colors mean, on the scale of all of these."""
    scale = color_scale(inspections)
    steps = [-1.0, -0.7, -0.4, 0.4, 0.7, 1.0]  # strengths: roots of the share
    cells = "".join(
        f'<span class="step {_class(step)}" style="{_style(step)}">'
        f"{_signed(step * abs(step) * scale)}</span>"
        for step in steps
    )
    ends = f"from {_signed(-scale)} to {_signed(scale)} nats a token"
    return f"""<div class="legend" role="note"><span>unsettled (dotted)</span>
<span class="ramp" role="img" aria-label="{ends}">{cells}</span>
<span>told (solid)</span><span>nats a token; grey: after the end of thinking</span></div>"""


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _class(color: float) -> str:
    return "plus" if color >= 0 else "minus"


def _style(color: float) -> str:
    """Opacity of the ground, and thickness of the line under it: color is not alone."""
    size = abs(color)
    return f"--a:{_INK * size:.3f};--w:{3 * size:.1f}px"


def _card(one: Inspection, index: int, scale: float, axes: Axes, name: str, level: int) -> str:
    verdict = {True: ("right", "right"), False: ("wrong", "wrong"), None: ("not judged", "none")}
    word, style = verdict[one.correct]
    own = escape(visible(one.extracted)) if one.extracted else "no answer"
    end = one.uncertainty[one.thinking_length]
    sums = {
        "answer": own,
        "tokens": f"{len(one.tokens)}{'' if one.finished else ', no stop token'}",
        "of thinking": str(one.thinking_length),
        "u in thinking": f"{one.uncertainty[0]:.2f} → {end:.2f}",
        "told, nats": signed(total(one)),
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in sums.items())
    certain = why_certain(one)
    name = escape(name)
    return f"""<article data-index="{index}" aria-label="{name}">
<div class="head"><h{level}>{name}</h{level}><span class="verdict {style}">{word}</span></div>
<dl class="sums">{cells}</dl>{f'<p class="empty">{certain}</p>' if certain else ""}
{_curve(one, index, axes)}
{_text(one, scale, name)}
{_table(name) if one.tokens else ""}
</article>"""


def _curve(one: Inspection, index: int, axes: Axes) -> str:
    """u_t over tokens; the plot's box is 1 wide and 1 high, and stretched."""
    points = [(t / axes.tokens, 1 - max(u, 0.0) / axes.nats) for t, u in enumerate(one.uncertainty)]
    if len(points) == 1:
        points.append((0.5 / axes.tokens, points[0][1]))  # one value: long enough to be seen
    line = "M" + "L".join(f"{x:.5g} {y:.4g}" for x, y in points)
    ends, last = one.thinking_length / axes.tokens, points[-1][0]
    highest = max(one.uncertainty)
    end = one.uncertainty[one.thinking_length]
    label = (
        f"from {one.uncertainty[0]:.3f} to {end:.3f} where thinking ends, "
        f"{one.uncertainty[-1]:.3f} at the last token; at most {highest:.3f} nats"
    )
    closed = 0 < one.thinking_length < len(one.tokens)
    rule = veil = ""
    if closed:
        rule = f'<line class="end" x1="{ends:.5g}" x2="{ends:.5g}" y1="0" y2="1"/>'
        veil = f'<rect class="veil" x="{ends:.5g}" y="0" width="{last - ends:.5g}" height="1"/>'
    return f"""<figure>
<figcaption><span>uncertainty u, {axes.nats:.2f} nats at the top</span></figcaption>
<div class="plot">\
<svg viewBox="0 0 1 1" preserveAspectRatio="none" role="img" \
aria-labelledby="c{index}t c{index}d"><title id="c{index}t">Uncertainty about the answer</title>\
<desc id="c{index}d">{label}</desc>{rule}\
<path class="under" d="{line}L{last:.5g} 1L0 1Z"/><path d="{line}"/>{veil}\
</svg><div class="marker" hidden></div></div>
<figcaption><span>0</span><span>{"dashed: thinking ends" if closed else ""}</span>\
<span>{axes.tokens} tokens</span></figcaption>
</figure>"""


def _text(one: Inspection, scale: float, name: str) -> str:
    if not one.tokens:
        return '<p class="empty">an empty completion: one uncertainty, that of the prompt</p>'
    pieces = [_token(one, i, scale) for i in range(len(one.tokens))]
    return (
        f'<div class="text" role="listbox" aria-orientation="horizontal" '
        f'aria-label="tokens of {name}; arrow keys move">{"".join(pieces)}</div>'
    )


def _token(one: Inspection, i: int, scale: float) -> str:
    text, told = one.tokens[i], one.informativeness[i]
    color = strength(told, scale)
    shown = render_text(text) or _NOTHING
    blank = (
        f' aria-label="{len(text)} blank{"s" * (len(text) > 1)}"'
        if text and not text.strip(" ")
        else ""
    )
    after = "" if i < one.thinking_length else " after"
    big = ' data-big="1"' if abs(told) >= _BIG * scale else ""
    return (
        f'<span class="t {_class(color)}{after}" role="option" tabindex="{-(i > 0)}" '
        f'data-i="{i}"{big}{blank} style="{_style(color)}">{shown}</span>'
    )


def render_text(text: str) -> str:
    """Escaped, what cannot be seen made visible, line ends kept."""
    return escape(visible(text)).replace("⏎", '<span class="nl">⏎</span>\n')


def _table(name: str) -> str:
    heads = ("#", "token", "told, nats", "u after", "entropy", "probability")
    row = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        "<details><summary>all figures as a table</summary>"
        f'<div class="scroll" role="region" aria-label="figures of {name}" tabindex="0">'
        f"<table><thead><tr>{row}</tr></thead><tbody></tbody></table></div></details>"
    )
