"""Breaks the product on purpose, one piece at a time; a test of the gate must fail each time.

    python tests/faults/breaks.py              # all of them, some minutes
    python tests/faults/breaks.py rope lock    # those whose description holds one of these words

Each break replaces one text in a copy of the working tree and runs the test that is named with it.
A text that is not found exactly once is an error: the table follows the code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Break(NamedTuple):
    """What is broken, where, and the test that catches it."""

    what: str
    file: str  # below iapo_jax
    old: str
    new: str
    test: str  # below tests


BREAKS = [
    Break(
        "mask: a token attends to the tokens after it",
        "model/decoder.py",
        "jnp.arange(self.outputs_from + 1, size + 1))",
        "jnp.full(size - self.outputs_from, size))",
        "test_model.py::test_logits_are_those_of_transformers",
    ),
    Break(
        "mask: completions attend to the padding of their prompt",
        "model/scoring.py",
        "return Context(cache, prompts.length - 1)",
        "return Context(cache, jnp.full_like(prompts.length, prompts.tokens.shape[-1]))",
        "test_scoring.py::test_completions_score_as_plain_sequences",
    ),
    Break(
        "attention: query heads use the wrong key head",
        "model/attention.py",
        "q = query.reshape(batch, queries, key_heads, heads // key_heads, width)",
        "q = query.reshape(batch, queries, heads // key_heads, key_heads, width).swapaxes(2, 3)",
        "test_attention.py::test_a_tree_of_segments_is_one_softmax",
    ),
    Break(
        "rope: the probe's positions are one too high",
        "information/early_exits.py",
        "start = prompts.length[:, None, None] + prefix\n",
        "start = prompts.length[:, None, None] + prefix + 1\n",
        "test_information.py::test_positions_of_the_probe_in_closed_form",
    ),
    Break(
        "off by one: the probe attends to one token too few",
        "information/early_exits.py",
        "completion = Context(completion_cache, prefix + 1)",
        "completion = Context(completion_cache, prefix)",
        "test_information.py::test_every_prefix_is_a_full_forward",
    ),
    Break(
        "sign: information is negated",
        "types.py",
        "uncertainty[..., :-1] - uncertainty[..., 1:]",
        "uncertainty[..., 1:] - uncertainty[..., :-1]",
        "test_advantages.py::test_iapo_is_the_papers_formula",
    ),
    Break(
        "sampling: a completion does not end at its stop token",
        "model/sampling.py",
        "done=state.done | jnp.isin(token, stop_ids)",
        "done=state.done",
        "test_sampling.py::test_log_probs_are_the_scorers",
    ),
    Break(
        "sampling: the end-of-turn token is not a stop token",
        "pretrained/tokenization.py",
        "ids |= {tokenizer.eos_token_id} | {vocabulary.get(text) for text in _END_OF_TURN}",
        "ids |= {tokenizer.eos_token_id}",
        "test_pretrained.py::test_stop_ids_are_the_union_of_all_sources",
    ),
    Break(
        "seed: all sampling rounds of a step draw the same completions",
        "rollout/sampler.py",
        "first=round * len(indices) * rows",
        "first=0 * round",
        "test_rollouts.py::test_no_round_of_a_step_draws_what_another_drew",
    ),
    Break(
        "temperature: scoring ignores it",
        "model/scoring.py",
        "jax.nn.log_softmax(logits / temperature, axis=-1)",
        "jax.nn.log_softmax(logits, axis=-1)",
        "test_scoring.py::test_scores_and_gradients_are_those_of_the_dense_softmax",
    ),
    Break(
        "statistics: a group's standard deviation divides by G, not by G - 1",
        "algorithms/statistics.py",
        "std = root_mean_square(centered, jnp.maximum(count - 1, 1))",
        "std = root_mean_square(centered, count)",
        "test_baselines.py::test_advantages_are_trls",
    ),
    Break(
        "sign: the loss is negated",
        "algorithms/policy_loss.py",
        "return -jnp.minimum(ratio * advantage, clipped * advantage)",
        "return jnp.minimum(ratio * advantage, clipped * advantage)",
        "test_losses.py::test_loss_and_every_gradient_are_trls",
    ),
    Break(
        "clip: the bounds are swapped",
        "algorithms/policy_loss.py",
        "jnp.clip(ratio, 1 - epsilon, 1 + epsilon_high)",
        "jnp.clip(ratio, 1 - epsilon_high, 1 + epsilon)",
        "test_losses.py::test_loss_and_every_gradient_are_trls",
    ),
    Break(
        "KL: the loss does not include it",
        "algorithms/policy_loss.py",
        "per_token = per_token + beta * k3(",
        "per_token = per_token + 0 * k3(",
        "test_losses.py::test_loss_and_every_gradient_are_trls",
    ),
    Break(
        "denominator: a token mean is divided by the number of completions",
        "algorithms/policy_loss.py",
        "return total.sum() / jnp.maximum(scale.tokens, 1e-9)",
        "return total.sum() / jnp.maximum(scale.completions, 1e-9)",
        "test_losses.py::test_loss_and_every_gradient_are_trls",
    ),
    Break(
        "micro-batches: each one has its own denominators",
        "training/update.py",
        "            scale=scale,\n",
        "            scale=None,\n",
        "test_train.py::test_micro_batches_change_nothing",
    ),
    Break(
        "schedule: the warm-up is one update too long",
        "training/optimizer.py",
        "optax.join_schedules([rise, decay], [section.warmup_steps])",
        "optax.join_schedules([rise, decay], [section.warmup_steps + 1])",
        "test_optimizer.py::test_the_rate_rises_for_the_warmup_and_then_decays",
    ),
    Break(
        "update: non-finite updates are applied",
        "training/optimizer.py",
        "finite = jnp.isfinite(norm) & jnp.isfinite(loss) & jnp.isfinite(size)",
        "finite = jnp.isfinite(norm) | True",
        "test_faults.py::test_an_endless_streak_ends_the_run",
    ),
    Break(
        "resume: the first step after a checkpoint is skipped",
        "training/run_directory.py",
        "return state, restored, checkpoints.notes(restored)",
        "return state, restored + 1, checkpoints.notes(restored)",
        "test_train.py::test_a_resumed_run_is_the_same_bit_for_bit",
    ),
    Break(
        "checkpoint: the state of the adaptation is not saved",
        "training/checkpoint.py",
        "        if jax.tree.leaves(value)\n",
        '        if jax.tree.leaves(value) and name != "adaptation"\n',
        "test_train.py::test_a_price_that_adapts_is_resumed_and_exported",
    ),
    Break(
        "checkpoint: digests are not compared",
        "training/checkpoint.py",
        'raise ValueError(f"{name} does not match its checksum")',
        "continue",
        "test_checkpoint.py::test_damage_to_any_file_is_found",
    ),
    Break(
        "order: it is the same in every epoch",
        "data/order.py",
        "(first + epoch) % 2**32",
        "first % 2**32",
        "test_data.py::test_every_epoch_is_a_permutation",
    ),
    Break(
        "answers: the first answer of a completion is taken, not the last",
        "answers/extraction.py",
        'said.rfind("<answer>", 0, ',
        'said.find("<answer>", 0, ',
        "test_answers.py::test_extract_answer",
    ),
    Break(
        "sharding: a kernel is split along the wrong axes",
        "sharding.py",
        '"down.kernel": ("tensor", "fsdp"),',
        '"down.kernel": ("fsdp", "tensor"),',
        "test_mesh.py::test_each_device_holds_its_share_of_every_weight",
    ),
    Break(
        "HTML: values in pages are not escaped",
        "information/templates.py",
        "autoescape=True",
        "autoescape=False",
        "test_page.py::test_texts_of_models_and_users_are_escaped",
    ),
    Break(
        "lock: two runs share a directory",
        "runtime/locks.py",
        "        lock.acquire()\n",
        "        pass\n",
        "test_faults.py::test_two_runs_do_not_share_a_directory",
    ),
]


def copy_tree(to: Path) -> None:
    """The tracked files of the working tree, and those that git would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


