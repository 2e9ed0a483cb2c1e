"""Supervised fine-tuning: `python -m iapo_jax.sft --config FILE [key=value ...]`.

A row has a `prompt` or a `question`, and a `completion`: a string, or a list of [text, weight]
pieces. Each piece is tokenized separately, and its tokens enter the loss with its weight.

    loss = - sum_t w_t log p(o_t | q, o_<t) / sum_t w_t
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from iapo_jax.config.checks import check_config
from iapo_jax.config.sft import SftConfig
from iapo_jax.data.demonstrations import Demonstrations, SftBatch
from iapo_jax.model.scoring import score_completions
from iapo_jax.pretrained.loaded_model import (
    abstract_params,
    initial_params,
    prepare_model,
    start_mesh,
)
from iapo_jax.pretrained.model_directory import check_replaceable
from iapo_jax.runtime.cli import run_cli
from iapo_jax.runtime.console import progress_bar, report_memory, say
from iapo_jax.runtime.processes import exit_with
from iapo_jax.sharding import batch_devices, by_prompt, fetch, put
from iapo_jax.training import optimizer as update
from iapo_jax.training.optimizer import (
    Optimizer,
    TrainState,
    UpdateResult,
    accumulate_gradients,
    apply_gradient,
    count_micro_batches,
)
from iapo_jax.training.progress import Progress
from iapo_jax.training.run_directory import (
    export_final,
    prepare_directory,
    resume_state,
    run_directory,
)
from iapo_jax.training.run_writer import RunWriter
from iapo_jax.training.step_metrics import (
    fine_tuning_headline,
    fine_tuning_metrics,
    time_metrics,
)
from iapo_jax.types import Array, Mean, Model, Params


class FineTuningUpdate(NamedTuple):
    """What one update reports; scalars."""

    result: UpdateResult
    entropy: Array  # nats, weighted mean over tokens
    num_tokens: Array  # sum of the weights


@partial(jax.jit, static_argnames=("mesh", "model", "optimizer", "micro"), donate_argnames="state")
def sft_step(
    state: TrainState,
    batch: SftBatch,
    *,
    mesh: Mesh,
    model: Model,
    optimizer: Optimizer,
    micro: int,
) -> tuple[TrainState, FineTuningUpdate]:
    """One update on a batch, in `micro` micro-batches."""
    weights = batch.weight.sum()
    total = jnp.where(weights > 0, weights, 1.0)

    def loss(params: Params, part: SftBatch) -> tuple[Array, Mean]:
        scores = score_completions(model, params, part.prompts, part.tokens, 1.0)
        entropy = Mean((scores.entropy * part.weight).sum(), part.weight.sum())
        return -(scores.log_prob * part.weight).sum() / total, entropy

    gradient, value, entropy = accumulate_gradients(loss, state.params, batch, micro)
    state, result = apply_gradient(mesh, optimizer, state, gradient, value)
    return state, FineTuningUpdate(result=result, entropy=entropy.value(), num_tokens=total)


def train_sft(
    config: SftConfig, dry_run: bool = False, topology: str | None = None
) -> TrainState | None:
    """Fine-tunes, saves checkpoints, and exports the model to `OUTPUT_DIR/hf`.

    Args:
      dry_run: check everything, compile an update from shapes alone, print the memory that it
        needs, and return None.
      topology: as `dry_run`, for TPU chips that this machine lacks, such as v5e:2x4; needs libtpu.
    """
    check_config(config)
    check_replaceable(Path(config.output_dir) / "hf")
    mesh = start_mesh(
        config.mesh, compilation_cache=config.log.compilation_cache, topology=topology
    )
    loaded = prepare_model(config.model, mesh)
    micro = count_micro_batches(
        config.batch.micro_batch_size,
        config.batch.rows_per_step,
        batch_devices(mesh),
        field="rows_per_step",
        unit="rows",
    )
    rows = Demonstrations(config, loaded.pretrained.tokenizer)
    for note in rows.notes:
        say(note)
    optimizer = update.make_optimizer(config.optimizer, config.max_steps)
    schedule = update.make_schedule(config.optimizer, config.max_steps)
    fixed = dict(mesh=loaded.mesh, model=loaded.model, optimizer=optimizer, micro=micro)
    if dry_run or topology is not None:
        state = update.abstract_state(loaded.mesh, optimizer, abstract_params(loaded))
        batch = put(rows.batch(0), by_prompt(loaded.mesh))
        report_memory({"update": sft_step.lower(state, batch, **fixed)})
        return None
    with run_directory(config) as checkpoints:
        like = update.abstract_state(loaded.mesh, optimizer, abstract_params(loaded))
        state, first, notes = resume_state(checkpoints, config, like)
        if state is None:
            state = update.init_state(loaded.mesh, optimizer, initial_params(loaded, config.seed))
        checkpoints.compile(state)
        prepare_directory(config)
        writer = RunWriter(
            Path(config.output_dir), tensorboard=config.log.tensorboard, resume_step=first
        )
        try:
            progress = Progress(config, checkpoints, writer, notes)
            state = _steps(progress, rows, partial(sft_step, **fixed), schedule, state, first)
        finally:
            writer.close()
        if rows.left_out:
            count = "1 row" if rows.left_out == 1 else f"{rows.left_out} rows"
            say(f"note: {rows.describe_left_out()}; {count} left out")
        say(f"model: {export_final(loaded, state.params, Path(config.output_dir))}")
    return state


def _steps(
    progress: Progress,
    rows: Demonstrations,
    update_on: Callable[..., tuple[TrainState, FineTuningUpdate]],
    schedule: Callable[[int], Array],
    state: TrainState,
    first: int,
) -> TrainState:
    """Runs and records the steps, and does what is due after each, such as a checkpoint."""
    config, split = progress.config, by_prompt(update_on.keywords["mesh"])
    updates, logged, started = int(state.updates), first, time.perf_counter()
    with progress_bar(first, config.max_steps, shown=config.log.progress) as bar:
        following = rows.batch(first)
        for step in range(first + 1, config.max_steps + 1):
            with progress.guard(step - 1, state):
                state, found = update_on(state, put(following, split))
                batch, following = following, rows.batch(step)  # encoded while the devices work
                found = fetch(found)
            skipped = bool(found.result.skipped)
            progress.add(skipped=skipped)
            row = fine_tuning_metrics(
                found.result,
                entropy=found.entropy,
                num_tokens=found.num_tokens,
                learning_rate=float(schedule(updates)),
                skipped_in_a_row=progress.totals().skipped_in_a_row,
            )
            updates += not skipped
            if step % config.log.logging_steps == 0 or step == config.max_steps:
                now = time.perf_counter()
                row |= time_metrics((now - started) / (step - logged))
                logged, started = step, now
                progress.writer.metrics(step, row)
            failures = {}
            if skipped:
                failures = {
                    "loss": str(float(found.result.loss)),
                    "grad_norm": str(float(found.result.grad_norm)),
                }
                progress.writer.skipped(step, failures, *_batch_files(rows, batch, step))
            bar.set_postfix_str(fine_tuning_headline(row), refresh=False)
            bar.update()
            progress.after_step(step, state, failures)
    progress.restore_point(config.max_steps, state)
    return state


def _batch_files(
    rows: Demonstrations, batch: SftBatch, step: int
) -> tuple[dict[str, np.ndarray], list[dict]]:
    """The arrays and the rows of a skipped batch, which help to find the cause."""
    arrays = {"tokens": batch.tokens, "weight": batch.weight}
    arrays |= {f"prompts.{name}": x for name, x in batch.prompts._asdict().items()}
    indices = [int(index) for index in rows.order(step - 1)]
    return arrays, [{"row": index, **rows.rows[index]} for index in indices]


def _main(config: SftConfig, arguments: argparse.Namespace) -> None:
    train_sft(config, dry_run=arguments.dry_run, topology=arguments.topology)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_cli(SftConfig, _main, prog="iapo_jax.sft", argv=argv)


if __name__ == "__main__":
    exit_with(main)
