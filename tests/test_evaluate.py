"""The command `python -m iapo_jax.evaluate`, as users call it."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from iapo_jax import evaluate as command
from iapo_jax.errors import UserError
from iapo_jax.evaluation.completions_file import read_completions
from iapo_jax.evaluation.model_specs import parse_models
from iapo_jax.evaluation.records import read_record
from iapo_jax.training import model_sources


@pytest.fixture(scope="module")
def model(root):
    """The quick start's model."""
    return root / "experiments" / "arithmetic" / "model"


@pytest.fixture(scope="module")
def evaluated(model, tmp_path_factory):
    """One model under two labels, the second of two members, on two datasets."""
    out = tmp_path_factory.mktemp("eval")
    again = tmp_path_factory.mktemp("copies") / "again"
    again.symlink_to(model)
    call = [
        *("--model", f"one={model}", "--model", f"two={model},{again}"),
        *("--dataset", "arithmetic:test:first 8", "--dataset", "arithmetic:select:first 8"),
        *("--num_samples", "2", "--max_completion_length", "64", "--prompts_per_batch", "8"),
        *("--out", str(out), "--inspect", "2", "information.postfix=</think><answer>"),
        *("mesh.data=1", "progress=false", "compilation_cache=''"),
    ]
    assert command.main(call) == 0
    return out


def test_every_member_and_data_set_has_its_files(evaluated):
    names = sorted(path.name for path in evaluated.iterdir())
    stems = [f"{m}.arithmetic-{s}-8" for m in ("one", "two-1", "two-2") for s in ("select", "test")]
    kinds = ("completions.jsonl", "inspections.json", "json", "lock")
    expected = [f"{stem}.{kind}" for stem in stems for kind in kinds]
    assert names == sorted([*expected, "summary.json", "summary.txt"])


def test_everything_can_be_computed_again(evaluated):
    told = json.loads((evaluated / "summary.json").read_text())
    assert told["k"] == [1, 2] and told["command"].startswith("python -m iapo_jax.evaluate --model")
    record = read_record(evaluated / "one.arithmetic-test-8.json")
    lines = read_completions(evaluated / "one.arithmetic-test-8.completions.jsonl")
    assert record.dataset == "arithmetic:test:first 8" and record.dataset_name == "arithmetic"
    value = {
        (row["model"], row["name"]): row["value"]
        for row in told["figures"]
        if row["dataset"] == record.dataset
    }
    right = [one.correct for one in lines]
    assert value["one", "accuracy"] == pytest.approx(np.mean(right)) and np.mean(right) > 0.5
    assert value["one", "length"] == pytest.approx(np.mean([one.length for one in lines]))
    assert value["two", "length"] == value["one", "length"]  # the same model, the same draws
    gaps = [row for row in told["differences"] if row["baseline"] == "one"]
    assert gaps and all(not row["value"] for row in gaps)
    assert {one.answer for one in lines} == set(record.answers)
    assert all(one.extracted == one.answer for one in lines if one.correct)


def test_probed_completions_are_those_that_were_sampled(evaluated):
    probed = json.loads((evaluated / "one.arithmetic-test-8.inspections.json").read_text())
    lines = read_completions(evaluated / "one.arithmetic-test-8.completions.jsonl")
    first = [one for one in lines if one.sample == 0][:2]
    assert [one["completion_ids"] for one in probed] == [one.ids for one in first]
    for told, one in zip(probed, first, strict=True):
        assert told["thinking_length"] == one.thinking_length
        assert told["correct"] == one.correct and told["finished"] == one.finished
        assert len(told["uncertainty"]) == one.length + 1
        told_in_all = told["uncertainty"][0] - told["uncertainty"][one.thinking_length]
        assert sum(told["informativeness"]) == pytest.approx(told_in_all)


@pytest.mark.nightly  # test_evaluation interrupts without a process
def test_an_interrupted_command_is_taken_up_again(model, tmp_path, evaluated):
    words = [
        *(sys.executable, "-m", "iapo_jax.evaluate", "--model", f"one={model}"),
        *("--dataset", "arithmetic:test:first 8", "--num_samples", "2"),
        *("--max_completion_length", "64", "--prompts_per_batch", "1"),
        *("--out", str(tmp_path), "mesh.data=1", "progress=false", "compilation_cache=''"),
    ]
    texts = tmp_path / "one.arithmetic-test-8.completions.jsonl"
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ)
    until = time.monotonic() + 240
    while not (texts.is_file() and texts.read_text().count("\n") >= 2):
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 75 and "Traceback" not in said
    assert "stopped by SIGINT: " in said and "run the same command again to continue" in said
    kept = read_completions(texts)
    assert 2 <= len(kept) < 16
    assert command.main([*words[3:]]) == 0
    lines = read_completions(texts)
    assert lines[: len(kept)] == kept and len(lines) == 16
    # Batches of one problem give what batches of eight gave.
    whole = read_completions(evaluated / "one.arithmetic-test-8.completions.jsonl")

    def plain(many):
        return {(x.row, x.sample): x._replace(ids=[]) for x in many}

    assert plain(lines) == plain(whole)


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["runs/a"], [("a", "runs/a", 1, 1)]),
        (["runs/a/hf"], [("a", "runs/a/hf", 1, 1)]),
        (["runs/a/checkpoints/30"], [("a-30", "runs/a/checkpoints/30", 1, 1)]),
        (["x=runs/a, runs/b"], [("x", "runs/a", 1, 2), ("x", "runs/b", 2, 2)]),
        (["Qwen/Qwen2.5-0.5B"], [("Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", 1, 1)]),
        (["a=dir/lr=1e-5"], [("a", "dir/lr=1e-5", 1, 1)]),
        (["runs/lr=1e-5"], [("lr_1e-5", "runs/lr=1e-5", 1, 1)]),
    ],
)
def test_models_on_the_command_line(texts, expected):
    assert [tuple(one) for one in parse_models(texts)] == expected


