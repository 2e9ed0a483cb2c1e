"""Run and evaluation directories as they are read: what was written, or one sentence."""

import json

import numpy as np
import pytest
from result_directories import (
    METRICS,
    completion,
    inspection,
    member,
    metric,
    write_evaluation,
    write_lines,
    write_member,
    write_run,
)

from iapo_jax.errors import UserError
from iapo_jax.report.results import distinct_directories, read_directory
from iapo_jax.report.samples import read_inspections
from iapo_jax.runtime.files import read_jsonl


def read(directory, examples=3):
    return read_directory(directory, examples=examples)


def test_a_run_is_read_as_it_was_written(tmp_path):
    found = member(dataset="a:test", source="start/model")
    told = [inspection(found["prompts"][0], [1, 2])]
    write_run(tmp_path / "r", seed=3, steps=4, before=found, after=found, inspections=(told, None))
    run = read(tmp_path / "r")
    assert run.config["seed"] == 3 and run.config["algorithm"]["name"] == "iapo_priced"
    assert run.steps.tolist() == [1, 2, 3, 4] and set(run.metrics) == set(METRICS)
    for name in METRICS:
        assert run.metrics[name].tolist() == [metric(name, step, 3) for step in (1, 2, 3, 4)]
    assert run.before.record.correct == found["correct"] and run.after.record.model == "after"
    assert run.before.record.prompts == found["prompts"]
    assert run.before.record.answers == found["answers"]
    assert run.before.inspections[0].informativeness == [1, 2] and not run.after.inspections
    assert [step for step, _ in run.texts] == [1, 4] and run.notes == []


def test_a_run_that_is_still_going_on(tmp_path):
    """The last line half-written, no evaluation after it yet, a metric that came late."""
    directory = write_run(tmp_path / "r", steps=3, before=member())
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward": 1, "late": 2}\n{"step": 5, "rew')
    run = read(directory)
    assert run.steps.tolist() == [1, 2, 3, 4] and run.after is None
    np.testing.assert_array_equal(run.metrics["late"], [np.nan, np.nan, np.nan, 2])
    assert any("eval/after.json" in note for note in run.notes)


def test_a_step_that_was_written_twice_counts_once(tmp_path):
    directory = write_run(tmp_path / "r", steps=2)
    write_lines(directory / "metrics.jsonl", [{"step": s, "reward": r} for s, r in
                                              ((2, 1.0), (1, 5.0), (2, 9.0))])  # fmt: skip
    assert read(directory).metrics["reward"].tolist() == [5.0, 9.0]


def test_what_is_no_number_is_a_gap(tmp_path):
    directory = write_run(tmp_path / "r", steps=1)
    (directory / "metrics.jsonl").write_text('{"step": 1, "reward": NaN, "kl": null, "x": "y"}\n')
    assert all(np.isnan(v).all() for v in read(directory).metrics.values())


def test_a_run_without_anything_is_a_run(tmp_path):
    directory = write_run(tmp_path / "r", texts=False)
    (directory / "metrics.jsonl").unlink()
    run = read(directory)
    assert run.steps.size == 0 and run.texts == [] and len(run.notes) == 3


def test_an_older_evaluation_is_left_out_and_said(tmp_path):
    directory = write_run(tmp_path / "r", after=member())
    old = {"identity": "x", "correct": [[True]], "length": [[3]], "finished": [[True]]}
    (directory / "eval" / "before.json").write_text(json.dumps(old))
    run = read(directory)
    assert run.before is None and any("older version" in note for note in run.notes)


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    members = [member(member=n, members=2, length=[[9 + n, 9]] * 4) for n in (0, 1)]
    lines = [completion(members[0], row, sample) for row in (2, 0, 1, 3) for sample in (0, 1)]
    figures = [{"model": "priced", "dataset": members[0]["dataset"], "name": "accuracy",
                "value": 0.5, "low": 0.4, "high": 0.6}]  # fmt: skip
    write_evaluation(tmp_path, members, completions=lines, summary={"figures": figures})
    found = read(tmp_path, examples=2)
    assert [one.record.member for one in found.samples] == [0, 1] and found.metrics == figures
    assert [one.record.length[0] for one in found.samples] == [[9, 9], [10, 9]]
    # the first sample of each of the first problems, in the order of the file
    assert [(r["row"], r["sample"]) for r in found.samples[0].completions] == [(0, 0), (1, 0)]


def test_seeds_that_are_missing_are_said(tmp_path):
    write_evaluation(tmp_path, [member(member=1, members=3)])
    assert any("1 of 3 seeds of priced" in note for note in read(tmp_path).notes)


def test_rows_are_cut_at_line_ends_only(tmp_path):
    """A line separator of Unicode is part of a text."""
    write_lines(tmp_path / "a.jsonl", [{"a": "x\u2028y\u0085z"}, {"a": 1}])
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": "x\u2028y\u0085z"}, {"a": 1}]


