"""The report as one HTML page that needs nothing else: no network, no files."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from iapo_jax.information.html import render_document
from iapo_jax.information.inspection import visible
from iapo_jax.report import examples as texts_beside
from iapo_jax.report.charts import Chart, swatch
from iapo_jax.report.comparison import Model, Report, Section
from iapo_jax.report.entries import START
from iapo_jax.report.grouping import Line
from iapo_jax.report.methods_table import (
    Cell,
    findings,
    head_of,
    main_table,
    names_of,
    sampled,
    told,
)
from iapo_jax.report.panels import (
    Drawn,
    budget_chart,
    frontier_chart,
    information_chart,
    learning_charts,
    length_charts,
    selection_chart,
    slug,
)

_INTERVALS = (
    "Intervals are 95%, by a bootstrap over problems with all samples of a problem, and over "
    "training seeds where there are several; differences are paired by problem."
)


_MATCHED = "accuracy_at_matched_length"


class Page(NamedTuple):
    """What is written: the page, and every chart of it."""

    html: str
    charts: list[Chart]
    findings: list[str]


class _Part(NamedTuple):
    """One data set of the page."""

    id: str
    html: str
    charts: list[Chart]


def render_report(report: Report, title: str, *, examples: int, smooth: int) -> Page:
    """The page and the charts in it.

    Args:
      examples: problems of each data set whose completions are shown side by side.
      smooth: steps of which a point of a learning curve is the mean; 1 = none.
    """
    learning = learning_charts(report.lines, smooth) if report.lines else []
    chosen = selection_chart(report.lines)
    beside = [texts_beside.choose(section, examples) for section in report.sections]
    texts = texts_beside.render_examples(beside)
    taken: set[str] = set()
    parts = [
        _section(section, slug(section.title, taken), text, some)
        for section, text, some in zip(report.sections, texts, beside, strict=True)
    ]
    told_of = [(section, findings(section)) for section in report.sections]
    body = "\n".join(
        [
            "<main>",
            _findings(report, told_of),
            _contents(report, parts),
            *(part.html for part in parts),
            "" if parts else _nothing_evaluated(),
            _learning(report.lines, learning, chosen, smooth),
            _training_texts(report),
            _sources(report),
            "</main>",
        ]
    )
    inspections = [one for _, one in texts_beside.shown(beside)]
    drawn = [one.chart for one in [*learning, *([chosen] if chosen else [])] if one.chart]
    return Page(
        render_document(title, body, inspections, ["report.css"]),
        drawn + [chart for part in parts for chart in part.charts],
        [
            f"{section.title}: " * (len(told_of) > 1) + f"{name}: {text}"
            for section, found in told_of
            for name, text in found
        ],
    )


def _findings(report: Report, told_of: Sequence[tuple[Section, list[tuple[str, str]]]]) -> str:
    runs, labels = sum(len(line.runs) for line in report.lines), len(report.lines)
    what = [f"{runs} run{'s' * (runs != 1)} of {labels} config{'s' * (labels != 1)}"] * bool(runs)
    datasets = len(report.sections)
    what += [f"{datasets} data set{'s' * (datasets != 1)} evaluated"] * bool(datasets)
    parts = [f'<p class="lead">{", ".join(what)}. {_INTERVALS if datasets else ""}</p>']
    for section, found in told_of:
        if len(report.sections) > 1 and found:
            parts.append(f'<p class="on">On {escape(section.title)}:</p>')
        items = "".join(f"<li><b>{escape(name)}</b>: {escape(text)}.</li>" for name, text in found)
        parts.append(f'<ul class="findings">{items}</ul>' if found else "")
    if not any(found for _, found in told_of):
        parts.append(_plain("No model here has a baseline on the same problems to compare with."))
    return "\n".join(parts)


def _contents(report: Report, parts: Iterable[_Part]) -> str:
    links = [(part.id, section.title) for part, section in zip(parts, report.sections, strict=True)]
    links += [("learning", "Learning curves")] * bool(report.lines)
    links.append(("sources", "Sources and what is missing"))
    items = "".join(f'<li><a href="#{id_}">{escape(name)}</a></li>' for id_, name in links)
    return f'<nav aria-label="contents"><ul>{items}</ul></nav>'


def _learning(
    lines: Sequence[Line], learning: Sequence[Drawn], chosen: Drawn | None, smooth: int
) -> str:
    if not lines:
        return ""
    several = any(len(line.runs) > 1 for line in lines)
    note = "Of the completions sampled in training. "
    if several:
        note += "Line: mean of the seeds; band: from the lowest to the highest seed. "
    note += f"Each point is the mean of {smooth} steps." if smooth > 1 else "Not smoothed."
    keys = _keys(((line.name, line.look, len(line.runs)) for line in lines), "learning")
    more = [chosen] if chosen else []
    figures = "".join(_figure(one) for one in [*learning, *more])
    return f"""<section id="learning" aria-labelledby="learning-h">
