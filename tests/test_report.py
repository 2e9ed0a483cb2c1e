"""The report: what is one line, what is compared with what, and that files equal the data."""

import contextlib
import csv
import html
import io
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from result_directories import (
    completion,
    drawn,
    inspection,
    member,
    metric,
    write_evaluation,
    write_lines,
    write_run,
)

from iapo_jax.evaluation.intervals import Estimate
from iapo_jax.report import command as report
from iapo_jax.report.comparison import compare
from iapo_jax.report.grouping import metric_band
from iapo_jax.report.methods_table import MINUS, format_cell, format_number
from iapo_jax.report.panels import selection_panel
from iapo_jax.report.results import read_directory
from iapo_jax.report.rows import START

HOSTILE = "<script>window.hacked = 1</script>"


def read(*directories):
    return compare([read_directory(one, examples=4) for one in directories])


def names(compared):
    return [(line.name, len(line.runs)) for line in compared.groups]


# ------------------------------------------------------------------ seeds and names


def test_seeds_of_one_config_are_one_line(tmp_path):
    runs = [write_run(tmp_path / f"s{seed}", seed=seed, rate=2.0) for seed in (0, 1, 2)]
    other = write_run(tmp_path / "g", method="grpo")
    compared = read(runs[0], other, *runs[1:])
    assert names(compared) == [("iapo_priced", 3), ("grpo", 1)]
    band, note = metric_band(compared.groups[0], "reward", 1)
    steps = np.arange(1, 6)
    np.testing.assert_allclose(band.middle, [metric("reward", s, 1, 2.0) for s in steps])
    np.testing.assert_allclose(band.low, [metric("reward", s, 0, 2.0) for s in steps])
    np.testing.assert_allclose(band.high, [metric("reward", s, 2, 2.0) for s in steps])
    assert note == ""


def test_configs_that_share_a_method_are_named_by_what_differs(tmp_path):
    rates = [write_run(tmp_path / f"r{n}", optimizer={"learning_rate": 10.0**-n}) for n in (4, 5)]
    assert names(read(*rates)) == [
        ("iapo_priced (learning_rate=0.0001)", 1),
        ("iapo_priced (learning_rate=1e-05)", 1),
    ]


def test_configs_that_differ_in_much_are_named_by_their_directory(tmp_path):
    one = write_run(tmp_path / "one", data={"dataset": "a" * 60})
    other = write_run(tmp_path / "other", data={"dataset": "b" * 60})
    assert names(read(one, other)) == [(f"iapo_priced ({d})", 1) for d in (one, other)]


@pytest.mark.parametrize("field", ["learning_rate", "adam_beta1"])
def test_two_configs_never_share_a_name(tmp_path, field):
    """Six configs, two methods: as many names as configs."""
    runs = [
        write_run(tmp_path / f"{m}{v}", method=m, optimizer={field: v})
        for m in ("grpo", "iapo")
        for v in (0.1, 0.2, 0.3)
    ]
    found = [name for name, _ in names(read(*runs))]
    assert len(set(found)) == 6 and all(field in name for name in found)


def test_the_same_seed_twice_is_said(tmp_path):
    runs = [write_run(tmp_path / name, seed=7) for name in "ab"]
    compared = read(*runs)
    assert names(compared) == [("iapo_priced", 2)]
    assert any("2 runs have the seed 7" in note for note in compared.notes)


def test_seeds_that_stopped_early_end_the_line_and_that_is_said(tmp_path):
    runs = [write_run(tmp_path / f"{n}", seed=n, steps=n) for n in (3, 5)]
    band, note = metric_band(read(*runs).groups[0], "reward", 1)
    assert (
        band.x.tolist() == [1, 2, 3] and "only the 3 steps that all seeds have, of up to 5" in note
    )