def failed_test(tree: Path, test: str) -> str | None:
    """The first test that fails, None if all pass.

    Raises:
      RuntimeError: if the tests did not run.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-rfE", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"tests/{test}"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest {test}: exit code {done.returncode}\n{done.stdout[-3000:]}")
    named = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return named[0].split()[1].partition("::")[2] if named else None


def try_break(tree: Path, broken: Break) -> bool:
    """Whether its test caught the break; restores the copy afterwards."""
    path = tree / "iapo_jax" / broken.file
    text = path.read_text()
    if text.count(broken.old) != 1:
        print(f"{broken.what}: NO LONGER APPLIES: {broken.file} has {broken.old!r} not once")
        return False
    path.write_text(text.replace(broken.old, broken.new))
    try:
        caught = failed_test(tree, broken.test)
    finally:
        path.write_text(text)
    result = f"caught by {caught}" if caught else f"NOT CAUGHT by {broken.test}"
    print(f"{broken.what}: {result}", flush=True)
    return caught is not None


def main(words: list[str]) -> int:
    """0 if every break was caught."""
    chosen = [one for one in BREAKS if not words or any(word in one.what for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        caught = [try_break(Path(folder), one) for one in chosen]
    print(f"{sum(caught)} of {len(caught)} breaks were caught")
    return not all(caught)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