<h2 id="learning-h">Learning curves</h2>
<p class="about">{note}</p>
{keys}
<div class="charts">{figures}</div>
</section>"""


def _section(section: Section, stem: str, texts: str, beside: texts_beside.Examples) -> _Part:
    pair = [frontier_chart(section, stem), budget_chart(section, stem)]
    pair.append(information_chart(section, stem))
    lengths = length_charts(section, stem)
    notes = "".join(f'<p class="warn">{escape(note[:1].upper() + note[1:])}.</p>'
                    for note in section.notes)  # fmt: skip
    models = ((model.name, model.look, len(model.members)) for model in section.models)
    keys = _keys(models, stem)
    count = len(beside.problems)
    about = f"The first {count} problems of the data set, the first sample of each; none is picked."
    note = f" Not shown: {beside.note}." if beside.note else ""
    if not count:
        about = "Not shown: no texts of any model lie beside the results"
        about, note = f"{about} (….inspections.json or ….completions.jsonl).", ""
    html = f"""<section id="data-{stem}" aria-labelledby="data-{stem}-h">
<h2 id="data-{stem}-h">{escape(section.title)}</h2>
<p class="about">{sampled(section)}.</p>{notes}
{_table(section, stem)}
{keys}
<div class="charts">{"".join(_figure(one) for one in pair)}</div>
<h3>Lengths of right and wrong answers</h3>
<p class="about">Share of all completions; filled and upwards: right, hatched and downwards: wrong.
Same bars and axes for all models; the dotted line is the limit.</p>
<div class="charts">{"".join(_figure(one) for one in lengths)}</div>
<h3>Side by side</h3>
<p class="about">{about}{escape(note)}</p>
{texts}
</section>"""
    charts = [one.chart for one in [*pair, *lengths] if one.chart]
    return _Part(f"data-{stem}", html, charts)


def _figure(one: Drawn) -> str:
    unit = f" <span>{escape(one.unit)}</span>" if one.unit else ""
    head = f"<figcaption><b>{escape(one.title)}</b>{unit}</figcaption>"
    note = f'<p class="note">{escape(one.note)}</p>' if one.note else ""
    if one.chart is None:
        return f'<figure class="chart empty">{head}{note}</figure>'
    return f'<figure class="chart">{head}{one.chart.svg}{note}</figure>'


def _keys(names: Iterable[tuple[str, int, int]], place: str) -> str:
    """A legend of name, look and how many seeds it is of."""
    items = "".join(
        f"<li>{swatch(look, f'{place}-{n}')}<span>{escape(name)}"
        f"{f' <small>{_seeds(look, count)}</small>' if count > 1 else ''}</span></li>"
        for n, (name, look, count) in enumerate(names)
    )
    return f'<ul class="keys" aria-label="what is what">{items}</ul>'


def _seeds(look: int, count: int) -> str:
    return f"{count} sampling seeds" if look == START else f"{count} seeds"


def _cell(cell: Cell) -> str:
    style = ' class="apart"' if cell.excludes_0 else ""
    small = f"<small>{cell.interval}</small>" if cell.interval else ""
    return f"<td{style}>{cell.value}{small}</td>"


def _table(section: Section, stem: str) -> str:
    table = main_table(section)
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in ["model", *table.heads])
    rows = "".join(
        f'<tr><th scope="row">{swatch(model.look, f"row-{stem}-{n}", line=False)}'
        f"{escape(model.name)}{_small(model, bool(table.baseline))}</th>"
        f"{''.join(map(_cell, cells))}</tr>"
        for n, (model, cells) in enumerate(table.rows)
    )
    label = escape(f"figures of {section.title}")
    marked = any(cell.excludes_0 for _, cells in table.rows for cell in cells)
    rule = "Bold: the interval of the difference excludes 0; not corrected for the number of "
    rule = f"{rule}comparisons. " if marked else ""
    if any(_MATCHED in model.differences for model, _ in table.rows):
        rule += "At the same length: the longer of the two is cut until both spend as much on "
        rule += "average; what is cut is wrong."
    rule = f'<p class="note">{rule}</p>' if rule else ""
    return f"""<div class="wide" role="region" aria-label="{label}" tabindex="0">
