"""Whole runs of a tiny model: files, resuming, meshes, micro-batches, compiling, mistakes."""

import json
import math
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from before_jax import DEVICES, MESHES
from tiny_runs import (
    ARCHITECTURE,
    PRICED,
    assert_same_run,
    completions,
    finished,
    make_world,
    mesh_words,
    reproducible,
    train_config,
)

from iapo_jax import export, sharding
from iapo_jax import train as train_module
from iapo_jax.algorithms import grpo
from iapo_jax.algorithms.methods import ALGORITHMS, Algorithm
from iapo_jax.algorithms.policy_loss import LossOptions
from iapo_jax.config.loading import load_config, to_yaml
from iapo_jax.config.train import TrainConfig
from iapo_jax.errors import UserError
from iapo_jax.evaluation.completions_file import read_completions
from iapo_jax.evaluation.records import read_record
from iapo_jax.model import attention
from iapo_jax.pretrained import architecture, loaded_model, tokenization, weights
from iapo_jax.rollout import generation as rollouts
from iapo_jax.runtime.console import report_memory, use_compilation_cache
from iapo_jax.runtime.files import read_jsonl
from iapo_jax.sharding import fetch, make_mesh
from iapo_jax.train import train
from iapo_jax.training import run_description
from iapo_jax.training.model_sources import load_checkpoint
from iapo_jax.training.setup import set_up
from iapo_jax.training.step_metrics import headline
from iapo_jax.types import Credit


@pytest.fixture(scope="module")
def world(tmp_path_factory, root):
    """A folder with a tiny model and its tokenizer, and a reward file."""
    return make_world(tmp_path_factory.mktemp("world"), root)


@pytest.fixture(scope="module")
def configure(world, root):
    """`configure(output_dir, "key=value", ...)`: 4 steps of 8 prompts x 4 completions."""
    return partial(train_config, world, root)


@pytest.fixture(scope="module")
def finish(configure, tmp_path_factory):
    """`finish("key=value", ...)` runs `train` to its end."""

    def run(*overrides, directory=None, **options):
        directory = directory or tmp_path_factory.mktemp("run")
        return finished(directory, train(configure(directory, *overrides), **options))

    return run


@pytest.fixture(scope="module")
def straight(finish):
    """The run that the others are compared with: one device, nothing cut up."""
    return finish("log.tensorboard=true")


