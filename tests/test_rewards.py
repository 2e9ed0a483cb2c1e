"""Rewards: accuracy and format, functions of the user, their combination."""

import math
import time

import numpy as np
import pytest

from iapo_jax.answers import extraction
from iapo_jax.rollout import reward_trial, rewards
from iapo_jax.rollout.rewards import RewardError, combine_rewards, load_reward


def test_accuracy_reward():
    completions = [
        "<think>3*4 = 12</think><answer>12</answer>",
        "<think>3*4 = 12</think><answer>12.5</answer>",
        "3*4 = 12",
        r"perhaps \boxed{12}, but",
    ]
    got = rewards.accuracy_reward(["q"] * 4, completions, answer=["12", 12, 12, 12], other=[0] * 4)
    assert got == [1.0, -1.0, -1.0, 1.0]
    # The same box is a thought, not an answer, where the prompt opened the thinking.
    assert rewards.accuracy_reward(["q\n<think>\n"] * 4, completions, [12] * 4)[3] == -1.0


def test_accuracy_reward_by_kind():
    kinds = ["choice", "latex", None, "", "unknown"]
    # H is a letter of a choice, or a quantity; without a kind it is the latter.
    letters = rewards.accuracy_reward(["q"] * 5, [r"\boxed{(h) rain}"] * 5, ["H"] * 5, kind=kinds)
    assert letters == [1.0, -1.0, -1.0, -1.0, -1.0]
    values = rewards.accuracy_reward(["q"] * 5, [r"\boxed{x = H}"] * 5, ["H"] * 5, kind=kinds)
    assert values == [-1.0, 1.0, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError):
        rewards.accuracy_reward(["q"], [r"\boxed{H}"], ["H"], kind=kinds)


@pytest.mark.parametrize(
    "prompt, completion, good",
    [
        ("q", "<think>a</think><answer>b</answer>", True),
        ("q", "<think>\na\n\nb\n</think>\n\n<answer>\nb\n</answer>\n", True),
        ("q", "<think></think> <answer></answer>", True),
        ("q", "a</think><answer>b</answer>", False),
        ("q", "<think>a</think>so<answer>b</answer>", False),
        ("q", "<think>a</think><answer>b</answer>.", False),
        ("q", "so <think>a</think><answer>b</answer>", False),
        ("q", "<think>a<think>a</think><answer>b</answer>", False),
        ("q", "<think>a</think></think><answer>b</answer>", False),
        ("q", "<think>a</think><answer>b</answer><answer>b</answer>", False),
        ("q", "<think><answer>a</think></answer>", False),
        ("q", "<answer>b</answer><think>a</think>", False),
        ("q", "<think>a</think><answer>b", False),
        ("q", "", False),
        ("q <think>", "a\nb</think>\n<answer>b</answer>", True),
        ("q <think>\n", "a</think><answer>b</answer>", True),
        ("q <think>\n", "<think>a</think><answer>b</answer>", False),
        ("q <think> x", "a</think><answer>b</answer>", False),
    ],
)
def test_format_reward(prompt, completion, good):
    assert rewards.format_reward([prompt], [completion], answer=["b"]) == [0.5 if good else -0.5]


@pytest.mark.parametrize(
    "hostile",
    [
        "<think>" * 1_000_000 + "</think>",
        "<answer>" * 1_000_000,
        "<think></think>" + "<answer></answer>" * 1_000_000,
    ],
    ids=lambda text: text[:20],
)
def test_the_format_of_hostile_texts_takes_linear_time(hostile):
    """A second or two on a slow core; a step for each pair of characters would take a day."""
    start = time.process_time()
    assert rewards.format_reward(["q"], [hostile]) == [-0.5]
    assert time.process_time() - start < 30.0


def test_whole_texts_gives_back_the_opening_tag():
    prompts = ["q", "q <think>", "q <think>\n", "q <think> x"]
    assert extraction.whole_texts(prompts, ["a"] * 4) == ["a", "<think>a", "<think>a", "a"]


def test_load_reward_forms(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Thing:\n    a: int = 3\n"
        "def short(prompts, completions, answer, **columns):\n"
        "    return [-float(len(text)) for text in completions]\n"
    )
    assert load_reward("accuracy") is rewards.accuracy_reward
    assert load_reward("format") is rewards.format_reward
    assert load_reward("iapo_jax.rollout.rewards.format_reward") is rewards.format_reward
    assert load_reward(f"{path}:short")(prompts=[""], completions=["abc"], answer=[""]) == [-3.0]


@pytest.mark.parametrize(
    "spec, sentence",
    [
        ("accurracy", "'accurracy' is unknown; expected one of accuracy, format"),
        ("", "'' is unknown; expected one of accuracy, format"),
        ("{0}/none.py:short", "file '{0}/none.py' does not exist"),
        ("{0}/mine.py:long", "{0}/mine.py does not define 'long'"),
        ("{0}/mine.py:LIMIT", "has type int; expected a function"),
        ("{0}/bad.py:short", "importing {0}/bad.py raised ZeroDivisionError"),
        ("iapo_jax.rollout.rewards.nothing", "rewards does not define 'nothing'"),
        ("no_such_package.reward", "importing no_such_package raised ModuleNotFoundError"),
        ("iapo_jax.rollout.rewards.REWARDS", "has type dict; expected a function"),
    ],
)
def test_load_reward_errors(tmp_path, spec, sentence):
    (tmp_path / "mine.py").write_text("LIMIT = 3\n")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(RewardError) as caught:
        load_reward(spec.format(tmp_path))
    assert sentence.format(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value) and not str(caught.value).endswith(".")


def returning(values):
    return lambda prompts, completions, answer, **columns: values