<table class="methods"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{rule}
<details class="all"><summary>all figures</summary>
<div class="wide" role="region" aria-label="all {label}" tabindex="0">{_all(section)}</div>
</details>"""


def _small(model: Model, one_baseline: bool) -> str:
    seeds = [_seeds(model.look, len(model.members))] * (len(model.members) > 1)
    base = [f"less {model.baseline}"] * (model.baseline is not None and not one_baseline)
    return f"<small>{escape(', '.join([*seeds, *base]))}</small>" if seeds or base else ""


def _all(section: Section) -> str:
    heads = "".join(f'<th scope="col">{escape(m.name)}</th>' for m in section.models)
    rows = "".join(
        f'<tr><th scope="row">{escape(head_of(name))}</th>'
        f"{''.join(_cell(told(m.estimates.get(name), name)) for m in section.models)}</tr>"
        for name in names_of(section)
    )
    head = f'<thead><tr><th scope="col">figure</th>{heads}</tr></thead>'
    return f'<table class="methods">{head}<tbody>{rows}</tbody></table>'


def _nothing_evaluated() -> str:
    return (
        "<section><h2>Evaluation</h2>"
        + _plain(
            "Accuracy against length, lengths, the methods' table and completions side by side are "
            "not shown: no evaluation was found (eval/before.json and eval/after.json of a run, or "
            "a directory written by iapo_jax.evaluate)."
        )
        + "</section>"
    )


def _training_texts(report: Report) -> str:
    without = [line for line in report.lines if not any(r.before or r.after for r in line.runs)]
    parts = "".join(map(texts_beside.render_training_texts, without))
    if not parts:
        return ""
    about = "Of runs without an evaluation: completions of the first and of the last step, which "
    return (
        "<section><h2>Completions of training</h2>"
        f'<p class="about">{about}are of different problems.</p>{parts}</section>'
    )


def _sources(report: Report) -> str:
    rows = []
    for line in report.lines:
        for run in line.runs:
            steps = f"{int(run.steps[-1])} steps" if len(run.steps) else "no step"
            rows.append((line.name, f"seed {run.config['seed']}, {steps}", str(run.directory)))
    for section in report.sections:
        for model in section.models:
            for one in model.members:
                at = f", step {one.step}" if one.step is not None else ""
                seed = (
                    f", sampled with seed {one.settings['seed']}" if "seed" in one.settings else ""
                )
                about = f"{section.title}{at}{seed}"
                rows.append((model.name, about, f"{one.path}, {one.source}".rstrip(", ")))
    cells = "".join(
        "<tr>" + "".join(f"<td>{escape(visible(text))}</td>" for text in row) + "</tr>"
        for row in rows
    )
    notes = "".join(f"<li>{escape(visible(note))}</li>" for note in report.notes)
    missing = f"<h3>What is missing</h3><ul>{notes}</ul>" if notes else ""
    return f"""<section id="sources" aria-labelledby="sources-h">
<h2 id="sources-h">Sources and what is missing</h2>
{missing}
<details><summary>where every line and row comes from</summary>
<div class="wide" role="region" aria-label="sources" tabindex="0">
<table class="sources"><thead><tr><th scope="col">name</th><th scope="col">of</th>
<th scope="col">file</th></tr></thead><tbody>{cells}</tbody></table></div></details>
</section>"""


def _plain(text: str) -> str:
    return f'<p class="about">{escape(text)}</p>'