def test_the_start_is_one_point_of_all_runs_that_share_it(tmp_path):
    """Two methods and two seeds: the samples of a seed are the same under both, and count once."""
    before = [member(**drawn(0.7, 40, seed=n), seed=n) for n in (0, 1)]
    runs = [
        write_run(tmp_path / f"{m}{n}", method=m, seed=n, before=before[n], after=before[n])
        for m in ("grpo", "iapo")
        for n in (0, 1)
    ]
    (section,) = read(*runs).sections
    start, *trained = section.models
    assert (start.name, start.style, len(start.members)) == ("start", START, 2)
    assert [(m.name, len(m.members), m.baseline) for m in trained] == [
        ("grpo", 2, "start"),
        ("iapo", 2, "start"),
    ]
    assert start.estimates["accuracy"].value == pytest.approx(
        np.mean([b["correct"] for b in before])
    )


def test_other_start_models_and_other_ways_to_sample_are_other_starts(tmp_path):
    hot = member(settings={"seed": 0, "temperature": 2.0})
    runs = [
        write_run(tmp_path / "a", before=member(), after=member()),
        write_run(tmp_path / "b", before=member(), after=member(), model={"path": "other"}),
        write_run(tmp_path / "c", before=hot, after=hot, eval={"temperature": 2.0}),
    ]
    (section,) = read(*runs).sections
    starts = [model.name for model in section.models if model.style == START]
    assert starts == ["start (start/model)", "start (other)", "start (start/model) 2"]
    assert len({model.name for model in section.models}) == 6
    assert len({model.baseline for model in section.models} - {None}) == 3
    assert any("temperature is 1.0 for start (start/model), start (other)," in note
               for note in section.notes)  # fmt: skip


def test_two_data_sets_are_two_sections_and_never_averaged(tmp_path):
    runs = [
        write_run(tmp_path / name, seed=n, before=member(dataset=name), after=member(dataset=name))
        for n, name in enumerate(("gsm8k", "math"))
    ]
    compared = read(*runs)
    assert names(compared) == [("iapo_priced", 2)]
    assert [section.title for section in compared.sections] == ["gsm8k", "math"]
    assert all(len(m.members) == 1 for section in compared.sections for m in section.models)


def test_one_name_for_other_problems_is_another_section(tmp_path):
    one, other = member(), member(answers=["7"] * 4)
    write_evaluation(tmp_path / "a", [one])
    write_evaluation(tmp_path / "b", [other])
    titles = [section.title for section in read(tmp_path / "a", tmp_path / "b").sections]
    assert len(set(titles)) == 2 and all("arithmetic:test:first 4" in title for title in titles)


def test_a_label_that_stands_for_two_models_is_told_apart(tmp_path):
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, [member(source=f"models/{name}")])
    (section,) = read(tmp_path / "a", tmp_path / "b").sections
    assert [m.name for m in section.models] == [f"priced ({tmp_path / n})" for n in ("a", "b")]


def test_a_label_keeps_its_name_over_data_sets(tmp_path):
    for name in ("gsm8k", "math"):
        write_evaluation(tmp_path / name, [member(dataset=name)])
    found = read(tmp_path / "gsm8k", tmp_path / "math")
    assert [[m.name for m in section.models] for section in found.sections] == [["priced"]] * 2
    assert len({m.style for section in found.sections for m in section.models}) == 1


def test_a_label_with_the_parameters_of_a_run_looks_as_the_run(tmp_path):
    """The start and the trained model, evaluated again: on other problems under their own names; on
    the same problems beside the run's models, with the directory in their names."""
    before, after = member(fingerprint="s"), member(fingerprint="t")
    run = write_run(tmp_path / "r", method="grpo", before=before, after=after)
    for name, dataset in (("other", "gsm8k"), ("same", before["dataset"])):
        gap = {"model": "grpo", "baseline": "start", "dataset": dataset, "name": "accuracy"}
        fields = [("start", "s"), ("grpo", "t"), ("mine", "t"), ("new", "u")]
        write_evaluation(
            tmp_path / name,
            [member(label, dataset=dataset, fingerprint=print_) for label, print_ in fields],
            summary={"figures": [], "differences": [gap | dict(value=0.1, low=0.0, high=0.2)]},
        )
    (line,) = read(run).groups
    other = read(run, tmp_path / "other").sections[1]
    looks = {model.name: model.style for model in other.models}
    assert looks == {"grpo": line.style, "mine": line.style, "new": 1, "start": START}
    (same,) = read(run, tmp_path / "same").sections
    again = {f"{name} ({tmp_path / 'same'})": name for name in ("start", "grpo")}
    assert {model.name for model in same.models} == {"start", "grpo", "mine", "new", *again}
    baselines = {model.name: model.baseline for model in same.models}
    assert (
        baselines["grpo"] == "start" and again[baselines[f"grpo ({tmp_path / 'same'})"]] == "start"
    )