@pytest.mark.parametrize(
    "texts, sentence",
    [
        (["=a"], "expected DIR, or LABEL=DIR"),
        (["x="], "expected DIR, or LABEL=DIR"),
        (["x=a,,b"], "expected DIR, or LABEL=DIR"),
        (["x y=a"], "a label of letters, digits"),
        (["x=a", "x=b"], "is the second model with the label 'x'"),
        (["a/hf", "b/a"], "is the second model with the label 'a'"),
        (["a=x,y", "a-1=x"], "--model 'a=x,y' and --model 'a-1=x' would both write a-1.*"),
    ],
)
def test_mistaken_models(texts, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_models(texts)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "--model is missing"),
        (["--model", "MODEL"], "--dataset is missing"),
        (["--model", "MODEL", "--dataset", "gsm9k"], "did you mean gsm8k?"),
        (["--model", "nowhere", "--dataset", "arithmetic"], "model directory 'nowhere' does not"),
        (["--model", "MODEL", "--dataset", "arithmetic:dev"], "has no split 'dev'"),
        (["--model", "MODEL", "--dataset", "arithmetic", "--k", "1,64"], "from 1 to num_samples"),
        (
            ["--model", "MODEL", "--dataset", "arithmetic", "--k", "many"],
            "expected comma-separated integers",
        ),
        (
            ["--model", "MODEL", "--dataset", "arithmetic", "--k", "1,,2"],
            "expected comma-separated integers",
        ),
        (["--model", "MODEL", "--dataset", "arithmetic", "--num_samples", "0"], "num_samples is 0"),
        (["--model", "MODEL", "--dataset", "arithmetic", "--temperature", "0"], "use top_k=1"),
        (
            ["--model", "MODEL", "--dataset", "arithmetic", "--dataset", "arithmetic:test"],
            "a second time",
        ),
        (["--model", "MODEL", "--dataset", "arithmetic", "sede=1"], "did you mean seed?"),
        (["--model", "MODEL", "--dataset", "arithmetic", "--out", "/dev/null/x"], "output_dir"),
        (
            [
                *("--model", "MODEL", "--dataset", "arithmetic:train:first 9"),
                "training_data=['arithmetic:train']",
            ],
            "shares 9 of its 9 questions with the training data arithmetic:train",
        ),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(model) if word == "MODEL" else word for word in words]
    assert command.main([*words, "compilation_cache=''"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and sentence in said
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("kind", ["sampling: {}", "batch: {rows_per_step: 8}"])
def test_training_data_is_read_where_the_run_was_started(tmp_path, monkeypatch, capsys, kind):
    """From another directory; rows of supervised fine-tuning have no answer."""
    (tmp_path / "start").mkdir()
    row = {"question": "90-77+28-10", "answer": "31", "completion": "31"}
    if kind.startswith("batch"):
        del row["answer"]
    (tmp_path / "start" / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"data: {{dataset: rows.jsonl}}\n{kind}\n")
    (tmp_path / "run" / "env.json").write_text(json.dumps({"directory": str(tmp_path / "start")}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(model_sources, "load_source", lambda *_: pytest.fail("a model was opened"))
    words = ["--model", "../run", "--dataset", "arithmetic:train:first 5"]
    assert command.main(words) == 2
    assert "shares 1 of its 5 questions with the training data" in capsys.readouterr().err


def test_what_a_run_left_out_it_may_be_evaluated_on(tmp_path, capsys):
    """`eval.shared=leave_out`: the run has not seen these rows of its training data."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(
        'data: {dataset: "arithmetic:train:first 9"}\nsampling: {}\n'
        'eval: {dataset: "arithmetic:train:first 3", shared: leave_out}\n'
    )
    words = ["--model", str(tmp_path / "run"), "--out", str(tmp_path / "eval"), "--dataset"]
    assert command.main([*words, "arithmetic:train:first 3"]) == 2
    assert "run/hf' does not exist" in capsys.readouterr().err  # past the check of the questions
    assert command.main([*words, "arithmetic:train:first 4"]) == 2
    assert "shares 1 of its 4 questions with the training data" in capsys.readouterr().err


def test_another_prompt_than_in_training_is_said(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(
        'data: {dataset: "arithmetic:train"}\nsampling: {}\nprompt: {instruction: Think.}\n'
    )
    words = ["--model", str(tmp_path / "run"), "--out", str(tmp_path / "eval"), "--dataset"]
    words = [*words, "arithmetic:test:first 3"]
    assert command.main(words) == 2
    told = "was trained with a different prompt (prompt.instruction), which may lower its accuracy"
    assert told in capsys.readouterr().out
    assert command.main([*words, "prompt.instruction=Think."]) == 2
    assert "was trained with different" not in capsys.readouterr().out


def test_what_a_run_was_trained_on_is_looked_at(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_sources, "load_source", lambda *_: pytest.fail("a model was opened"))
    (tmp_path / "run" / "hf").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(
        "data: {dataset: arithmetic, split: train}\nsampling: {}\n"
    )
    for place in ("run", "run/hf"):
        words = ["--model", str(tmp_path / place), "--dataset", "arithmetic:train:first 3"]
        assert command.main([*words, "--out", str(tmp_path / "eval")]) == 2
        assert "shares 3 of its 3 questions with the training data" in capsys.readouterr().err
