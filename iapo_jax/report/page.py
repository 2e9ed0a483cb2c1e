"""The report as one HTML page that needs nothing else: no network, no files."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from iapo_jax.evaluation.tables import style_of
from iapo_jax.information.html import Card, Legend, cards_of, legend_of, render_document
from iapo_jax.information.templates import Markup
from iapo_jax.report.charts import Chart, swatch
from iapo_jax.report.comparison import Model, Report, Section
from iapo_jax.report.examples import (
    Examples,
    ExampleView,
    TrainingView,
    choose,
    example_views,
    inspections_of,
    training_view,
)
from iapo_jax.report.grouping import RunGroup
from iapo_jax.report.methods_table import (
    Cell,
    Table,
    findings,
    format_cell,
    main_table,
    names_of,
    sampled,
)
from iapo_jax.report.panels import (
    Panel,
    budget_panel,
    frontier_panel,
    information_panel,
    learning_panels,
    length_panels,
    selection_panel,
    slug,
)
from iapo_jax.report.rows import START

_INTERVALS = (
    "Intervals are 95% bootstrap intervals over problems (each with all its samples) and, if there "
    "are several, over training seeds; differences are paired by problem."
)


class Page(NamedTuple):
    """The page, every chart of it, and its findings as sentences."""

    html: str
    charts: list[Chart]
    findings: list[str]


class Key(NamedTuple):
    """An entry of a legend."""

    swatch: Markup
    name: str
    seeds: str


class TableRow(NamedTuple):
    """A row of a table, with a swatch before its name and small text below it."""

    name: str
    cells: list[Cell]
    swatch: Markup = Markup("")
    small: str = ""


class TableView(NamedTuple):
    """A table of a dataset."""

    heads: list[str]
    rows: list[TableRow]


class Findings(NamedTuple):
    """The findings on one dataset."""

    heading: str  # empty if the report has one dataset
    sentences: list[tuple[str, str]]


class SectionView(NamedTuple):
    """One dataset of the page."""

    id: str
    title: str
    sampled: str
    warnings: list[str]
    main: TableView
    rule: str
    all: TableView
    keys: list[Key]
    panels: list[Panel]
    lengths: list[Panel]
    about: str
    legend: Legend | None
    examples: list[ExampleView]


class LearningView(NamedTuple):
    """The learning curves."""

    about: str
    keys: list[Key]
    panels: list[Panel]


def render_report(report: Report, title: str, *, examples: int, smooth: int) -> Page:
    """The page and the charts in it.

    Args:
      examples: problems of each dataset whose completions are shown side by side.
      smooth: each point of a learning curve is the mean of this many steps; 1 = no smoothing.
    """
    texts = [choose(section, examples) for section in report.sections]
    probed = inspections_of(texts)
    inspections = [inspection for _, inspection in probed]
    cards = cards_of(inspections, [name for name, _ in probed])
    legend = legend_of(inspections) if inspections else None
    taken: set[str] = set()
    sections = []
    for section, some in zip(report.sections, texts, strict=True):
        count = len(inspections_of([some]))
        stem = slug(section.title, taken)
        sections.append(_section(section, stem, some, cards[:count], legend))
        cards = cards[count:]
    learning = _learning(report.groups, smooth) if report.groups else None
    found = _findings(report)
    html = render_document(
        "report.html.jinja",
        title,
        inspections,
        styles=["report.css"],
        lead=_lead(report),
        findings=found,
        contents=_contents(sections, learning),
        sections=sections,
        learning=learning,
        training=_training(report.groups),
        notes=report.notes,
        sources=_sources(report),
    )
    panels = learning.panels if learning else []
    panels = [*panels, *(panel for view in sections for panel in view.panels + view.lengths)]
    return Page(
        html=html,
        charts=[panel.chart for panel in panels if panel.chart],
        findings=[
            f"{one.heading}: {name}: {sentence}" if one.heading else f"{name}: {sentence}"
            for one in found
            for name, sentence in one.sentences
        ],
    )


def _lead(report: Report) -> str:
    runs = sum(len(group.runs) for group in report.groups)
    parts = []
    if runs:
        configs = _count(len(report.groups), "config")
        parts.append(f"{_count(runs, 'run')} of {configs}")
    if report.sections:
        parts.append(f"{_count(len(report.sections), 'dataset')} evaluated")
    return f"{', '.join(parts)}. {_INTERVALS if report.sections else ''}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _findings(report: Report) -> list[Findings]:
    several = len(report.sections) > 1
    return [
        Findings(heading=section.title if several else "", sentences=sentences)
        for section in report.sections
        if (sentences := findings(section))
    ]


def _contents(
    sections: Iterable[SectionView], learning: LearningView | None
) -> list[tuple[str, str]]:
    links = [(view.id, view.title) for view in sections]
    if learning:
        links.append(("learning", "Learning curves"))
    return [*links, ("sources", "Sources and what is missing")]


def _learning(groups: Sequence[RunGroup], smooth: int) -> LearningView:
    about = "Metrics of each training step. "
    if any(len(group.runs) > 1 for group in groups):
        about += "Line: mean of the seeds; band: from the lowest to the highest seed. "
    about += f"Each point is the mean of {smooth} steps." if smooth > 1 else "Not smoothed."
    selection = selection_panel(groups)
    panels = learning_panels(groups, smooth)
    return LearningView(
        about=about,
        keys=_keys(((g.name, g.style, len(g.runs)) for g in groups), "learning"),
        panels=[*panels, selection] if selection else panels,
    )


def _section(
    section: Section, stem: str, texts: Examples, cards: Sequence[Card], legend: Legend | None
) -> SectionView:
    table = main_table(section)
    models = ((model.name, model.style, len(model.members)) for model in section.models)
    return SectionView(
        id=f"data-{stem}",
        title=section.title,
        sampled=sampled(section),
        warnings=[f"{note[:1].upper()}{note[1:]}." for note in section.notes],
        main=_main_view(table, stem),
        rule=_rule(table),
        all=_all_view(section),
        keys=_keys(models, stem),
        panels=[
            frontier_panel(section, stem),
            budget_panel(section, stem),
            information_panel(section, stem),
        ],
        lengths=length_panels(section, stem),
        about=_about(texts),
        legend=legend if cards else None,
        examples=example_views(texts, cards),
    )


def _about(texts: Examples) -> str:
    if not texts.problems:
        return (
            "Not shown: no completions were found next to the results "
            "(….inspections.json or ….completions.jsonl)."
        )
    about = (
        f"The first {_count(len(texts.problems), 'problem')} of the dataset, with the first sample "
        "of each; none is hand-picked."
    )
    return f"{about} {texts.note[:1].upper()}{texts.note[1:]}." if texts.note else about


def _keys(names: Iterable[tuple[str, int, int]], place: str) -> list[Key]:
    """A legend of names, styles and numbers of seeds."""
    return [
        Key(swatch=swatch(style, f"{place}-{n}"), name=name, seeds=_seeds(style, count))
        for n, (name, style, count) in enumerate(names)
    ]


def _seeds(style: int, count: int) -> str:
    if count == 1:
        return ""
    return f"{count} sampling seeds" if style == START else f"{count} seeds"


def _main_view(table: Table, stem: str) -> TableView:
    rows = []
    for n, (model, cells) in enumerate(table.rows):
        mark = swatch(model.style, f"row-{stem}-{n}", line=False)
        rows.append(TableRow(model.name, cells, mark, _below_name(model, table.baseline)))
    return TableView(heads=["model", *table.heads], rows=rows)


def _below_name(model: Model, common_baseline: str) -> str:
    parts = [_seeds(model.style, len(model.members))]
    if model.baseline is not None and not common_baseline:
        parts.append(f"minus {model.baseline}")
    return ", ".join(part for part in parts if part)


def _rule(table: Table) -> str:
    sentences = []
    if any(cell.excludes_0 for _, cells in table.rows for cell in cells):
        sentences.append(
            "Bold: the interval of the difference excludes 0; not corrected for the number of "
            "comparisons."
        )
    if any("accuracy_at_matched_length" in model.differences for model, _ in table.rows):
        sentences.append(
            "At matched length: completions of the longer model are truncated so that both models "
            "use equally many tokens on average; a truncated completion is incorrect."
        )
    return " ".join(sentences)


def _all_view(section: Section) -> TableView:
    heads = ["metric", *(model.name for model in section.models)]
    rows = []
    for name in names_of(section):
        cells = [format_cell(model.estimates.get(name), name) for model in section.models]
        rows.append(TableRow(style_of(name).label, cells))
    return TableView(heads=heads, rows=rows)


def _training(groups: Sequence[RunGroup]) -> list[TrainingView]:
    without = [g for g in groups if not any(run.before or run.after for run in g.runs)]
    return [view for group in without if (view := training_view(group))]


def _sources(report: Report) -> list[tuple[str, str, str]]:
    """The name, details and file of every line and row."""
    rows = []
    for group in report.groups:
        for run in group.runs:
            steps = f"{int(run.steps[-1])} steps" if len(run.steps) else "no steps"
            rows.append((group.name, f"seed {run.config['seed']}, {steps}", str(run.directory)))
    for section in report.sections:
        for model in section.models:
            for path, record in ((member.path, member.record) for member in model.members):
                about = [section.title]
                if record.step is not None:
                    about.append(f"step {record.step}")
                if "seed" in record.settings:
                    about.append(f"sampled with seed {record.settings['seed']}")
                file = f"{path}, {record.source}" if record.source else str(path)
                rows.append((model.name, ", ".join(about), file))
    return rows
