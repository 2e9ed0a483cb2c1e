"""A user's mistakes, from the outside: one sentence, exit code 2, before weights, nothing written.

What single functions refuse is tested beside them; here are the entry points.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from before_jax import DEVICES

from iapo_jax import evaluate, export, inspect, train
from iapo_jax.config.loading import load_config
from iapo_jax.config.train import TrainConfig
from iapo_jax.errors import UserError
from iapo_jax.evaluation.records import Record, write_record
from iapo_jax.report import command as report
from iapo_jax.training import model_sources
from iapo_jax.training.held_out import HeldOut
from iapo_jax.training.setup import set_up

SUMS = [{"question": f"{n}+{n}", "answer": str(2 * n), "level": n} for n in range(1, 9)]


@pytest.fixture(scope="module")
def model(root):
    """The quick start's model: of 64 tokens."""
    return root / "experiments" / "arithmetic" / "model"


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def configure(tmp_path, model):
    """`configure("key=value", ...)` of a run in tmp_path/run on SUMS in tmp_path/rows.jsonl."""
    write_rows(tmp_path / "rows.jsonl", SUMS)

    def build(*overrides):
        base = [
            f"output_dir={tmp_path / 'run'}",
            f"model.path={model}",
            f"data.dataset={tmp_path / 'rows.jsonl'}",
            "max_steps=2",
            "batch.prompts_per_step=8",
            "batch.num_generations=2",
            "sampling.max_completion_length=16",
            "algorithm.name=grpo",
            "reward.functions=[format]",
            "log.compilation_cache=''",
        ]
        return load_config(TrainConfig, None, [*base, *overrides])

    return build


def refusal(configure, tmp_path, *overrides, **more):
    """The sentence by which a setup is refused; the run directory is not made."""
    with pytest.raises(UserError) as caught:
        set_up(configure(*overrides), **more)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    return str(caught.value)


# ------------------------------------------------------------------------ contradictions


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["model.config=c.json"], "model.config is 'c.json'; expected only one"),
        (["model.revision=main"], "model.revision is 'main', but model.path is local"),
        (
            ["optimizer.warmup_steps=2"],
            "warmup_steps is 2, but the run has only 2 optimizer updates",
        ),
        (
            ["optimizer.warmup_steps=4", "batch.mini_batches=2"],
            "warmup_steps is 4, but the run has only 4 optimizer updates (max_steps times mini",
        ),
        (["prompt.example_question=1+1"], "prompt.example_question is '1+1' without prompt.exa"),
        (["prompt.example_answer=2"], "prompt.example_answer is '2' without prompt.example_q"),
        (["prompt.system=a\0b"], r"prompt.system is 'a\x00b'; expected UTF-8 text without '\x00'"),
        (["prompt.system=\udcff"], r"prompt.system is '\udcff'; expected UTF-8 text"),
        (
            ["reward.functions=[]", "output_dir=a\0b"],
            r"output_dir is 'a\x00b'; expected UTF-8 text",
        ),
        (["information.stride=2", "information.boundaries=['.']"], "expected only one of the two"),
        (["batch.num_generations=1"], "batch.num_generations is 1: the rule grpo compares"),
        (
            ["batch.num_generations=1", "algorithm.name=length_penalty"],
            "batch.num_generations is 1: the rule rloo compares",
        ),
        (
            ["batch.prompts_per_step=3"],
            f"batch.prompts_per_step is 3; expected a multiple of {DEVICES}",
        ),
        (
            ["batch.prompts_per_step=6", "batch.mini_batches=2"],
            f"batch.prompts_per_step is 6; expected a multiple of {DEVICES * 2} ({DEVICES} devices "
            "times batch.mini_batches=2)",
        ),
        (["reward.weights=[1, 2]"], "reward.weights is [1.0, 2.0]; expected as many"),
        (["selection.problems=8"], "selection.problems is 8: cannot hold out 8 of 8 distinct"),
        (
            ["information.end_of_thinking=['']"],
            "information.end_of_thinking contains an empty string",
        ),
    ],
)
def test_contradictions_are_refused(configure, tmp_path, overrides, sentence):
    assert sentence in refusal(configure, tmp_path, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampling.length_bucket=256"],  # beyond the limit: nothing is ever cut
        ["save_steps=99"],
        ["eval.inspect=4"],  # without an evaluation set
        ["selection.num_samples=4"],  # without a selection split
        ["batch.num_generations=1", "algorithm.name=iapo"],  # information is credit, too
        ["max_steps=0", "optimizer.warmup_steps=9"],  # with no steps there is no warm-up
        ["data.subset=main"],  # of a file
        ["reward.weights=[0]"],  # a control
    ],
)
def test_a_useless_setting_is_accepted(configure, overrides):
    if "algorithm.name=iapo" in overrides:
        overrides = [*overrides, "information.postfix=</think><answer>"]
    assert set_up(configure(*overrides)).problems.answers[0] == "2"


