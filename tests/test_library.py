"""docs/library.md: its training loop is short, runs as it stands, and learns."""

import re

import numpy as np
import pytest


@pytest.fixture(scope="module")
def blocks(root):
    """The blocks of Python code, in order."""
    return re.findall(r"```python\n(.*?)```", (root / "docs" / "library.md").read_text(), re.S)


@pytest.fixture(scope="module")
def loop(blocks, root):
    """Names and printed lines of the training loop, after it has run."""
    lines, names = [], {}
    names["print"] = lines.append
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # it names the model of the quick start
        exec(compile(blocks[0], "docs/library.md", "exec"), names)
    return names, lines


def test_the_loop_is_short(blocks):
    assert len(blocks[0].splitlines()) < 60


def test_the_loop_learns(loop):
    """Fewer tokens at the end than at the start; the answers stay correct."""
    names, lines = loop
    found = np.array([re.findall(r"\d+\.\d+", line) for line in lines], float)
    correct, tokens = found.T
    assert len(lines) == names["STEPS"]
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
