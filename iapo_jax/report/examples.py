"""Completions of the same problem side by side: the token view, or plain text."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from iapo_jax.information.html import (
    render_cards,
    render_facts,
    render_legend,
    render_text,
)
from iapo_jax.information.inspection import Inspection, visible
from iapo_jax.report.comparison import Section
from iapo_jax.report.grouping import Line
from iapo_jax.report.samples import Samples

_BESIDE = 6  # models beside each other, at most


class Example(NamedTuple):
    """One problem, and what some models wrote: inspections where there are any, else rows."""

    prompt: str
    answer: str
    texts: list[tuple[str, Inspection | dict]]  # name of the model, its completion


class Examples(NamedTuple):
    """The examples of one data set."""

    problems: list[Example]
    note: str


def choose(section: Section, count: int) -> Examples:
    """The first problems of the data set of which any model's text is there; none is picked."""
    models = section.models[:_BESIDE]
    one = section.models[0].members[0]
    found = []
    texts = {model.name: _texts(model.members[0]) for model in models}
    for index in range(len(one.rows)):
        beside = [(name, text[index]) for name, text in texts.items() if index in text]
        if beside:
            found.append(Example(one.prompts[index], one.answers[index], beside))
        if len(found) == count:
            break
    silent = [name for name, text in texts.items() if not text]
    notes = []
    if silent:
        notes.append(f"no texts of {', '.join(silent)} (….inspections.json, ….completions.jsonl)")
    if len(section.models) > _BESIDE:
        notes.append(f"the first {_BESIDE} of {len(section.models)} models")
    return Examples(found, "; ".join(notes))


def _texts(one: Samples) -> dict[int, Inspection | dict]:
    """The first completion of each problem, by the problem's place."""
    places = {row: index for index, row in enumerate(one.rows)}
    found: dict[int, Inspection | dict] = {}
    for row in one.completions:
        if row["row"] in places:
            found.setdefault(places[row["row"]], row)
    seen: dict[int, Inspection | dict] = {}
    for inspection in one.inspections:
        place = _place(inspection.prompt, one.prompts)
        if place is not None:
            seen.setdefault(place, inspection)
    return found | seen


def _place(prompt: str, prompts: Sequence[str]) -> int | None:
    """Which problem a prompt is of; prompts may be questions, which a template surrounds."""
    if prompt in prompts:
        return prompts.index(prompt)
    inside = [index for index, text in enumerate(prompts) if text and text in prompt]
    return max(inside, key=lambda index: len(prompts[index])) if inside else None


def shown(many: Sequence[Examples]) -> list[tuple[str, Inspection]]:
    """The inspections of all examples with their models' names, in the order of their cards."""
    return [
        (name, text)
        for examples in many
        for example in examples.problems
        for name, text in example.texts
        if isinstance(text, Inspection)
    ]


def render_examples(many: Sequence[Examples]) -> list[str]:
    """The examples of each data set as HTML; one color scale for all of them."""
    seen = shown(many)
    cards = iter(render_cards([one for _, one in seen], [name for name, _ in seen], level=4))
    legend = render_legend([one for _, one in seen]) if seen else ""
    return [_section(examples, cards, legend) for examples in many]


def _section(examples: Examples, cards: Iterator[str], legend: str) -> str:
    parts = []
    for number, example in enumerate(examples.problems):
        beside = [
            next(cards) if isinstance(text, Inspection) else plain_card(name, text)
            for name, text in example.texts
        ]
        first = next((t for _, t in example.texts if isinstance(t, Inspection)), None)
        about = render_facts(first) if first else _question(example)
        parts.append(
            f'<details class="example"{" open" * (number == 0)}><summary>'
            f'{escape(_short(example.prompt))} <span class="gold">= '
            f"{escape(visible(example.answer))}</span></summary>\n"
            f'{about}\n<div class="cards">{"".join(beside)}</div></details>'
        )
    has_tokens = any(isinstance(t, Inspection) for e in examples.problems for _, t in e.texts)
    return (legend if has_tokens else "") + "\n".join(parts)


def _question(example: Example) -> str:
    return f'<div class="prompt question">{render_text(example.prompt)}</div>'


def _short(text: str, limit: int = 90) -> str:
    line = " ".join(visible(text).replace("⏎", " ").split())
    return line if len(line) <= limit else f"{line[:limit]}…"


def plain_card(name: str, row: dict, level: int = 4) -> str:
    """A completion of which only the text is known."""
    right = row.get("correct")
    word, style = {True: ("right", "right"), False: ("wrong", "wrong")}.get(
        right if isinstance(right, bool) else None, ("not judged", "none")
    )
    sums = {
        "answer": row.get("extracted"),
        "tokens": row.get("length"),
        "of thinking": row.get("thinking_length"),
    }
    cells = "".join(
        f"<div><dt>{key}</dt><dd>{escape(visible(str(value)))}</dd></div>"
        for key, value in sums.items()
        if value is not None
    )
    return (
        f'<article class="plain" aria-label="{escape(name)}"><div class="head">'
        f'<h{level}>{escape(name)}</h{level}><span class="verdict {style}">{word}</span></div>'
        f'<dl class="sums">{cells}</dl><div class="prompt">{render_text(row["completion"])}</div>'
        "</article>"
    )


def render_training_texts(line: Line) -> str:
    """What the first seed wrote in the first and in the last step: other problems, each step."""
    run = next((run for run in line.runs if run.texts), None)
    if run is None:
        return ""
    columns = []
    for step, rows in run.texts:
        cards = "".join(
            plain_card(f"step {step}: {_short(row['prompt'], 40)}", row, 3) for row in rows[:2]
        )
        columns.append(f'<div class="column">{cards}</div>')
    name = f"{escape(line.name)}, seed {run.config['seed']}"
    return (
        f'<details class="example"><summary>{name}: first and last step</summary>'
        f'<div class="cards">{"".join(columns)}</div></details>'
    )
