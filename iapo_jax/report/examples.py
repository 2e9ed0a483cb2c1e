"""Completions of the same problem side by side: the token view, or plain text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from iapo_jax.information.html import Card, Facts, PlainCard, facts_of, plain_card
from iapo_jax.information.inspection import Inspection, visible
from iapo_jax.report.comparison import Section
from iapo_jax.report.grouping import RunGroup
from iapo_jax.report.samples import Samples

_BESIDE = 6  # at most this many models side by side


class Example(NamedTuple):
    """One problem and the completions of some models: inspections if they exist, otherwise rows."""

    prompt: str
    answer: str
    texts: list[tuple[str, Inspection | dict[str, Any]]]  # name of the model, its completion


class Examples(NamedTuple):
    """The examples of one dataset."""

    problems: list[Example]
    note: str


class ExampleView(NamedTuple):
    """An example as the page shows it."""

    prompt: str  # one line
    answer: str
    facts: Facts | None  # how the model was probed, with the prompt
    question: str  # the prompt, shown if nothing was probed
    cards: list[Card | PlainCard]


class TrainingView(NamedTuple):
    """Completions of the first and the last step for which a run stored them."""

    name: str
    columns: list[list[PlainCard]]


def choose(section: Section, count: int) -> Examples:
    """The first problems for which any model has a completion; none is hand-picked."""
    models = section.models[:_BESIDE]
    record = section.models[0].members[0].record
    texts = {model.name: _texts(model.members[0]) for model in models}
    problems = []
    for index, (prompt, answer) in enumerate(zip(record.prompts, record.answers, strict=True)):
        if len(problems) == count:
            break
        beside = [(name, text[index]) for name, text in texts.items() if index in text]
        if beside:
            problems.append(Example(prompt, answer, beside))
    without = [name for name, text in texts.items() if not text]
    notes = []
    if without:
        notes.append(
            f"no completions were found for {', '.join(without)} (….inspections.json, "
            "….completions.jsonl)"
        )
    if len(section.models) > _BESIDE:
        notes.append(f"only the first {_BESIDE} of {len(section.models)} models are shown")
    return Examples(problems=problems, note="; ".join(notes))


def _texts(samples: Samples) -> dict[int, Inspection | dict[str, Any]]:
    """The first completion of each problem, by the problem's place."""
    places = {row: index for index, row in enumerate(samples.record.rows)}
    rows: dict[int, Inspection | dict[str, Any]] = {}
    for row in samples.completions:
        if row["row"] in places:
            rows.setdefault(places[row["row"]], row)
    probed: dict[int, Inspection | dict[str, Any]] = {}
    for inspection in samples.inspections:
        place = _place(inspection.prompt, samples.record.prompts)
        if place is not None:
            probed.setdefault(place, inspection)
    return rows | probed


def _place(prompt: str, prompts: Sequence[str]) -> int | None:
    """The index of a prompt's problem; `prompts` may be bare questions, without the template."""
    if prompt in prompts:
        return prompts.index(prompt)
    inside = [index for index, text in enumerate(prompts) if text and text in prompt]
    return max(inside, key=lambda index: len(prompts[index])) if inside else None


def inspections_of(sections: Sequence[Examples]) -> list[tuple[str, Inspection]]:
    """The inspections of all examples with their models' names, in the order of their cards."""
    return [
        (name, text)
        for examples in sections
        for example in examples.problems
        for name, text in example.texts
        if isinstance(text, Inspection)
    ]


def example_views(examples: Examples, cards: Sequence[Card]) -> list[ExampleView]:
    """The examples of one dataset; `cards` are those of its inspections, in their order."""
    remaining = iter(cards)
    views = []
    for example in examples.problems:
        probed = next((text for _, text in example.texts if isinstance(text, Inspection)), None)
        views.append(
            ExampleView(
                prompt=_one_line(example.prompt),
                answer=example.answer,
                facts=None if probed is None else facts_of(probed),
                question=example.prompt,
                cards=[
                    next(remaining) if isinstance(text, Inspection) else plain_card(name, text)
                    for name, text in example.texts
                ],
            )
        )
    return views


def _one_line(text: str, limit: int = 90) -> str:
    line = " ".join(visible(text).replace("⏎", " ").split())
    return line if len(line) <= limit else f"{line[:limit]}…"


def training_view(group: RunGroup) -> TrainingView | None:
    """Completions of the first run that has any, from the first and the last step with some."""
    run = next((run for run in group.runs if run.texts), None)
    if run is None:
        return None
    columns = []
    for step, rows in run.texts:
        names = [f"step {step}: {_one_line(row['prompt'], 40)}" for row in rows[:2]]
        columns.append([plain_card(*item) for item in zip(names, rows[:2], strict=True)])
    return TrainingView(name=f"{group.name}, seed {run.config['seed']}", columns=columns)
