"""docs/library.md: its training loop is short, runs as it stands, and learns."""

import re
from collections import Counter

import jax
import numpy as np
import pytest

SIZES = "PROMPTS, GENERATIONS, LENGTH, STEPS = "


@pytest.fixture(scope="module")
def blocks(root):
    """The blocks of Python code, in order."""
    return re.findall(r"```python\n(.*?)```", (root / "docs" / "library.md").read_text(), re.S)


@pytest.fixture(scope="module")
def execute(root):
    """`execute(code)`: the names of a training loop, and the correct share and tokens of each
    step, after it has run."""

    def run(code):
        lines, names = [], {}
        names["print"] = lines.append
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)  # it names the model of the quick start
            exec(compile(code, "docs/library.md", "exec"), names)
        found = np.array([re.findall(r"\d+\.\d+", line) for line in lines], float)
        assert found.shape == (names["STEPS"], 2)
        return names, found

    return run


@pytest.fixture(scope="module")
def loop(blocks, execute):
    """The complete training loop."""
    return execute(blocks[0])


def test_the_loop_is_short(blocks):
    assert len(blocks[0].splitlines()) < 60


def test_two_small_steps_of_the_loop(blocks, execute, root):
    """The same code with fewer and shorter completions: it takes finite steps, and the second one
    compiles nothing."""
    small, count = re.subn(f"{SIZES}8, 8, 96, 8\n", f"{SIZES}4, 4, 32, 2\n", blocks[0])
    assert count == 1
    traced = Counter()

    def count(event, seconds, fun_name="", **_):
        traced[fun_name] += event == "/jax/core/compile/jaxpr_trace_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        names, (*_, (correct, tokens)) = execute(small)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert traced["update"] == 1 and traced["sample"] <= 1  # others may have traced it before
    rollout = names["rollout"]
    assert rollout.tokens.shape == (4, 4, 32) and rollout.tokens.dtype == np.int32
    assert 0 <= correct <= 1  # printed with two decimals, tokens with one
    assert tokens == pytest.approx(np.asarray(rollout.length).mean(), abs=0.05)
    _, start, _ = names["iapo_jax"].load(root / "experiments" / "arithmetic" / "model")
    for before, after in zip(*map(jax.tree.leaves, (start, names["params"])), strict=True):
        assert np.isfinite(after).all() and (np.asarray(after) != before).any()


@pytest.mark.nightly
def test_the_loop_learns(loop):
    """Fewer tokens at the end than at the start; the answers stay correct."""
    correct, tokens = loop[1].T
    assert tokens[-3:].mean() < 0.85 * tokens[:2].mean()
    assert correct[-3:].mean() > 0.85


@pytest.mark.nightly
def test_the_other_blocks_run_after_it(blocks, loop):
    """With the names of the loop, and candidates and a group of its last rollout."""
    names, _ = loop
    iapo_jax = names["iapo_jax"]
    answers = iapo_jax.encode_answers(names["tokenizer"], names["answers"], max_length=8)
    mask = np.arange(names["LENGTH"]) < np.asarray(names["rollout"].length)[0, :, None]
    own = {**names, "answers": answers, "candidates": answers, "mask": mask}
    own["reward"] = np.float32(names["correct"][0])
    for block in blocks[1:]:
        exec(block, own)
    assert own["u"].shape == (*names["rollout"].length.shape, names["LENGTH"] + 1)
    assert own["credit"].advantage.shape == mask.shape