def test_a_run_writes_its_directory(straight):
    found = {path.name for path in straight.directory.iterdir()}
    expected = {"config.yaml", "env.json", "metrics.jsonl", "completions", "checkpoints", "eval"}
    assert found == expected | {"hf", "tensorboard", ".lock"}
    config = load_config(TrainConfig, str(straight.directory / "config.yaml"))
    assert config.output_dir == str(straight.directory)
    assert config.optimizer.learning_rate == 1e-2
    environment = json.loads((straight.directory / "env.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert len(environment["devices"]) == DEVICES
    assert sorted(p.name for p in (straight.directory / "checkpoints").iterdir()) == ["2", "4"]
    assert len(list((straight.directory / "tensorboard").iterdir())) == 1
    assert [row["step"] for row in straight.rows] == [1, 2, 3, 4]


def test_metrics_have_trls_names(straight):
    names = """reward reward_std frac_reward_zero_std completions/mean_length
        completions/min_length completions/max_length completions/mean_terminated_length
        completions/clipped_ratio entropy kl loss grad_norm learning_rate rewards/digits/mean
        clip_ratio/low_mean clip_ratio/high_mean clip_ratio/region_mean"""
    ours = "accuracy ratio/mean compiles time/step iapo/information_per_token checker/timeouts"
    for row in straight.rows:
        assert set(names.split() + ours.split()) <= row.keys()
        assert all(math.isfinite(value) for value in row.values())


def test_metrics_are_those_of_the_completions(straight):
    for row in straight.rows:
        written = completions(straight, row["step"])
        assert len(written) == 32
        reward = np.array([one["reward"] for one in written], np.float32).reshape(8, 4)
        length = np.array([one["length"] for one in written])
        digits = [sum(x.isdigit() for x in one["completion"]) / 4 for one in written]
        np.testing.assert_array_equal(reward.ravel(), np.float32(digits))
        assert row["reward"] == pytest.approx(reward.mean(), abs=1e-6)
        assert row["reward_std"] == pytest.approx(reward.std(1, ddof=1).mean(), abs=1e-6)
        assert row["completions/mean_length"] == length.mean()
        assert row["completions/max_length"] == length.max() <= 16
        assert all(one["prompt"] == written[i - i % 4]["prompt"] for i, one in enumerate(written))
    # Three steps are an epoch of the 24 rows.
    rows = [one["row"] for step in (1, 2, 3) for one in completions(straight, step)[::4]]
    assert sorted(rows) == list(range(24))


def test_the_policy_learns(straight):
    assert straight.rows[-1]["reward"] > straight.rows[0]["reward"] + 0.1


def test_the_ratio_is_one_on_the_first_update(straight):
    # The old log-probabilities come from the scorer, which is also what the loss computes.
    for row in straight.rows:
        assert row["ratio/mean"] == pytest.approx(1.0, abs=1e-6)
        assert row["clip_ratio/region_mean"] == 0
        assert row["sampling/log_prob_difference/max"] < 1e-4  # the sampler agrees too
    assert straight.rows[0]["kl"] == pytest.approx(0.0, abs=1e-9)  # still the reference
    assert straight.rows[-1]["kl"] > 0


def test_the_final_model_is_the_last_state(straight):
    config = architecture.decoder_config(ARCHITECTURE)
    loaded = weights.load_params(straight.directory / "hf", config)
    jax.tree.map(np.testing.assert_array_equal, fetch(loaded), straight.params)


def test_the_table_before_and_after(straight):
    told = json.loads((straight.directory / "eval" / "summary.json").read_text())
    values = {}
    for name in ("before", "after"):
        written = read_record(straight.directory / "eval" / f"{name}.json")
        lines = read_completions(straight.directory / "eval" / f"{name}.completions.jsonl")
        assert np.shape(written.length) == (12, 1) and len(lines) == 12
        (found,) = (
            row["value"]
            for row in told["figures"]
            if (row["model"], row["name"]) == (name, "length")
        )
        assert found == pytest.approx(np.mean(written.length))
        values[name] = found
    (gap,) = (row["value"] for row in told["differences"] if row["name"] == "length")
    assert gap == pytest.approx(values["after"] - values["before"])


@pytest.fixture(scope="module")
def selected(finish):
    """A run with a selection split, which keeps one checkpoint beside the best."""
    return finish(
        "selection.problems=8",
        "selection.prompts_per_batch=8",
        "selection.criterion=accuracy",
        "save_steps=1",
        "log.save_total_limit=1",
    )


def test_the_checkpoint_of_the_selection_split_is_exported(selected):
    rows = read_jsonl(selected.directory / "selection.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    # A random model is never right: of equals the shortest, of equally short the earliest.
    assert all(row["accuracy"] == 0 for row in rows)
    best = min(rows[1:], key=lambda row: (row["length"], row["step"]))["step"]
    assert [row["step"] for row in rows if row["chosen"]] == [best]
    kept = sorted(int(p.name) for p in (selected.directory / "checkpoints").iterdir())
    assert kept == sorted({best, 4})
    config = architecture.decoder_config(ARCHITECTURE)
    exported = fetch(weights.load_params(selected.directory / "hf", config))
    jax.tree.map(np.testing.assert_array_equal, exported, selected.params)
    of_best = load_checkpoint(selected.directory, str(best), mesh=make_mesh(1, 1, 1))
    jax.tree.map(np.testing.assert_array_equal, fetch(of_best.params), selected.params)
    assert load_checkpoint(selected.directory, mesh=make_mesh(1, 1, 1)).step == best
    after = read_record(selected.directory / "eval" / "after.json")
    assert after.step == best


def test_the_selection_split_is_not_trained_on(selected, configure):
    setup = set_up(configure(selected.directory, "selection.problems=8"))
    held = set(setup.selection.task.problems.questions)
    assert len(held) == 8 and len(setup.problems.texts) == 16
    assert not held & set(setup.problems.questions)
    seen = set()
    for path in (selected.directory / "completions").iterdir():
        seen |= {row["prompt"] for row in read_jsonl(path)}
    assert seen and not seen & set(setup.selection.task.problems.texts)


def test_the_selection_split_is_training_data_for_the_evaluation_set(selected, configure, tmp_path):
    setup = set_up(configure(selected.directory, "selection.problems=8"))
    held = tmp_path / "held.jsonl"
    rows = zip(
        setup.selection.task.problems.questions,
        setup.selection.task.problems.answers,
        strict=True,
    )
    held.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    with pytest.raises(UserError, match="shares 8 of its 8 questions with the training data"):
        train(configure(tmp_path / "run", "selection.problems=8", f"eval.dataset={held}"))


def test_another_selection_split_is_refused(selected, configure):
    with pytest.raises(
        UserError, match="selection.jsonl holds results for a different selection split"
    ):
        train(
            configure(
                selected.directory,
                "selection.problems=4",
                "selection.prompts_per_batch=8",
                "save_steps=1",
            )
        )


def test_a_run_keeps_or_lacks_its_selection_split(selected, straight, configure):
    with pytest.raises(
        UserError, match="selection.problems is 0, but the run .* started with a sel"
    ):
        train(configure(selected.directory, "save_steps=1"))
    with pytest.raises(UserError, match="selection.problems is 8, but the run .* started without"):
        train(
            configure(straight.directory, "selection.problems=8", "selection.prompts_per_batch=8")
        )


def test_a_resumed_run_chooses_the_same_without_an_evaluation_set(selected, finish):
    """What decides is neither the evaluation set nor the process that measured a checkpoint."""
    options = [
        "selection.problems=8",
        "selection.prompts_per_batch=8",
        "selection.criterion=accuracy",
        "save_steps=1",
        "log.save_total_limit=1",
        "eval.dataset=''",
    ]
    first = finish("max_steps=2", *options)
    again = finish(*options, directory=first.directory)
    rows = [read_jsonl(run.directory / "selection.jsonl") for run in (selected, again)]
    assert rows[0] == rows[1]
    jax.tree.map(np.testing.assert_array_equal, again.params, selected.params)


def test_a_resumed_run_is_the_same_bit_for_bit(straight, finish):
    first = finish("max_steps=2", "eval.dataset=''")
    assert [row["step"] for row in first.rows] == [1, 2]
    resumed = finish("eval.dataset=''", directory=first.directory)
    assert [row["step"] for row in resumed.rows] == [1, 2, 3, 4]
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)
    assert list(map(reproducible, resumed.rows)) == list(map(reproducible, straight.rows))
    for step in (1, 2, 3, 4):
        assert completions(resumed, step) == completions(straight, step)
    # Going back writes the later steps again.
    checkpoint = first.directory / "checkpoints" / "4"
    written = checkpoint.stat().st_mtime_ns
    again = finish("eval.dataset=''", "resume=2", directory=first.directory)
    assert list(map(reproducible, again.rows)) == list(map(reproducible, straight.rows))
    assert checkpoint.stat().st_mtime_ns > written


@pytest.fixture(scope="module")
def halfway(straight):
    """That run as it was after step 2."""
    found = load_checkpoint(straight.directory, "2", mesh=make_mesh(1, 1, 1))
    return straight._replace(params=fetch(found.params), rows=straight.rows[:2], state=None)


NIGHTLY = pytest.mark.nightly  # test_information has the other meshes in the gate


@pytest.mark.parametrize(
    "axes", [MESHES[1], *(pytest.param(MESHES[i], marks=NIGHTLY) for i in (0, 2))]
)
def test_devices_change_nothing(halfway, finish, axes):
    run = finish("eval.dataset=''", "save_steps=0", "max_steps=2", *mesh_words(axes))
    for step in (1, 2):  # the same tokens; otherwise nothing could agree
        assert completions(run, step) == completions(halfway, step)
    assert_same_run(run, halfway, atol=1e-5)
    assert len({row["compiles"] for row in run.rows}) == 1, "something compiled after step 1"


def test_micro_batches_change_nothing(halfway, finish):
    run = finish("eval.dataset=''", "save_steps=0", "max_steps=2", "batch.micro_batch_size=2")
    for step in (1, 2):
        assert completions(run, step) == completions(halfway, step)
    assert_same_run(run, halfway, atol=1e-5)


def test_nothing_compiles_after_the_first_step(straight):
    first, *rest = (row["compiles"] for row in straight.rows)
    assert first > 0
    assert set(rest) == {rest[0]}
    assert rest[0] == first


@pytest.mark.parametrize("updates", ["batch.num_iterations=2", "batch.mini_batches=2"])
def test_several_updates_of_a_rollout(straight, finish, updates):
    run = finish("eval.dataset=''", "save_steps=0", "max_steps=2", "data.max_rows=24", updates)
    # The same first rollout; the second update of it is off-policy.
    assert completions(run, 1) == completions(straight, 1)
    assert run.rows[0]["kl"] > straight.rows[0]["kl"]
    if updates == "batch.num_iterations=2":  # mini-batches have other tokens, not another ratio
        assert abs(run.rows[0]["ratio/mean"] - 1) > 1e-5
    assert run.rows[1]["reward"] != straight.rows[1]["reward"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["information.estimator=answer_log_prob", "information.reference=own"],
        ["information.estimator=answer_set_entropy", "batch.micro_batch_size=4"],
        ["information.estimator=answer_log_prob", "information.boundaries=['. ', '=']"],
    ],
    ids=lambda words: " ".join(words),
)
def test_every_way_to_ask_trains(configure, tmp_path, overrides, capsys):
    """Finite figures, information in them, nothing compiled after the first step; a dry run too."""
    short = ("max_steps=2", "save_steps=0", "eval.dataset=''", "information.max_answer_length=8")
    config = configure(tmp_path / "run", *short, *overrides)
    train(config, dry_run=True)
    told = capsys.readouterr().out
    assert "signals" in told and f"probe       {config.information.estimator}" in told
    train(config)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all(math.isfinite(value) for row in rows for value in row.values())
    # A random model rarely writes an answer: own answers and answer sets carry little information.
    silent = "own" in overrides[-1] or "set" in overrides[0]
    assert silent or all(abs(row["iapo/information_per_token"]) > 1e-6 for row in rows)
    assert len({row["compiles"] for row in rows}) == 1  # a count since the start


def test_an_advantage_of_your_own(finish, world):
    # No advantage and no KL: no gradient, and not one bit of the model changes.
    def nothing(group, key):
        return Credit(jnp.zeros_like(group.log_prob), group.mask.astype(jnp.float32))

    short = ("eval.dataset=''", "max_steps=2", "save_steps=0")
    run = finish(*short, "algorithm.beta=0", advantage=nothing)
    config = architecture.decoder_config(ARCHITECTURE)
    start = fetch(weights.load_params(world / "model", config))
    jax.tree.map(np.testing.assert_array_equal, run.params, start)
    assert all(row["loss"] == row["grad_norm"] == 0 for row in run.rows)
    # Without a reference there is no KL to it, and none is shown.
    assert all("kl" not in row and "kl" not in headline(row) for row in run.rows)


OWN_RULE = """
import jax.numpy as jnp
from iapo_jax import Algorithm, Credit
from iapo_jax.algorithms import keep_best, rloo
from iapo_jax.losses import LossOptions

def shorter(group, key, *, strength: float = 1.0):
    base = -strength * group.mask.sum(-1)
    return Credit(base[:, None] * group.mask, group.mask.astype(jnp.float32))

whole = Algorithm(rloo, LossOptions("dapo"), filter=keep_best)
"""


def test_a_rule_by_its_file(finish, world, capsys):
    file = world / "own.py"
    file.write_text(OWN_RULE)
    quick = ["eval.dataset=''", "max_steps=1", "save_steps=0"]
    run = finish(*quick, f"algorithm.name={file}:shorter", "algorithm.options={strength: 0.5}")
    lengths = [one["length"] for one in completions(run, 1)]
    expected = -0.5 * np.square(lengths).sum() / np.sum(lengths)  # over tokens
    assert run.rows[0]["advantage/mean"] == pytest.approx(expected, rel=1e-5)
    told = capsys.readouterr().out
    assert "own.py:shorter (your own); advantage shorter(strength=0.5)" in told
    # an Algorithm, pieces and all; it needs no answers, so none are asked for
    run = finish(*quick, f"algorithm.name={file}:whole")
    assert "own.py:whole; filter keep_best; advantage rloo" in capsys.readouterr().out
    assert "iapo/information_per_token" not in run.rows[0]


def test_an_algorithm_from_python(finish):
    def dearer(group, key):
        return grpo(group._replace(reward=group.reward - 0.1 * group.mask.sum(-1)), key)

    own = Algorithm(dearer, LossOptions("dapo"))
    options = ["eval.dataset=''", "max_steps=1", "save_steps=0"]
    run = finish(*options, "information.always=true", advantage=own)
    assert "iapo/redundant_tokens" in run.rows[0] and "kl" not in run.rows[0]


def test_dynamic_sampling(finish, monkeypatch):
    """Groups that are said to be all wrong are replaced, and a resumed run draws the same."""

    def check(problems, rows, texts):  # a random model is never right
        odd = np.asarray([len(text) % 2 for text in texts], bool)
        return np.where(np.asarray(rows) % 2, odd, False)

    monkeypatch.setattr(rollouts, "check_answers", check)
    options = ["eval.dataset=''", "save_steps=1", "algorithm.name=dapo"]
    run = finish(*options, "max_steps=2")
    for row in run.rows:
        assert row["dynamic_sampling/first_mixed"] < 1 < row["dynamic_sampling/rounds"] <= 10
        assert row["dynamic_sampling/unfilled"] == 0
        assert row["dynamic_sampling/tokens"] > 32 * row["completions/mean_length"]
        written = completions(run, row["step"])
        assert all(one["row"] % 2 for one in written)
        correct = np.reshape([one["correct"] for one in written], (8, 4))
        assert (correct.any(1) & ~correct.all(1)).all()
    assert len({row["compiles"] for row in run.rows}) == 1
    first = finish(*options, "max_steps=1")
    again = finish(*options, "max_steps=2", directory=first.directory)
    assert list(map(reproducible, again.rows)) == list(map(reproducible, run.rows))
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)
    bounded = finish(*options, "max_steps=1", "algorithm.max_rounds=2")
    assert bounded.rows[0]["dynamic_sampling/rounds"] == 2