def test_models_stand_in_the_order_of_the_command(tmp_path):
    figures = [{"model": label, "dataset": "d", "name": "accuracy", "value": 1} for label in "ba"]
    write_evaluation(tmp_path / "e", [member(label) for label in "abc"],
                     summary={"figures": figures})  # fmt: skip
    (section,) = read(tmp_path / "e").sections
    assert [model.name for model in section.models] == ["b", "a", "c"]


def test_problems_that_one_model_lacks_are_left_out_and_counted(tmp_path):
    """One of 20 was too long for its tokenizer; the others are compared in pairs."""
    whole = member("a", **drawn(0.5, 40, problems=20))
    names = ("rows", "prompts", "answers", "correct", "length", "finished", "votes")
    names = (*names, "thinking_length")
    part = whole | {"model": "b"} | {name: whole[name][1:] for name in names}
    write_evaluation(tmp_path / "e", [whole, part])
    (section,) = read(tmp_path / "e").sections
    assert [one.record.rows for m in section.models for one in m.members] == [
        list(range(1, 20))
    ] * 2
    first, second = section.models
    assert first.estimates == second.estimates
    assert section.notes == ["1 of 20 problems are left out, because some models lack them"]


def test_half_of_the_problems_is_another_section(tmp_path):
    half = member(**{name: value[:2] for name, value in member().items() if
                     name in ("correct", "length")})  # fmt: skip
    write_evaluation(tmp_path / "a", [member()])
    write_evaluation(tmp_path / "b", [half])
    assert len(read(tmp_path / "a", tmp_path / "b").sections) == 2


# ------------------------------------------------------------------ the table


def evaluated(directory, **beside):
    """Two labels, one of two seeds, with a summary of a figure and a difference of its own."""
    start = member("start", **drawn(0.8, 60, seed=1))
    members = [member(member=n, members=2, **drawn(0.85, 30, seed=5 + n), seed=n) for n in (0, 1)]
    about = {"dataset": start["dataset"], "name": "accuracy"}
    summary = {
        "figures": [about | {"model": "start", "value": 0.801, "low": 0.79, "high": 0.81}],
        "differences": [
            about | {"model": "priced", "baseline": "start", "value": v, "low": lo, "high": hi}
            for v, lo, hi in [(0.0625, 0.03125, 0.09375)]
        ],
    }
    return write_evaluation(directory, [start, *members], summary=summary, **beside), members


def make(tmp_path, *directories, **options):
    """The report's directory."""
    extra = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    out = tmp_path / "out"
    assert report.main([*map(str, directories), "--out", str(out), *extra]) == 0
    return out


@pytest.fixture(scope="module")
def evaluation_report(tmp_path_factory):
    """The evaluation's directory, its trained members, and the report's directory."""
    folder = tmp_path_factory.mktemp("evaluation")
    directory, members = evaluated(folder / "e")
    return directory, members, make(folder, directory)


