"""Whole runs of a tiny model in a world of its own; shared by the tests of training."""

import importlib
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from iapo_jax.config.loading import load_config
from iapo_jax.config.train import TrainConfig
from iapo_jax.model.decoder import init_params
from iapo_jax.pretrained import architecture as architecture_module
from iapo_jax.pretrained import model_directory as pretrained
from iapo_jax.runtime.files import read_jsonl
from iapo_jax.sharding import AXES, fetch
from iapo_jax.training.optimizer import TrainState

ARCHITECTURE = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
    "eos_token_id": 1,
}
# A random model is never right; digits are something that it can be paid for.
REWARD = """
def digits(prompts, completions, answer, **columns):
    return [sum(letter.isdigit() for letter in text) / 4 for text in completions]
"""


def arithmetic_tokenizer(root):
    """The tokenizer of the arithmetic experiment: 64 tokens, a chat template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "experiments" / "arithmetic"))
        for name in ("tokenizer", "problems"):
            patch.delitem(sys.modules, name, raising=False)
        tokenizer = importlib.import_module("tokenizer").build_tokenizer()
        for name in ("tokenizer", "problems"):
            sys.modules.pop(name, None)
    return tokenizer


def make_world(folder, root, **changed):
    """Fills a folder with a tiny model and its tokenizer, and a reward file; returns it.

    `changed` are fields of ARCHITECTURE.
    """
    architecture = ARCHITECTURE | changed
    params = init_params(architecture_module.decoder_config(architecture), jax.random.key(0))
    pretrained.save_pretrained(
        fetch(params), architecture, arithmetic_tokenizer(root), folder / "model"
    )
    (folder / "pay.py").write_text(REWARD)
    return folder


def mesh_words(axes):
    """Overrides for a mesh of these axes."""
    return [f"mesh.{name}={size}" for name, size in zip(AXES, axes, strict=True)]


BASE = """
data:
  dataset: arithmetic:train
  max_rows: 24  # 3 steps are an epoch: the fourth begins another one
eval: {dataset: arithmetic:test, max_rows: 12, prompts_per_batch: 8}
max_steps: 4
save_steps: 2
batch: {prompts_per_step: 8, num_generations: 4}
sampling: {max_completion_length: 16}
information: {postfix: </think><answer>}
optimizer:
  learning_rate: 1.0e-2
  lr_scheduler_type: constant
  # Adam divides by |g| + epsilon: where g is about 0, rounding errors of another order of
  # summation would become steps of full length. 1e-3 keeps small gradients small.
  adam_epsilon: 1.0e-3
mesh: {data: 1}
log: {compilation_cache: '', progress: false, tensorboard: false}  # the session's cache stays
"""


# Tests that choose the same options share the compiled programs.
PRICED = (
    "algorithm.name=iapo_priced",
    "algorithm.adapt=price_for_length",
    "algorithm.options={target_length: 8, price: 0.1, rate: 0.2}",
    "algorithm.beta=0.1",
)


def train_config(world, root, output_dir, *overrides):
    """4 steps of 8 prompts x 4 completions; `overrides` as on the command line."""
    base = world / "base.yaml"
    if not base.exists():
        base.write_text(BASE)
    words = [
        f"output_dir={output_dir}",
        f"model.path={world / 'model'}",
        f"reward.functions=[{world / 'pay.py'}:digits]",
    ]
    if not any(text.startswith("algorithm.name=") for text in overrides):
        words += [
            "algorithm.name=iapo",
            "algorithm.options={information_weight: 0.5, exploration_weight: 0.5}",
        ]
    return load_config(TrainConfig, str(base), [*words, *overrides])


class Done(NamedTuple):
    """A finished run."""

    directory: Path
    params: dict  # on the host
    rows: list[dict]  # of metrics.jsonl
    state: TrainState  # on the host


def finished(directory, state):
    """What is left of a run that ended with this state."""
    state = fetch(state)
    return Done(directory, state.params, read_jsonl(directory / "metrics.jsonl"), state)


def reproducible(row):
    """A row without what depends on the clock, or on what the process did before."""
    unsteady = ("time/", "perf/", "checker/")
    return {k: v for k, v in row.items() if not k.startswith(unsteady) and k != "compiles"}


def assert_same_run(run, other, *, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), run.params, other.params)
    assert len(run.rows) == len(other.rows)
    for row, expected in zip(
        map(reproducible, run.rows), map(reproducible, other.rows), strict=True
    ):
        assert row.keys() == expected.keys()
        for name, value in row.items():
            # Norms and sums of many terms are compared by their own size.
            bound = atol * max(1.0, abs(expected[name]))
            assert abs(value - expected[name]) <= bound, (row["step"], name, value, expected[name])


def completions(run, step):
    return read_jsonl(run.directory / "completions" / f"step_{step}.jsonl")