def test_a_budget_of_tokens_ends_a_run(finish, straight, capsys):
    """It ends with the step that reaches the budget; a resumed run knows what was sampled."""
    spent = np.cumsum([row["completions/sampled_tokens"] for row in straight.rows])
    assert [row["sampled_tokens"] for row in straight.rows] == spent.tolist()
    for row in straight.rows:
        written = completions(straight, row["step"])
        assert row["completions/sampled_tokens"] == sum(one["length"] for one in written)
    budget = (f"max_sampled_tokens={int(spent[1])}", "eval.dataset=''")
    run = finish(*budget)
    told = f"stopped after step 2 of 4: {int(spent[1])} tokens have been "
    assert told in capsys.readouterr().out
    assert list(map(reproducible, run.rows)) == list(map(reproducible, straight.rows[:2]))
    assert [p.name for p in (run.directory / "checkpoints").iterdir()] == ["2"]
    again = finish(*budget, directory=run.directory)  # nothing is left to do
    assert again.rows == run.rows and told in capsys.readouterr().out
    short = finish("max_steps=1", "eval.dataset=''")
    resumed = finish(*budget, directory=short.directory)
    assert [row["sampled_tokens"] for row in resumed.rows] == spent[:2].tolist()
    more = finish(f"max_sampled_tokens={int(spent[0]) + 1}", "eval.dataset=''", "save_steps=0")
    assert len(more.rows) == 2