def rows_of(out):
    with (out / "methods.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_csv_holds_every_figure_unrounded(evaluation_report):
    _, members, out = evaluation_report
    rows = {row["model"]: row for row in rows_of(out)}
    correct = np.concatenate([one["correct"] for one in members], 1)
    length = np.concatenate([one["length"] for one in members], 1)
    row = rows["priced"]
    expected = {
        "accuracy": correct.mean(),
        "length": length.mean(),
        "ratio@1": 100 * correct.mean() / length.mean(),
        "tokens_per_right_answer": length.sum() / correct.sum(),
        "length_correct": length[correct].mean(),
        "length_wrong": length[~correct].mean(),
        "cut_share": (length >= 96).mean(),
    }
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, rel=1e-12), name
        assert float(row[f"{name}_low"]) <= value <= float(row[f"{name}_high"])
    assert (row["seeds"], row["problems"], row["samples"], row["baseline"]) == (
        *("2", "60", "4", "start"),
    )
    # values in the evaluation's own summary are shown as they are
    assert [float(row[f"difference_accuracy{end}"]) for end in ("", "_low", "_high")] == [
        *(0.0625, 0.03125, 0.09375),
    ]
    assert float(rows["start"]["accuracy"]) == 0.801 and rows["start"]["difference_length"] == ""


def test_markdown_and_page_show_the_csvs_figures_rounded(evaluation_report):
    *_, out = evaluation_report
    row = rows_of(out)[1]
    value, low, high = (float(row[f"length{end}"]) for end in ("", "_low", "_high"))
    page = (out / "report.html").read_text()
    table = (out / "methods.md").read_text()
    assert row["model"] == "priced"
    assert f"<td>{value:.1f}<small>{low:.1f} to {high:.1f}</small></td>" in page
    assert f"| {value:.1f} [{low:.1f}, {high:.1f}] |" in table
    assert '<td class="apart">+0.062<small>+0.031 to +0.094</small></td>' in page
    assert "**+0.062 [+0.031, +0.094]**" in table


def test_differences_of_runs_are_paired_by_problem(tmp_path):
    """Every problem is 10 tokens shorter, whatever its length, so the interval has width 0."""
    before = member(**drawn(0.8, 60))
    cut = [[max(n, 11) for n in row] for row in before["length"]]
    shorter = before | {"length": [[n - 10 for n in row] for row in cut]}
    run = write_run(tmp_path / "r", before=before | {"length": cut}, after=shorter)
    (row,) = [row for row in rows_of(make(tmp_path, run)) if row["baseline"]]
    values = [float(row[f"difference_length{end}"]) for end in ("", "_low", "_high")]
    assert values == pytest.approx([-10, -10, -10])


def test_accuracy_at_the_same_length_by_hand(tmp_path):
    """The start spends 20 and is cut at 15, where it spends (10 + 15 + 15 + 10) / 4 = 12.5 as the
    other does: its two answers of 30 tokens are lost, and the difference is 4/4 - 2/4."""
    before = member(correct=[[True]] * 4, length=[[10], [30], [30], [10]])
    after = member(correct=[[True]] * 4, length=[[12], [13], [13], [12]])
    run = write_run(tmp_path / "r", before=before, after=after)
    model = read(run).sections[0].models[1]
    assert model.differences["accuracy_at_matched_length"].value == pytest.approx(0.5)
    out = make(tmp_path, run)
    assert float(rows_of(out)[1]["difference_accuracy_at_matched_length"]) == pytest.approx(0.5)
    assert "accuracy at matched length, minus start" in plain_text(body_of(out))