def test_a_run_does_not_write_over_its_model(configure, tmp_path, model):
    shutil.copytree(model, tmp_path / "start" / "hf")
    for place in ("start", "start/hf"):
        config = configure(f"model.path={tmp_path}/start/hf", f"output_dir={tmp_path / place}")
        with pytest.raises(UserError, match="where the run would write"):
            set_up(config)


def test_what_the_export_would_refuse_is_refused_at_the_start(configure, tmp_path, capsys):
    (tmp_path / "other" / "hf").mkdir(parents=True)
    (tmp_path / "other" / "hf" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="contains thesis.tex, which is not part of an exported"):
        set_up(configure(f"output_dir={tmp_path / 'other'}"))
    assert export.main([str(tmp_path), "--out", str(tmp_path / "other" / "hf")]) == 2
    assert "contains thesis.tex" in capsys.readouterr().err


# ------------------------------------------------------------------------ reward functions

REWARDS = """
calls = []
def raises(prompts, completions, answer, **columns):
    return [len(answer[0]) / 0 for _ in completions]
def short(prompts, completions, answer, **columns):
    return [1.0]
def nan(prompts, completions, answer, **columns):
    return [float(bool(text)) or float("nan") for text in completions]
def infinite(prompts, completions, **columns):
    return [float("inf")] * len(completions)
def text(prompts, completions, **columns):
    return ["1"] * len(completions)
def nothing(prompts, completions, **columns):
    return [None] * len(completions)
def forgot(prompts, completions, **columns):
    pass
def lazily(prompts, completions, **columns):
    yield from [1.0] * len(completions)
async def later(prompts, completions, **columns):
    return [1.0] * len(completions)
def narrow(prompts, completions):
    return [1.0] * len(completions)
def leaves(prompts, completions, **columns):
    raise SystemExit(0)
def deep(prompts, completions, **columns):
    return [{}[n] for n in columns["level"]]
class Judge:
    def __call__(self, prompts, completions, **columns):
        raise RuntimeError("two\\nlines")
judge = Judge()
def good(prompts, completions, answer, **columns):
    calls.append((prompts, completions, answer, columns))
    return [1.0 if text else None for text in completions]
"""


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("raises", "reward 'raises' raised ZeroDivisionError('division by zero') for 4 completions "
                   "(pay.py, line 4)"),
        ("short", "reward 'short' returned [1.0], 1 entry; expected a list of 4 numbers"),
        ("nan", "reward 'nan' returned nan for completion 1, ''; expected a finite"),
        ("infinite", "reward 'infinite' returned inf for completion 0, '\\nIt is 2."),
        ("text", "reward 'text' returned '1' for completion 0"),
        ("nothing", "reward functions nothing returned None for all 4 completions; exp"),
        ("forgot", "reward 'forgot' returned None, of type NoneType; expected a list of 4 "),
        ("lazily", "of type generator; expected a list of 4 numbers"),
        ("later", "of type coroutine; expected a list of 4 numbers"),
        ("narrow", "reward 'narrow' cannot be called with prompts, completions, answer, level: got "
                   "an unexpected keyword argument 'answer'; expected fn(prompts, completions"),
        ("leaves", "reward 'leaves' raised SystemExit(0) for 4 completions (pay.py, line 24)"),
        ("deep", "reward 'deep' raised KeyError(1) for 4 completions (pay.py, line 26)"),
        ("judge", r"raised RuntimeError('two\nlines') for 4 completions (pay.py, line 29)"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")  # such as of a coroutine that nobody awaited
def test_a_faulty_reward_fails_at_the_start(configure, tmp_path, name, sentence):
    (tmp_path / "pay.py").write_text(REWARDS)
    said = refusal(configure, tmp_path, f"reward.functions=[{tmp_path / 'pay.py'}:{name}]")
    assert sentence in said
    assert said.endswith(f"; called before the run, on problems 1 and 2 of {tmp_path}/rows.jsonl")


def test_a_reward_is_tried_once_as_the_run_will_call_it(configure, tmp_path):
    (tmp_path / "pay.py").write_text(REWARDS)
    spec = f"reward.functions=[{tmp_path / 'pay.py'}:good]"
    made = set_up(configure(spec, "batch.num_generations=3"))
    (given,) = made.reward_functions.functions[0][1].__globals__["calls"]
    prompts, completions, answer, columns = given
    assert prompts == [made.problems.texts[0]] * 3 + [made.problems.texts[1]] * 3
    assert answer == ["2"] * 3 + ["4"] * 3 and columns == {"level": [1] * 3 + [2] * 3}
    assert [bool(text) for text in completions] == [True, False] * 3
    assert "<answer>2</answer>" in completions[0] and "<answer>4</answer>" in completions[4]


# ---------------------------------------------------------------------------------- rows


def test_notes_about_rows_are_errors_if_strict(configure, tmp_path):
    long = {"question": "+".join("9" * 30), "answer": "270"}
    write_rows(tmp_path / "mine.jsonl", [*SUMS, long, SUMS[2], {**SUMS[3], "answer": "8.0"}, long])
    again = f"{tmp_path}/mine.jsonl: 3 rows repeat an earlier question: rows 3 and 10; "
    over = f"{tmp_path}/mine.jsonl, rows 9 and 12: the prompt has more tokens than data.max_prompt_"
    # `data.dataset` comes twice: the later override counts
    own = [f"data.dataset={tmp_path / 'mine.jsonl'}", "data.max_prompt_length=32"]
    made = set_up(configure(*own))
    assert made.notes[0] == again + "rows 4 and 11; rows 9 and 12"
    assert made.notes[1] == over + "length (32); left out"
    assert again in refusal(configure, tmp_path, *own, "data.strict=true")
    write_rows(tmp_path / "mine.jsonl", [*SUMS, long])
    over = over.replace("rows 9 and 12", "row 9") + "length (32); "
    said = refusal(configure, tmp_path, *own, "data.strict=true")
    assert said == over + "data.strict=true does not allow prompts that are too long"
    given = [f"eval.dataset={tmp_path / 'mine.jsonl'}", "data.dataset=arithmetic:train", own[1]]
    made = set_up(configure(*given, "eval.strict=true"))
    with pytest.raises(UserError) as caught:
        HeldOut(made.config, made.loaded, made.questions)
    told = over + "eval.strict=true does not allow prompts that are too long"
    assert str(caught.value) == told


# ------------------------------------------------------------------------------ tokenizers


@pytest.fixture
def changed(model, tmp_path):
    """`changed(file, **fields)`: a copy of the model with other fields in a JSON file."""

    def change(file, **fields):
        shutil.copytree(model, tmp_path / "changed")
        path = tmp_path / "changed" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return tmp_path / "changed"

    return change


@pytest.mark.parametrize(
    "file, fields, sentence",
    [
        ("config.json", {"vocab_size": 40}, "has ids up to 60, but the vocabulary size"),
        ("config.json", {"eos_token_id": 99}, "config.json: eos_token_id is 99, but the token"),
        ("generation_config.json", {"eos_token_id": [1, 99]}, "config.json: eos_token_id is [1, 9"),
        ("generation_config.json", {"eos_token_id": "<eos>"}, "eos_token_id is '<eos>'; expect"),
        ("tokenizer_config.json", {"tokenizer_class": 5}, "transformers cannot open the tokenizer"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_does_not_fit(configure, tmp_path, changed, file, fields, sentence):
    place = changed(file, **fields)
    assert sentence in refusal(configure, tmp_path, f"model.path={place}")


def test_a_damaged_tokenizer(configure, tmp_path, changed):
    place = changed("config.json")
    (place / "tokenizer.json").write_text('{"version": ')
    assert "cannot open the tokenizer" in refusal(configure, tmp_path, f"model.path={place}")


def test_code_in_a_model_directory_is_never_run(configure, tmp_path, changed):
    """`auto_map` names Python files beside the weights."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"  # transformers runs a copy elsewhere
    place = changed(
        "config.json", auto_map={"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"]}
    )
    own = json.loads((place / "tokenizer_config.json").read_text())
    own["auto_map"] = {"AutoTokenizer": ["evil.T", "evil.T"]}
    (place / "tokenizer_config.json").write_text(json.dumps(own))
    (place / "evil.py").write_text(code)
    try:
        set_up(configure(f"model.path={place}"))
    except UserError as error:  # refused or opened without it: either is fine
        assert "\n" not in str(error)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------- evaluate, export, report


def evaluation(**settings):
    """An evaluation that was begun in this way."""
    texts = ("model", "source", "dataset", "dataset_name", "fingerprint", "problems")
    return Record(**dict.fromkeys(texts, "a"), member=1, members=1, step=None, environment={},
                  settings=settings)  # fmt: skip


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(model_sources, "load_source", lambda *_: pytest.fail("weights were loaded"))


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--model", "b=nowhere"], "model directory 'nowhere' does not exist"),
        (["--model", "b=RUN/checkpoints/5"], "the step of --model is '5', but"),
        (["--model", "b=RUN"], "checkpoints has no checkpoints"),
        (["--top_k", "65"], "top_k is 65; expected at most 64, the vocabulary size"),
        (["--prompts_per_batch", "3"], f"batch is 3; expected a multiple of {DEVICES}"),
        (["mesh.data=64"], f"needs 64 devices, found {DEVICES}"),
        (["--max_completion_length", "64", "budgets=[65]"], "budgets has 65; expected numbers of"),
        (["budgets=[0]"], "budgets has 0; expected numbers of tokens from 1"),
        (["--k", "1,3"], "k is [1, 3]; expected integers from 1 to num_samples (2)"),
        (["model.path=x"], "model.path is 'x', but evaluate takes its models from `models`"),
        (["--out", "MODEL"], "the directory of a model; expected another directory"),
        (["--out", "RUN"], "the directory of a run; expected another directory"),
        (["max_prompt_length=2"], "max_prompt_length is 2, but the shortest of the 8 prompts"),
        (
            ["max_prompt_length=6", "strict=true"],
            "; strict=true does not allow prompts that are too long",
        ),
        (
            ["--seed", "3", "--out", "OLD"],
            "belongs to a different evaluation: seed was 0 and is now 3",
        ),
        (["information.postfix=\u2603", "--inspect", "1", "information.stride=0"], "stride is 0"),
    ],
)
def test_an_evaluation_is_refused_before_weights_are_loaded(
    words, sentence, model, tmp_path, no_weights, capsys, monkeypatch
):
    """Also for a mistake in the second model, which would otherwise fail after hours."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [*SUMS, {"question": "1+2+3+4", "answer": "10"}][1:])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("sampling: {temperature: 1.0}\n")
    (tmp_path / "old").mkdir()
    record = evaluation(seed=0, max_completion_length=2048, temperature=1.0, top_p=1.0, top_k=0,
                        end_of_thinking=["</think>", "<answer>"])  # fmt: skip
    write_record(tmp_path / "old" / "a.rows-test.json", record)
    names = {"RUN": "run", "MODEL": str(model), "OLD": "old"}
    for name, place in names.items():
        words = [word.replace(name, place) for word in words]
    begin = ["--model", f"a={model}", "--dataset", "rows.jsonl", "--num_samples", "2"]
    before = sorted(tmp_path.rglob("*"))
    assert evaluate.main([*begin, "compilation_cache=''", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and sentence in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_runs_config_cannot_run_code_or_read_the_environment(tmp_path, capsys, model):
    """Neither its rewards nor its rule are imported when it is exported, evaluated or reported."""
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nf = print\n")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = f"reward: {{functions: ['{evil}:f']}}\nalgorithm: {{name: '{evil}:f'}}\n"
    config += f"model: {{path: '{model}'}}\nlog: {{compilation_cache: ''}}\nsampling: {{}}\n"
    (run / "config.yaml").write_text(config)
    assert export.main([str(run)]) == 2
    assert "has no checkpoints" in capsys.readouterr().err
    assert report.main([str(run), "--out", str(tmp_path / "report")]) == 0
    (run / "config.yaml").write_text(config + "output_dir: ${oc.env:HOME}\n")
    for main, words in (
        (export.main, [str(run)]),
        (report.main, [str(run), "--out", str(tmp_path / "report")]),
        (evaluate.main, ["--model", str(run), "--dataset", "arithmetic:test:first 2"]),
    ):
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "config.yaml: output_dir is '${oc.env:HOME}'; expected a plain value" in said
        assert said.count("\n") == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "file, content, sentence",
    [
        (None, None, "is not a directory"),
        ("empty/x", "", "is neither a run directory (config.yaml) nor an evaluation"),
        ("config.yaml", "", "config.yaml is empty"),
        ("config.yaml", "a: [", "not readable as YAML"),
        ("metrics.jsonl", '{"step": 1}\n{"step" 2}\n{"step": 3}\n', "metrics.jsonl, line 2"),
        ("metrics.jsonl", '{"loss": 1}\n', "step is None; expected a number"),
        ("metrics.jsonl", "[" * 100_000 + "\n1\n", "metrics.jsonl, line 1"),
        ("eval/before.json", "{", "before.json"),
        ("selection.jsonl", "5\n5\n", "selection.jsonl, line 1"),
    ],
)
def test_a_report_of_what_is_damaged(tmp_path, capsys, file, content, sentence):
    run = tmp_path / "run"
    if file is not None:
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text("sampling: {}\n")
        (run / file).write_text(content)
        if file.startswith("empty"):
            run = run / "empty"
    assert report.main([str(run), "--out", str(tmp_path / "report")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and sentence in said
    assert not (tmp_path / "report").exists()


# ------------------------------------------------------------------------------ from outside


def test_a_mistake_leaves_exit_code_2_one_line_and_nothing_else(tmp_path, root, model):
    (tmp_path / "FILE").write_text(f"model: {{path: '{model}'}}\nlog: {{compilation_cache: ''}}\n")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    done = subprocess.run(
        [sys.executable, "-m", "iapo_jax.sft", "--config", "FILE", "data.dataset=rows.parquet"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: data.dataset: cannot open 'rows.parquet'"), done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "rows.parquet"]


def test_a_reward_is_refused_before_weights_are_loaded(configure, tmp_path, monkeypatch):
    """train() itself refuses a reward before it loads weights."""
    monkeypatch.setattr(train, "initial_params", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UserError, match="returned nan for completion 0"):
        train.train(configure(), reward_functions=[lambda completions, **rest: [float("nan")] * 4])
    assert not (tmp_path / "run").exists()


def test_inspect_does_not_ask_for_a_directory_of_a_run(model, tmp_path, capsys):
    """It writes no run directory, so a run's config is accepted as it is."""
    words = ["--model", str(model), "--prompt", "1+1", "output_dir=/dev/null/x", "seed=-1"]
    assert inspect.main(words) == 2
    assert "seed is -1" in capsys.readouterr().err