def test_combine_rewards():
    seen = {}

    def by_column(prompts, completions, answer, bonus, **columns):
        seen.update(columns, prompts=prompts)
        return np.array(bonus, np.float64)

    functions = [("a", returning([1.0, None, -1])), ("b", by_column)]
    total, each = combine_rewards(
        functions, [1.0, 0.5], ["p"] * 3, ["c"] * 3, ["0"] * 3, bonus=[2, 3, 4], level=[1, 2, 3]
    )
    # 1 + 0.5*2, 0 + 0.5*3, -1 + 0.5*4
    np.testing.assert_array_equal(total, np.array([2.0, 1.5, 1.0], np.float32))
    np.testing.assert_array_equal(each["a"], np.array([1.0, 0.0, -1.0], np.float32))
    np.testing.assert_array_equal(each["b"], np.array([2.0, 3.0, 4.0], np.float32))
    assert total.dtype == each["a"].dtype == each["b"].dtype == np.float32
    assert seen == {"level": [1, 2, 3], "prompts": ["p"] * 3}


def test_the_papers_rewards_add_up():
    functions = [(name, load_reward(name)) for name in ("accuracy", "format")]
    completions = ["<think>a</think><answer>4</answer>", "<answer>4</answer>", "<answer>5</answer>"]
    total, _ = combine_rewards(functions, [1, 1], ["q"] * 3, completions, ["4"] * 3)
    assert total.tolist() == [1.5, 0.5, -1.5]


@pytest.mark.parametrize(
    "values, sentence",
    [
        ([1.0], "'mine' returned [1.0], 1 entry; expected a list of 2 numbers"),
        (0.5, "'mine' returned 0.5, of type float; expected a list of 2 numbers"),
        (None, "'mine' returned None, of type NoneType; expected a list of 2 numbers"),
        ("ab", "'mine' returned 'ab', of type str; expected a list of 2 numbers"),
        ([1.0, float("nan")], "'mine' returned nan for completion 1"),
        ([float("-inf"), 1.0], "'mine' returned -inf for completion 0"),
        ([0.0, 1e39], "'mine' returned 1e+39 for completion 1"),
        ([0.0, 10**400], "for completion 1"),
        ([0.0, "1"], "'mine' returned '1' for completion 1"),
        ([0.0, [1.0]], "'mine' returned [1.0] for completion 1"),
        ([0.0, b"1"], "'mine' returned b'1' for completion 1"),
        (np.zeros((2, 1)), "'mine' returned array([0.]) for completion 0"),
        (np.zeros((3, 40)), "3 entries; expected a list of 2 numbers"),  # whose text has lines
        ({0.0, 1.0}, "of type set; expected a list of 2 numbers"),
    ],
)
def test_combine_rewards_names_what_came_back(values, sentence):
    functions = [("fine", returning([0, 0])), ("mine", returning(values))]
    with pytest.raises(RewardError) as caught:
        combine_rewards(functions, [1, 1], ["p"] * 2, ["c"] * 2, ["0"] * 2)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_reward_that_takes_no_columns_is_told_what_is_expected():
    functions = [("mine", lambda prompts, completions: [0.0])]
    with pytest.raises(RewardError) as caught:
        combine_rewards(functions, [1], ["p"], ["c"], ["0"], level=[1])
    assert "cannot be called with prompts, completions, answer, level: got" in str(caught.value)
    assert "expected fn(prompts, completions, answer, **columns)" in str(caught.value)

    def of_its_own(prompts, completions, **columns):
        return [0.0 + text for text in completions]

    with pytest.raises(RewardError, match=r"raised TypeError\(.*\(test_rewards.py, line \d+\)"):
        combine_rewards([("mine", of_its_own)], [1], ["p"], ["c"], ["0"])


def test_a_trial_needs_somebody_who_pays():
    given = ([1.0, 1.0], ["p"] * 2, ["c"] * 2, ["0"] * 2)
    none, some = returning([None, None]), returning([None, 0.5])
    reward_trial.try_rewards([("a", none), ("b", some)], *given)
    with pytest.raises(
        RewardError, match="reward functions a, b returned None for all 2 completions"
    ):
        reward_trial.try_rewards([("a", none), ("b", none)], *given)
    with pytest.raises(RewardError, match="'b' returned nan for completion 1"):
        reward_trial.try_rewards([("a", none), ("b", returning([0.0, math.nan]))], *given)


def test_a_slow_reward_is_named(capsys):
    def slow(prompts, completions, **columns):
        time.sleep(0.3)
        return [0.0]

    given = ([1.0], ["p"], ["c"], ["0"])
    reward_trial.try_rewards([("slow", slow)], *given, patience=0.05)
    assert (
        capsys.readouterr().err
        == "note: reward 'slow' has been running for 0.05 s on 1 completions\n"
    )
    reward_trial.try_rewards([("quick", returning([1.0]))], *given, patience=0.05)
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_combine_rewards_names_the_function_that_raised():
    def broken(prompts, completions, answer, **columns):
        raise KeyError("level")

    with pytest.raises(RewardError, match=r"'mine' raised KeyError\('level'\) for 2 completions"):
        combine_rewards([("mine", broken)], [1], ["p"] * 2, ["c"] * 2, ["0"] * 2)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [1.0, float("nan")]])
def test_combine_rewards_needs_a_weight_for_each(weights):
    functions = [("a", returning([0])), ("b", returning([0]))]
    with pytest.raises(RewardError, match="a finite weight for each"):
        combine_rewards(functions, weights, ["p"], ["c"], ["0"])
    with pytest.raises(RewardError, match="distinct names"):
        combine_rewards([functions[0]] * 2, [1.0, 1.0], ["p"], ["c"], ["0"])