def test_a_price_that_adapts_is_resumed_and_exported(finish, tmp_path):
    quick = ["eval.dataset=''", "save_steps=1"]
    options = [*quick, *PRICED]
    run = finish(*options, "max_steps=2")
    price = 0.1
    for row in run.rows:
        price *= np.exp(0.2 * np.clip((row["completions/mean_length"] - 8) / 8, -1, 1))
        assert row["algorithm/price"] == pytest.approx(price, rel=1e-5)
    first = finish(*options, "max_steps=1")
    again = finish(*options, "max_steps=2", directory=first.directory)
    assert list(map(reproducible, again.rows)) == list(map(reproducible, run.rows))
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)
    assert export.main([str(run.directory), "--out", str(tmp_path / "hf")]) == 0
    config = architecture.decoder_config(ARCHITECTURE)
    exported = fetch(weights.load_params(tmp_path / "hf", config))
    jax.tree.map(np.testing.assert_array_equal, exported, run.params)
    # A run with a different adaptation, or with none, does not resume from this state.
    priced = [*quick, PRICED[0]]
    other = "algorithm.adapt=price_for_accuracy"
    with pytest.raises(UserError, match="match this config: algorithm.adapt's memory.accuracy"):
        finish(*priced, other, "max_steps=3", directory=run.directory)
    with pytest.raises(UserError, match="algorithm.adapt's memory.price has shape .* to be absent"):
        finish(*priced, "max_steps=3", directory=run.directory)