def test_pipes_and_stars_of_a_name_do_not_break_the_markdown(tmp_path):
    write_evaluation(tmp_path / "e", [member("a|b*c")])
    table = (make(tmp_path, tmp_path / "e") / "methods.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "a\\|b\\*c" in table


def test_signs_are_true_minus_signs_and_none_for_nothing():
    assert format_number(-1.25, ".2f", signed=True) == f"{MINUS}1.25"
    assert (
        format_number(-0.0004, ".3f", signed=True)
        == "0.000"
        == format_number(0.0, ".3f", signed=True)
    )
    assert format_number(0.5, ".0%", signed=True) == "+50%"


@pytest.mark.parametrize("low, high, apart", [
    (0.1, 0.3, True), (-0.3, -0.1, True), (-0.1, 0.3, False), (0.0, 0.3, False),
])  # fmt: skip
def test_a_difference_is_marked_where_its_interval_excludes_0(low, high, apart):
    assert format_cell(Estimate(0.0, low, high), "accuracy", signed=True).excludes_0 == apart
    assert not format_cell(Estimate(0.0, low, high), "accuracy").excludes_0


def test_nothing_to_compute_from_is_a_dash(tmp_path):
    """Without wrong answers they have no mean length."""
    all_right = member(correct=[[True, True]] * 4)
    out = make(tmp_path, write_evaluation(tmp_path / "e", [all_right]))
    assert rows_of(out)[0]["length_wrong"] == "" and "nan" not in (out / "methods.md").read_text()
    assert format_cell(Estimate(math.nan, math.nan, math.nan), "accuracy").value == "–"


# ------------------------------------------------------------------ the page as text


def body_of(out):
    return (out / "report.html").read_text(encoding="utf-8")


def plain_text(page):
    return html.unescape(re.sub(r"<[^>]*>", " ", page.partition("<body>")[2]))


@pytest.fixture(scope="module")
def full_report(tmp_path_factory):
    """Two methods of two seeds and one, with everything that a report can show: its directory, and
    what the command printed."""
    tmp_path = tmp_path_factory.mktemp("full")
    before = member(**drawn(0.8, 60), dataset="arithmetic")
    made = []
    for method, seed, mean in (("iapo_priced", 0, 30), ("iapo_priced", 1, 32), ("grpo", 0, 50)):
        after = member(**drawn(0.85, mean, seed=seed + 1), dataset="arithmetic", seed=seed)
        told = [inspection(p, [0.1, 0.5, 0.1, 0.1], after=2) for p in before["prompts"][:3]]
        made.append(
            write_run(
                *(tmp_path / f"{method}{seed}",),
                **dict(seed=seed, method=method, before=before, after=after, steps=20),
                inspections=(told, told[:2]),
            )
        )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        return make(tmp_path, *made), printed.getvalue()


def test_a_report_of_everything(full_report):
    out, _ = full_report
    page = body_of(out)
    charts = sorted(path.name for path in (out / "charts").iterdir())
    curves = ["accuracy", "entropy", "information", "kl", "length", "reward"]
    lengths = [f"lengths-arithmetic-{name}" for name in ("grpo", "iapo-priced", "start")]
    rest = [f"{kind}-arithmetic" for kind in ("budget", "frontier", "where")]
    assert charts == sorted(f"{name}.png" for name in curves + lengths + rest)
    assert page.count('<figure class="chart">') == len(charts)
    assert page.count("<article data-index=") == 3 + 2 * 2  # start has 3 problems, the others 2
    assert "from the lowest to the highest seed" in page and "Not smoothed" in page
    assert len(re.findall(r'role="img" aria-labelledby="[^"]*-t [^"]*-d"', page)) == len(charts)


def test_the_findings_are_the_tables_figures(full_report):
    out, printed = full_report
    rows = {row["model"]: {k: float(v) for k, v in row.items() if re.search("acc|length", k) and v}
            for row in rows_of(out)}  # fmt: skip
    for name in ("iapo_priced", "grpo"):
        ours, start = rows[name], rows["start"]
        change = 100 * (ours["length"] / start["length"] - 1)
        low, high = ours["difference_accuracy_low"], ours["difference_accuracy_high"]
        sentence = (
            f"{ours['length']:.1f} tokens instead of {start['length']:.1f} ({change:+.0f}%), "
            f"accuracy {ours['accuracy']:.3f} against {start['accuracy']:.3f}, "
            f"interval of the difference {low:+.3f} to {high:+.3f}"
        ).replace("-", MINUS)
        assert f"{name}</b>: {sentence}" in body_of(out)
        assert f"{name}: {sentence}" in printed


def test_the_page_needs_and_allows_nothing_else(full_report):
    page = body_of(full_report[0])
    assert "http://" not in page and "https://" not in page
    assert not re.search(r"<(link|img|iframe|object|embed|base)\b|@import|url\((?!#)", page)
    assert "default-src 'none'" in page and "'unsafe-inline'; script-src 'sha256-" in page
    assert page.count("<script") == 2
    ids = re.findall(r'\bid="([^"]*)"', page.partition("<body>")[2])
    assert len(ids) == len(set(ids))


def test_texts_of_models_and_users_are_escaped(tmp_path):
    found = member(HOSTILE, dataset=HOSTILE, prompts=[HOSTILE] * 4, answers=[HOSTILE] * 4)
    lines = [completion(found, 0, completion=HOSTILE, extracted=HOSTILE)]
    told = [inspection(HOSTILE, [1, 2], text=HOSTILE, answer=HOSTILE)]
    (tmp_path / "e").mkdir()
    for stem, beside in (("a", {"completions": lines}), ("b", {"inspections": told})):
        one = found | {"model": f"{HOSTILE}{stem}"}
        (tmp_path / "e" / f"{stem}.x.json").write_text(json.dumps(one))
        for kind, rows in beside.items():
            ending = "jsonl" if kind == "completions" else "json"
            path = tmp_path / "e" / f"{stem}.x.{kind}.{ending}"
            write_lines(path, rows) if ending == "jsonl" else path.write_text(json.dumps(rows))
    out = make(tmp_path, tmp_path / "e", title=HOSTILE)
    page = body_of(out)
    assert "<script>window" not in page and page.count("<script") == 2
    assert page.count("&lt;script&gt;window") > 10
    assert all(re.fullmatch(r"[a-z0-9.-]+", path.name) for path in (out / "charts").iterdir())


def test_inspections_are_put_beside_each_other_by_their_prompt(tmp_path):
    """One model's in another order, and as the template renders the question."""
    prompts = ["What is 1+1?", "What is 11+1?", "What is 2+2?", "x"]
    found = [member(name, prompts=prompts) for name in ("a", "b")]
    told = [[inspection(f"<user>{p}<assistant>", [n + 1.0]) for n, p in enumerate(prompts[:3])]
            for _ in found]  # fmt: skip
    for one, seen in zip(found, (told[0], told[1][::-1]), strict=True):
        write_evaluation(tmp_path / "e", [one], inspections=seen)
    page = body_of(make(tmp_path, tmp_path / "e"))
    examples = re.findall(
        r'<details class="example".*?(?=<details class="example"|<h2)', page, re.S
    )
    assert len(examples) == 3
    for number, text in enumerate(examples, 1):
        assert text.count(f"<dd>+{number}.000</dd>") == 2


def test_texts_without_inspections_are_shown_plainly(tmp_path):
    found = [member(name) for name in ("a", "b")]
    for one in found:
        lines = [completion(one, row) for row in range(4)]
        write_evaluation(tmp_path / "e", [one], completions=lines)
    text = plain_text(body_of(make(tmp_path, tmp_path / "e", examples=2)))
    assert all(f"{name} says {row}" in text for name in "ab" for row in (0, 1))
    assert "a says 2" not in text and "The first 2 problems of the dataset" in text


# ------------------------------------------------------------------ what is missing is said


def test_a_run_without_evaluation_gives_curves_and_says_the_rest(tmp_path):
    out = make(tmp_path, write_run(tmp_path / "r", without=("kl",)))
    text = plain_text(body_of(out))
    assert "Not drawn: no run has logged `kl`" in text
    assert "No evaluation was found" in text and "eval/before.json" in text
    assert "<b>step 1</b>" in text and "different problems" in text
    assert len(list((out / "charts").iterdir())) == 5
    assert (out / "methods.md").read_text() == "No evaluation was found.\n"


def test_an_evaluation_alone_has_no_curves(tmp_path):
    out = make(tmp_path, write_evaluation(tmp_path / "e", [member()]))
    text = plain_text(body_of(out))
    assert "Learning curves" not in text
    assert "no inspections (" in text and "no completions were found" in text
    assert "No model here can be compared with a baseline" in text


def test_a_metric_that_one_of_two_runs_lacks_is_said_beside_its_chart(tmp_path):
    runs = [
        write_run(tmp_path / method, method=method, without=without)
        for method, without in (("iapo", ()), ("grpo", ("kl",)))
    ]
    page = body_of(make(tmp_path, *runs))
    figure = next(f for f in re.findall(r"<figure.*?</figure>", page, re.S) if "KL to the" in f)
    assert "Not logged by grpo." in figure and "<svg" in figure


def test_smoothing_is_said(tmp_path):
    text = plain_text(body_of(make(tmp_path, write_run(tmp_path / "r"), smooth=2)))
    assert "Each point is the mean of 2 steps." in text and "Not smoothed" not in text


def test_twelve_runs_are_told_apart(tmp_path):
    """A legend of twelve, twelve looks, and charts without a legend in them."""
    runs = [
        write_run(tmp_path / f"{n}", optimizer={"learning_rate": 10.0**-n}, texts=False)
        for n in range(1, 13)
    ]
    page = body_of(make(tmp_path, *runs))
    keys = re.findall(r"<li>(<svg.*?</svg>)<span>(.*?)</span></li>", page, re.S)
    assert len({name for _, name in keys}) == 12
    assert len({re.sub(r"key-[a-z]+-\d+-\d+-\w+", "", svg) for svg, _ in keys}) == 12


def test_the_chosen_checkpoint_is_shown(tmp_path):
    """The ratio of the file is by token; the page's by 100 tokens."""
    directory = write_run(tmp_path / "r")
    rows = [
        dict(step=s, accuracy=0.9, length=40.0, ratio=r, criterion="ratio", chosen=s == 10)
        | {"ratio_low": r - 0.001, "ratio_high": r + 0.001}
        for s, r in ((0, 0.018), (10, 0.025), (15, 0.024))
    ]
    write_lines(directory / "selection.jsonl", rows)
    (line,) = read(directory).groups
    chart = selection_panel([line])
    assert chart.unit == "accuracy per 100 tokens"
    assert "Chosen: iapo_priced, seed 0: step 10." in chart.note
    ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", chart.chart.svg)]
    assert len([tick for tick in ticks if 1.7 <= tick <= 2.6]) >= 3
    out = make(tmp_path, directory)
    assert (out / "charts" / "selection.png").read_bytes() == chart.chart.png


def test_an_evaluation_that_is_going_on_is_left_out_and_said(tmp_path):
    empty = dict.fromkeys(("rows", "prompts", "answers", "correct", "length", "finished"), [])
    begun = member("late") | empty | {"complete": False}
    out = make(tmp_path, write_evaluation(tmp_path / "e", [member(), begun]))
    assert [row["model"] for row in rows_of(out)] == ["priced"]
    assert "late.arithmetic.json: left out; the evaluation is incomplete" in body_of(out)


# ------------------------------------------------------------------ the command line


def complaint(capsys, *argv):
    assert report.main(list(map(str, argv))) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_mistakes_are_one_sentence_and_write_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert "neither a run" in complaint(capsys, tmp_path / "empty", "--out", out)
    run = write_run(tmp_path / "r")
    assert "--smooth is 0" in complaint(capsys, run, "--out", out, "--smooth", "0")
    assert "--examples is -1" in complaint(capsys, run, "--out", out, "--examples", "-1")
    (run / "metrics.jsonl").write_text("x\ny\n")
    assert "metrics.jsonl, line 1" in complaint(capsys, run, "--out", out)
    assert not out.exists()
    (tmp_path / "file").write_text("")
    assert "--out" in complaint(capsys, run, "--out", tmp_path / "file" / "x")


def test_an_interrupt_has_its_exit_code_and_no_traceback(tmp_path, capsys, monkeypatch):
    def interrupt(directory, *, examples):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "read_directory", interrupt)
    assert report.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_the_command_runs_twice_to_the_same_bytes(evaluation_report, tmp_path):
    """In a process of its own, and here."""
    directory, _, here = evaluation_report
    words = [sys.executable, "-m", "iapo_jax.report", directory, "--out", tmp_path / "out"]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    outs = [
        {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (tmp_path / "out", here)
    ]
    assert outs[0] == outs[1] and "report.html" in outs[0]
