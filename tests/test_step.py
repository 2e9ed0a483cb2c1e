"""One training step: every answer is checked once; the list of metrics is that of real runs."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_runs import ARCHITECTURE, PRICED, make_world, train_config

from iapo_jax.answers import checker
from iapo_jax.config.loading import load_config
from iapo_jax.config.sections import InformationSection
from iapo_jax.config.sft import SftConfig
from iapo_jax.config.train import TrainConfig
from iapo_jax.rollout import generation, rewards
from iapo_jax.runtime.files import read_jsonl
from iapo_jax.sft import train_sft
from iapo_jax.train import train
from iapo_jax.training.step_metrics import METRICS, metrics_page, pattern
from iapo_jax.types import Prompts, Rollout

ENDLESS = "2^{2^{2^{2^{2^{2}}}}}"  # math-verify does not come back from it


@pytest.fixture
def score(monkeypatch):
    """`score(texts)`: what the host finds in four completions of two prompts, answers 4 and 5."""

    def run(texts, functions=("accuracy", "format")):
        lengths = np.full((2, 2), 3)
        rollout = Rollout(
            prompts=Prompts(np.ones((2, 1), np.int32), np.ones(2, np.int32)),
            tokens=np.ones((2, 2, 3), np.int32),
            length=lengths,
            log_prob=np.zeros((2, 2, 3), np.float32),
            finished=np.ones((2, 2), bool),
        )
        monkeypatch.setattr(generation, "draw_rollout", lambda *_: rollout)
        tokenizer = SimpleNamespace(batch_decode=lambda rows, **_: list(texts))
        problems = SimpleNamespace(
            texts=["2+2=<think>", "2+3=<think>"], answers=["4", "5"], columns=[{}, {}]
        )
        information = InformationSection(end_of_thinking=[])
        loaded = [(name, rewards.load_reward(name)) for name in functions]
        return generation.generate_and_score(
            None,
            np.arange(2),
            step=0,
            sampler=None,
            pretrained=SimpleNamespace(tokenizer=tokenizer, stop_ids=[0]),
            problems=problems,
            reward_functions=rewards.RewardFunctions(loaded, [1.0] * len(loaded)),
            config=dataclasses.replace(TrainConfig(), information=information),
        )

    return run


def boxed(text):
    return rf"so</think>\boxed{{{text}}}"


def test_every_completion_gets_one_verdict(score, monkeypatch):
    given = []
    inner = checker.are_correct

    def count(texts, answers, kinds):
        given.append(list(texts))
        return inner(texts, answers, kinds)

    monkeypatch.setattr(checker, "are_correct", count)
    monkeypatch.setattr(rewards, "are_correct", lambda *_: pytest.fail("a second verdict"))
    well_formed = "so</think><answer>5</answer>"
    found = score([boxed("4"), boxed("5"), boxed("5"), well_formed])
    assert given == [found.complete_texts] and found.complete_texts[0] == "<think>" + boxed("4")
    np.testing.assert_array_equal(found.correct, [[True, False], [True, True]])
    np.testing.assert_array_equal(found.rewards["accuracy"], [[1, -1], [1, 1]])
    np.testing.assert_array_equal(found.rewards["format"], [[-0.5, -0.5], [-0.5, 0.5]])
    np.testing.assert_array_equal(found.reward, [[0.5, -1.5], [0.5, 1.5]])


def test_an_answer_that_hangs_costs_one_time_out(score, monkeypatch):
    monkeypatch.setattr(checker.default_checker(), "timeout", 0.5)
    before = checker.checker_counts()
    found = score([boxed(ENDLESS), boxed(ENDLESS), boxed("5"), boxed("6")])
    after = checker.checker_counts()
    assert found.checker == {"timeouts": 1, "errors": 0}
    assert after["timeouts"] - before["timeouts"] == 1
    np.testing.assert_array_equal(found.correct, [[False, False], [True, False]])


def test_rewards_from_the_verdicts_are_those_of_the_functions():
    """And a function from outside is called as before."""
    texts = ["<think>a</think><answer>4</answer>", "<think>a", "4"]
    prompts, answers = ["q"] * 3, ["4"] * 3

    def mine(**columns):
        return [float(len(columns))] * 3

    functions = [("accuracy", rewards.accuracy_reward), ("format", rewards.format_reward)]
    given = rewards.RewardFunctions([*functions, ("mine", mine)], [1.0, 2.0, 0.5])
    settled = rewards.with_verdicts(given, texts, checker.are_correct(texts, answers))
    one, other = (
        rewards.combine_rewards(part.functions, part.weights, prompts, texts, answers, x=[1] * 3)
        for part in (given, settled)
    )
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, values in one[1].items():
        np.testing.assert_array_equal(values, other[1][name])
    assert settled.functions[2][1] is mine and one[1]["mine"][0] == 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory, root):
    """A row of metrics of each kind of run: one step each."""
    world = make_world(tmp_path_factory.mktemp("world"), root)
    short = ("eval.dataset=''", "max_steps=1", "save_steps=0")
    kinds = {
        "price": PRICED,
        "filter": (
            *("algorithm.name=gfpo", "algorithm.adapt=keep_for_difficulty"),
            "algorithm.options={start_questions: 4}",
        ),
        "dynamic": ("algorithm.name=dapo", "algorithm.max_rounds=2"),
    }
    found = {}
    for name, overrides in kinds.items():
        directory = tmp_path_factory.mktemp(name)
        train(train_config(world, root, directory, *short, *overrides))
        found[name] = read_jsonl(directory / "metrics.jsonl")[-1]
    directory = tmp_path_factory.mktemp("sft")
    (directory / "config.json").write_text(json.dumps(ARCHITECTURE))
    lines = [{"question": f"{a}+1", "completion": f"{a + 1}</think>"} for a in range(4)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = [
        *(f"output_dir={directory}/run", f"model.config={directory}/config.json"),
        *(f"model.tokenizer={world}/model", f"data.dataset={directory}/rows.jsonl"),
        *("max_steps=1", "batch.rows_per_step=4", "mesh.data=1", "log.progress=false"),
        *("log.tensorboard=false", "log.compilation_cache=''"),
    ]
    train_sft(load_config(SftConfig, None, options))
    found["sft"] = read_jsonl(directory / "run" / "metrics.jsonl")[-1]
    return found


def test_every_metric_of_a_run_is_in_the_table(rows):
    patterns = [pattern(metric) for metrics in METRICS.values() for metric in metrics]
    for kind, row in rows.items():
        for name in row.keys() - {"step"}:
            assert any(one.fullmatch(name) for one in patterns), (kind, name)


def test_every_metric_of_the_table_is_in_a_run(rows):
    names = set().union(*rows.values())
    for metrics in METRICS.values():
        for metric in metrics:
            assert any(pattern(metric).fullmatch(name) for name in names), metric.name


def test_the_page_of_metrics_is_made_from_the_table(root):
    text = (root / "docs" / "metrics.md").read_text()
    assert text == metrics_page(), "python -m iapo_jax.training.step_metrics > docs/metrics.md"