def test_diagnostics_are_logged_each_step(straight):
    names = """credit/length_bonus_covariance credit/bonus_share credit/stop_bonus
        credit/rival_bonus iapo/information_per_token iapo/redundant_tokens"""
    for row in straight.rows:
        assert set(names.split()) <= row.keys()
        assert 0 < row["credit/bonus_share"] < 1


def test_rewards_of_your_own(finish):
    seen = []

    def mine(prompts, completions, answer, **columns):
        seen.append((prompts[0], answer[0], sorted(columns)))
        return [2.5] * len(completions)

    run = finish("eval.dataset=''", "max_steps=1", "algorithm.beta=0", reward_functions=[mine])
    (row,) = run.rows
    assert row["reward"] == row["rewards/mine/mean"] == 2.5
    assert row["reward_std"] == 0 and row["frac_reward_zero_std"] == 1
    first = completions(run, 1)[0]
    assert len(seen) == 2  # once at the start, on the first problems, and once in the step
    assert seen[1][:2] == (first["prompt"], first["answer"]) and seen[0][2] == seen[1][2]


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        ("sampling.top_p=0.9", "sampling.top_p is 0.9"),
        ("sampling.top_k=5", "sampling.top_k is 5"),
        ("sampling.temperature=0", "sampling.temperature is 0.0; expected more than 0"),
        ("sampling.top_k=99 sampling.allow_truncated_distribution=true", "at most 64, the voc"),
        ("eval.top_k=65", "eval.top_k is 65; expected at most 64, the vocabulary size"),
        ("max_steps=-1", "max_steps is -1; expected at least 0"),
        (
            "output_dir=/dev/null/run",
            "output_dir is '/dev/null/run', but /dev/null is not a directory",
        ),
        ("reward.functions=[]", "reward.functions is empty"),
        ("reward.functions=[[accuracy]]", "reward.functions has the entry ['accuracy']"),
        ("reward.functions=[format,format]", "two functions named 'format'; expected distinct"),
        ("reward.weights=[.inf]", "reward.weights is [inf]; expected finite numbers"),
        (
            "algorithm.options={scale_rewards: foo}",
            "algorithm.options: scale_rewards is 'foo'; expected group or none",
        ),
        ("information.postfix=\u2603", "information.postfix is '\u2603', but encoding and"),
        ("batch.micro_batch_size=3", "batch.micro_batch_size is 3; expected a divisor of 8, the"),
        (f"mesh.data={DEVICES} batch.micro_batch_size=1", f"a multiple of {DEVICES}, the num"),
        (
            "batch.mini_batches=3",
            "batch.mini_batches is 3; expected a divisor of batch.prompts_per_step",
        ),
        ("batch.num_generations=0", "batch.num_generations is 0; expected at least 1"),
        ("mesh.data=16", f"needs 16 devices, found {DEVICES}"),
        ("model.path=/nowhere/model", "'/nowhere/model' does not exist"),
        ("model.path=''", "model.path is empty"),
        ("data.dataset=''", "data.dataset is empty"),
        ("data.max_prompt_length=2", "data.max_prompt_length is 2, but the shortest"),
        ("algorithm.name=iappo", "algorithm.name is 'iappo'; did you mean iapo?"),
        (
            "algorithm.options={information_wieght: 1.0}",
            "algorithm.options.information_wieght is unknown; did you mean information_weight",
        ),
        (
            "algorithm.name=length_cap",
            "algorithm.options.cap is missing; length_cap needs it (int)",
        ),
        (
            "algorithm.name=gfpo algorithm.options.keep=5",
            "algorithm.options: keep is 5; expected 0, or 2 to 4 (the group size)",
        ),
        (
            "algorithm.adapt=price_for_length",
            "algorithm.options.target_length is missing; algorithm.adapt=price_for_length needs it",
        ),
        (
            "algorithm.name=iapo_priced algorithm.adapt=price_for_accuracy "
            "algorithm.dynamic_sampling=true",
            "algorithm.adapt (price_for_accuracy) needs unfiltered samples of the policy",
        ),
        (
            "algorithm.name=dapo batch.num_generations=1",
            "batch.num_generations is 1: no group can have correct and incorrect",
        ),
        ("algorithm.name=own.py", "'own.py': expected 'path/to/file.py:name'"),
        ("algorithm.name=builtins.dict", "has no readable signature; expected (group, key)"),
        ("algorithm.max_rounds=0", "algorithm.max_rounds is 0; expected at least 1"),
        ("information.redundant_below=0", "information.redundant_below is 0.0; expected more than"),
        ("algorithm.name=nowhere.py:f", "nowhere.py' does not exist"),
        ("algorithm.name=json.loads", "algorithm.name 'json.loads': "),
        ("algorithm.name=json.nothing", "json does not define 'nothing'"),
        ("algorithm.name=json.__doc__", "has type str; expected a function (group, key) -> Credit"),
        ("algorithm.loss_type=dappo", "algorithm.loss_type is 'dappo'; did you mean dapo?"),
        ("optimizer.lr_scheduler_type=lineer", "optimizer.lr_scheduler_type is 'lineer'"),
        ("information.postfix=''", "information.postfix is empty"),
        ("reward.functions=[nothing]", "'nothing' is unknown; expected one of accuracy"),
        ("reward.weights=[1.0,2.0]", "reward.weights is [1.0, 2.0]; expected as many numbers as"),
    ],
)
def test_a_wrong_config_is_one_sentence(configure, tmp_path, overrides, sentence):
    with pytest.raises(UserError) as caught:
        set_up(configure(tmp_path / "run", *re.split(r"(?<!:) ", overrides)))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def takes_no_key(group):
    return Credit(group.log_prob, group.log_prob)