def test_a_character_that_is_half_written_is_no_damage(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xc3')
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}]


def test_a_directory_counts_once(tmp_path):
    (tmp_path / "a").mkdir()
    spelt = [tmp_path / "a", tmp_path / "b" / ".." / "a", tmp_path]
    assert len(distinct_directories(spelt)) == 2


# ------------------------------------------------------------------ mistakes


def complaint(directory):
    with pytest.raises(UserError) as caught:
        read(directory)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_a_directory_of_neither_kind(tmp_path):
    assert "is not a directory" in complaint(tmp_path / "absent")
    assert "neither a run directory" in complaint(tmp_path)
    (tmp_path / "package.json").write_text("{}")
    assert "neither a run directory" in complaint(tmp_path)
    write_run(tmp_path / "one")
    assert f"expected its runs, such as {tmp_path / 'one'}" in complaint(tmp_path)


@pytest.mark.parametrize("content, told", [
    ('{"step": 1}\nnonsense\n{"step": 2}\n', "line 2 is not JSON"),
    ('{"step": 1}\n[1]\n', "line 2 is [1]; expected an object"),
    ('{"reward": 1}\n', "step is None; expected a number"),
])  # fmt: skip
def test_damaged_metrics(tmp_path, content, told):
    directory = write_run(tmp_path / "r")
    (directory / "metrics.jsonl").write_text(content)
    text = complaint(directory)
    assert str(directory / "metrics.jsonl") in text and told in text


def test_a_damaged_config(tmp_path):
    directory = write_run(tmp_path / "r")
    (directory / "config.yaml").write_text("seed: [")
    assert "config.yaml" in complaint(directory)


WRONG = {
    "format": 2,
    "correct": [[True], [True, False]],
    "length": [[1, 2]] * 3,
    "finished": "no",
    "votes": [[0.5, 0.5]] * 4,
    "rows": [0, 1],
    "prompts": None,
    "answers": ["1"],
    "model": 7,
    "dataset": None,
    "settings": [],
    "member": "2",
    "thinking_length": [[1]] * 4,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_evaluation_names_file_and_field(tmp_path, name):
    write_evaluation(tmp_path, [member() | {name: WRONG[name]}])
    (path,) = [p for p in tmp_path.iterdir()]
    text = complaint(tmp_path)
    assert str(path) in text and name in text


def test_a_length_of_nothing(tmp_path):
    write_evaluation(tmp_path, [member(length=[[0, 1]] * 4)])
    assert "a length is 0" in complaint(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b""])
def test_what_is_no_evaluation_at_all(tmp_path, content):
    (tmp_path / "a.b.json").write_bytes(content)
    assert "a.b.json" in complaint(tmp_path)


@pytest.mark.parametrize("summary, told", [
    ({"figures": {"a": 1}}, "expected a list"),
    ({"figures": [{"model": "a"}]}, "expected an object with model, dataset and name"),
])  # fmt: skip
def test_a_damaged_summary(tmp_path, summary, told):
    write_evaluation(tmp_path, [member()], summary=summary)
    text = complaint(tmp_path)
    assert "summary.json" in text and told in text


@pytest.mark.parametrize("changed, told", [
    ({"uncertainty": [1.0]}, "1 are finite numbers; expected 3 such entries for 2 tokens"),
    ({"informativeness": [1.0, float("nan")]}, "has 2 entries, of which 1 are finite"),
    ({"thinking_length": 9}, "thinking_length is 9; expected an integer from 0 to 2"),
    ({"tokens": None}, "tokens is None"),
    ({"tokens": [1, 2]}, "tokens[0] is 1; expected a string"),
    ({"prompt": 1}, "prompt is 1; expected a string"),
    ({"answer": [1]}, "answer is [1]; expected a string"),
    ({"prompt_ids": 5}, "prompt_ids is 5; expected a list"),
    ({"answer_meanings": [[]]}, "answer_meanings[0] is []; expected an integer"),
    ({"correct": "x"}, "correct is 'x'; expected true, false or null"),
])  # fmt: skip
def test_damaged_inspections(tmp_path, changed, told):
    good = inspection("p", [1, 2])
    write_member(tmp_path, member(), inspections=[good, good | changed])
    text = complaint(tmp_path)
    assert "priced.arithmetic.inspections.json, inspection 2" in text and told in text


def test_inspections_of_fewer_or_more_fields_are_read(tmp_path):
    """Those of another version of the library, as long as the figures are there."""
    told = inspection("p", [1, 2]) | {"new_field": 1}
    del told["prompt_ids"]
    (tmp_path / "a.json").write_text(json.dumps([told]))
    assert read_inspections(tmp_path / "a.json")[0].uncertainty == [3, 2, 0]


def test_damaged_texts(tmp_path):
    found = member()
    write_evaluation(tmp_path, [found], completions=[completion(found, 0, completion=None)])
    assert "completions.jsonl, line 1: completion is None" in complaint(tmp_path)
