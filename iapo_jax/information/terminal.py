"""Shows probed completions in the terminal. The only module that imports rich."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from iapo_jax.information.inspection import (
    FAINT,
    Inspection,
    color_scale,
    shows,
    signed,
    strength,
    total,
    visible,
    why_certain,
)

_BARS = " ▁▂▃▄▅▆▇█"
_TOP = 5  # the most informative tokens that are listed
_LEVELS = (  # strength, background of a token that adds information, and of one that removes it
    (0.75, "#1668b8", "#b8560a"),
    (0.40, "#5a98d6", "#e08a3c"),
    (0.15, "#a9cbee", "#f3c493"),
)


def show(inspections: Sequence[Inspection], console: Console | None = None) -> None:
    """Prints each completion: the curve of u_t, the colored text, totals, and the top tokens.

    All completions share one scale. A terminal without colors still has the table.
    """
    console = console or Console()
    scale = color_scale(inspections)
    for number, one in enumerate(inspections, 1):
        title = f"completion {number} of {len(inspections)} · {one.estimator}"
        parts = [_totals(one), _curve(one, console.width - 4), Text()]
        if one.tokens:
            parts += [_tokens(one, scale), Text()]
        if any(map(shows, one.informativeness)):
            parts.append(_top(one))
        console.print(Panel(Group(*parts), title=Text(visible(title)), title_align="left"))
    if any(s for one in inspections for s in one.informativeness):
        console.print(_legend(scale))


def _totals(one: Inspection) -> Text:
    verdict = {True: "correct", False: "incorrect", None: "not checked"}[one.correct]
    ended = "" if one.finished else ", no stop token"
    lines = [
        f"{len(one.tokens)} tokens, {one.thinking_length} of thinking{ended}; "
        f"answer {visible(one.extracted) if one.extracted else 'none'} ({verdict})",
        f"u from {one.uncertainty[0]:.3f} to {one.uncertainty[one.thinking_length]:.3f} nats: "
        f"information in the thinking {signed(total(one))}",
        why_certain(one),
    ]
    return Text("\n".join(filter(None, lines)))


def _curve(one: Inspection, width: int) -> Text:
    """u_t as bars: each is the largest value of its prefixes; a line marks the end of thinking."""
    values, ends = one.uncertainty, one.thinking_length + 1
    top = max(FAINT, *values)
    name, unit = "u_t  ", f"  0 to {top:.2f} nats"
    columns = min(max(width - len(name) - len("│") - len(unit), 5), len(values))
    starts = [index * len(values) // columns for index in range(columns + 1)]
    peaks = [max(values[a:b]) for a, b in zip(starts, starts[1:], strict=False)]
    steps = len(_BARS) - 1
    bars = "".join(_BARS[round(steps * max(p, 0.0) / top)] for p in peaks)
    thinking = sum(start < ends for start in starts[:-1])
    text = Text(f"{name}{bars[:thinking]}")
    if thinking < columns:
        text.append(f"│{bars[thinking:]}", "dim")
    return text.append(unit)


def _style(color: float) -> str:
    for level, more, less in _LEVELS:
        if abs(color) >= level:
            front = "white" if level > 0.5 else "black"
            return f"{front} on {more}" if color > 0 else f"underline {front} on {less}"
    return ""


def _tokens(one: Inspection, scale: float) -> Text:
    text = Text()
    for index, (token, value) in enumerate(zip(one.tokens, one.informativeness, strict=True)):
        style = _style(strength(value, scale))
        text.append(visible(token), style if index < one.thinking_length else "dim")
        text.append("\n" * token.count("\n"))
    return text


def _top(one: Inspection) -> Table:
    """The tokens with the most information, and the one that removes most."""
    table = Table(box=None, pad_edge=False)
    for name in ("token", "text", "nats", "u before", "u after"):
        table.add_column(name, justify="left" if name == "text" else "right")
    visible_ones = [t for t, nats in enumerate(one.informativeness) if shows(nats)]
    order = sorted(visible_ones, key=lambda t: -one.informativeness[t])
    chosen = [t for t in order[:_TOP] if one.informativeness[t] > 0]
    chosen += [t for t in order[-1:] if one.informativeness[t] < 0 and t not in chosen]
    for t in chosen:
        before, after = one.uncertainty[t : t + 2]
        numbers = signed(one.informativeness[t]), f"{before:.3f}", f"{after:.3f}"
        table.add_row(str(t + 1), Text(f"'{visible(one.tokens[t])}'"), *numbers)
    return table


def _legend(scale: float) -> Text:
    text = Text("nats per token:  ")
    for level, *_ in _LEVELS:
        text.append(f" -{level**2 * scale:.2f} ", _style(-level)).append(" ")
    text.append(" less certain | more certain  ")
    for level, *_ in reversed(_LEVELS):
        text.append(f" +{level**2 * scale:.2f} ", _style(level)).append(" ")
    return text.append("  and beyond; dim: after the end of thinking")