RULES = [
    (takes_no_key, "takes 1 positional argument but 2 were given; the rule is called with (group"),
    (lambda group, key: group.nothing, "has no attribute 'nothing' (test_train.py, line "),
    (lambda group, key: group.log_prob, "rule returned float32[4, 16]; expected a Credit of two"),
    (lambda group, key: Credit(group.reward, group.log_prob), "(advantage='float32[4]', weight"),
    (lambda group, key: Credit(group.log_prob, group.mask), "weight='bool[4, 16]'"),
    (lambda group, key: 1.0, "advantage: "),
    (lambda group, key: {}["deep"], "KeyError: 'deep' (test_train.py, line "),
]


def test_options_of_a_rule_of_your_own(configure, tmp_path):
    def mine(group, key, *, strength: float = 1.0, cap: int | None = None):
        return Credit(strength * group.log_prob, group.mask.astype(jnp.float32))

    def make(*options):
        config = configure(tmp_path / "run", *options)
        return set_up(config, advantage=mine).algorithm.advantage

    # information_weight and exploration_weight are of the rule that it replaces
    made = make("algorithm.options.strength=2", "algorithm.options.cap=3")
    assert made.keywords == {"strength": 2, "cap": 3}
    with pytest.raises(UserError, match="options.strenght is unknown; did you mean strength"):
        make("algorithm.options.strenght=2")
    with pytest.raises(UserError, match="advantage is 'iapo'; expected a function"):
        set_up(configure(tmp_path / "run"), advantage="iapo")
    broken = Algorithm(grpo, None)
    with pytest.raises(UserError, match="loss is None; expected LossOptions"):
        set_up(configure(tmp_path / "run"), advantage=broken)
    broken = Algorithm(grpo, LossOptions("nope"))
    with pytest.raises(UserError, match="algorithm.loss_type is 'nope'"):
        set_up(configure(tmp_path / "run"), advantage=broken)


@pytest.mark.parametrize("rule, sentence", RULES)
def test_a_wrong_rule_of_your_own_is_one_sentence(configure, tmp_path, rule, sentence):
    with pytest.raises(UserError) as caught:
        set_up(configure(tmp_path / "run"), advantage=rule)
    assert str(caught.value).startswith("advantage: ") and "\n" not in str(caught.value)
    assert sentence in str(caught.value) and "[G, T] = [4, 16]" in str(caught.value)


def test_rewards_of_your_own_need_a_weight_each(configure, tmp_path):
    config = configure(tmp_path / "run", "reward.weights=[1.0, 2.0]")
    with pytest.raises(
        UserError, match=r"reward.weights is \[1.0, 2.0\]; expected as many numbers"
    ):
        set_up(config, reward_functions=[lambda **columns: []])


def test_a_rule_of_your_own_gets_information(configure, tmp_path):
    def rule(group, key):
        return Credit(group.log_prob, group.log_prob)

    config = configure(tmp_path / "run", "algorithm.name=grpo")  # which needs none itself
    assert not ALGORITHMS["grpo"].needs_information
    assert set_up(config, advantage=rule).algorithm.needs_information


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        ("max_steps=1", "max_steps is 1, but the run would resume from step 4"),
        ("resume=never", "resume is never, but"),
        ("resume=3", "resume is '3'; expected auto, never or one of the steps [2, 4]"),
    ],
)
def test_what_cannot_be_resumed_costs_nothing(
    configure, straight, monkeypatch, overrides, sentence
):
    monkeypatch.setattr(train_module, "initial_params", lambda *_: pytest.fail("weights loaded"))
    files = sorted(straight.directory.rglob("*"))
    written = (straight.directory / "config.yaml").read_text()
    with pytest.raises(UserError) as caught:
        train(configure(straight.directory, overrides))
    assert sentence in str(caught.value)
    assert (straight.directory / "config.yaml").read_text() == written
    assert sorted(straight.directory.rglob("*")) == files


def test_a_directory_that_cannot_be_written_costs_nothing(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "initial_params", lambda *_: pytest.fail("weights loaded"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="the directory of checkpoints is .* is not a directory"):
        train(configure(tmp_path / "run"))
    with pytest.raises(UserError, match="output_dir .*'/proc/run'.* writ"):
        train(configure("/proc/run"))


def test_a_compilation_cache_that_cannot_be_written_is_said(capsys):
    before = jax.config.jax_compilation_cache_dir
    use_compilation_cache("/dev/null/programs")
    assert jax.config.jax_compilation_cache_dir == before
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("note: compiled programs are not kept in ")


def test_held_out_means_held_out(configure, tmp_path):
    config = configure(tmp_path / "run")
    overlap = configure(tmp_path / "run", f"eval.dataset={config.data.dataset}")
    with pytest.raises(UserError, match="shares 12 of its 12 questions with the training data"):
        train(overlap)


def arguments(config):
    """The command line of a config."""
    path = Path(config.output_dir + ".yaml")
    path.write_text(to_yaml(config))
    return ["--config", str(path)]


def test_a_dry_run_prints_memory_and_writes_nothing(configure, tmp_path, capsys):
    config = configure(tmp_path / "run", "eval.dataset=''")
    assert train_module.main([*arguments(config), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "8 prompts x 4 completions of up to 16 tokens" in printed
    table = printed[printed.index("program ") :].splitlines()
    assert [line.split()[0] for line in table] == ["program", "sample", "signals", "update"]
    for line in table[1:]:
        assert all(float(size) >= 0 for size in line.split()[1:])
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_said_after_the_rest(capsys):
    """As the compiler for TPU refuses a large program; any other error of it is raised."""

    class Program:
        def __init__(self, error=None):
            self.error = error

        def compile(self):
            if self.error:
                raise jax.errors.JaxRuntimeError(self.error)
            return jax.jit(jnp.sin).lower(1.0).compile()

    full = "Ran out of memory on HBM, the total memory required (23G) exceeds 15G."
    exhausted = f"RESOURCE_EXHAUSTED: {full}\nThe largest: ..."
    programs = {"sample": Program(exhausted), "signals": Program(), "update": Program(exhausted)}
    with pytest.raises(
        UserError, match="sample and update do not fit into the memory of one device; use m"
    ):
        report_memory(programs)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert rows[0] == f"sample     does not fit: {full}" and rows[1].startswith("signals   ")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        report_memory({"sample": Program("INTERNAL: Mosaic failed")})


@pytest.fixture
def elsewhere(monkeypatch):
    """The devices here, as if they were the chips of a topology that is described."""
    monkeypatch.setattr(loaded_model, "described_devices", lambda _: jax.devices())
    for module in (sharding, run_description, attention):
        monkeypatch.setattr(module, "is_described", lambda mesh: True)


def test_compiling_for_chips_that_are_not_here(elsewhere, configure, tmp_path, capsys, monkeypatch):
    """What is put on the mesh are shapes: nothing is executed, and the memory is the same."""
    config = configure(tmp_path / "run", "eval.dataset=''", "algorithm.name=iapo_priced")
    monkeypatch.setattr(jax, "make_array_from_callback", lambda *_: pytest.fail("was put there"))
    assert train_module.main([*arguments(config), "--topology", "v5e:2x4"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"devices     \d .* devices? \(compile only: not on this machine\), mesh data=\d", printed
    )
    monkeypatch.undo()
    assert train_module.main([*arguments(config), "--dry_run"]) == 0

    def table(text):
        return text[text.index("program ") :]

    assert table(capsys.readouterr().out) == table(printed)
    assert not (tmp_path / "run").exists()


def test_a_topology_that_nobody_knows_is_one_sentence(configure, tmp_path, capsys):
    """With libtpu, which knows many, or without."""
    config = configure(tmp_path / "run", "eval.dataset=''")
    assert train_module.main([*arguments(config), "--topology", "nine_chips"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: topology 'nine_chips' cannot be described: ")
    assert said.endswith("expected a name such as v5e:2x4, and an installed libtpu (jax[tpu])\n")


def test_export_opens_a_checkpoint(straight, tmp_path, capsys):
    assert export.main([str(straight.directory), "--out", str(tmp_path / "last")]) == 0
    assert capsys.readouterr().out.strip().endswith(str(tmp_path / "last"))
    config = architecture.decoder_config(ARCHITECTURE)
    last = fetch(weights.load_params(tmp_path / "last", config))
    jax.tree.map(np.testing.assert_array_equal, last, straight.params)
    tokenization.load_tokenizer(tmp_path / "last")
    options = ["--step", "2", "--out", str(tmp_path / "half"), "--dtype", "bfloat16"]
    assert export.main([str(straight.directory), *options]) == 0
    half = fetch(weights.load_params(tmp_path / "half", config))
    changed = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, half, last))
    assert any(changed)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--step", "3"], "--step is '3'; expected auto or one of the steps [2, 4]"),
        (["--step", "never"], "--step is 'never'; expected auto or one of the steps [2, 4]"),
        (["--out", "/dev/null/hf"], "the directory of --out is '/dev/null', but /dev/null is no"),
        (["--out", "/proc/hf"], "--out"),  # root is told by the attempt, others by the look
        (["--dtype", "int8"], "--dtype is 'int8'; expected float32"),
    ],
)
def test_export_mistakes(straight, capsys, options, sentence):
    assert export.main([str(straight.directory), *options]) == 2
    assert sentence in capsys.readouterr().err


def test_export_of_no_run(tmp_path, capsys):
    assert export.main([str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
