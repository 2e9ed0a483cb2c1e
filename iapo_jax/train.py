"""Reinforcement learning: `python -m iapo_jax.train --config FILE [key=value ...]`.

The loop around `training.step.train_step`: checkpoints, metrics, the evaluation before and after,
and the export.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from iapo_jax.algorithms.methods import Algorithm
from iapo_jax.config.train import TrainConfig
from iapo_jax.pretrained.loaded_model import abstract_params, initial_params
from iapo_jax.rollout.generation import completion_rows
from iapo_jax.runtime.cli import run_cli
from iapo_jax.runtime.console import is_writer, progress_bar, say
from iapo_jax.runtime.processes import exit_with
from iapo_jax.sharding import put, replicated
from iapo_jax.training import optimizer as update
from iapo_jax.training.checkpoint import Checkpoints, DamagedCheckpoint
from iapo_jax.training.dry_run import compile_only
from iapo_jax.training.held_out import HeldOut
from iapo_jax.training.optimizer import TrainState
from iapo_jax.training.progress import Progress
from iapo_jax.training.run_description import describe_run
from iapo_jax.training.run_directory import (
    export_final,
    prepare_directory,
    resume_state,
    run_directory,
)
from iapo_jax.training.run_writer import RunWriter
from iapo_jax.training.setup import Setup, set_up
from iapo_jax.training.step import StepRecord, batch_arrays, train_step
from iapo_jax.training.step_metrics import headline, step_metrics
from iapo_jax.types import Credit, Params


def train(
    config: TrainConfig,
    *,
    advantage: Callable[..., Credit] | Algorithm | None = None,
    reward_functions: Sequence[Callable] | None = None,
    dry_run: bool = False,
    topology: str | None = None,
) -> TrainState | None:
    """Trains, writes the run directory, compares the model before and after, and exports it.

    Args:
      advantage: a complete `Algorithm`; or a credit rule that replaces that of `algorithm.name`,
        while the loss, the reward shaping and the filters of that algorithm remain. For a credit
        rule, the information is always computed, at the positions that `information` selects.
      reward_functions: functions in TRL's form that replace `reward.functions`.
      dry_run: check everything, compile the programs of a step, print the memory that each needs,
        and return None.
      topology: as `dry_run`, for TPU chips that this machine lacks, such as v5e:2x4; needs libtpu.

    Raises:
      UserError: for a mistake in the config, the model directory or the data.
      RunError: if a run that has started cannot continue.
      Stopped: after SIGTERM or SIGINT, once everything is saved.
    """
    setup = set_up(
        config, advantage=advantage, reward_functions=reward_functions, topology=topology
    )
    held_out = HeldOut(setup.config, setup.loaded, setup.questions)
    say(describe_run(setup))
    for note in held_out.notes:
        say(f"eval        {note}")
    if dry_run or topology is not None:
        compile_only(setup)
        return None
    with run_directory(setup.config) as checkpoints:
        return _train(setup, held_out, checkpoints)


def _train(setup: Setup, held_out: HeldOut, checkpoints: Checkpoints) -> TrainState:
    config, loaded, selection = setup.config, setup.loaded, setup.selection
    adapt, optimizer = setup.algorithm.adapt, setup.spec.optimizer
    adaptation = () if adapt is None else put(adapt.init(), replicated(loaded.mesh))
    like = update.abstract_state(loaded.mesh, optimizer, abstract_params(loaded), adaptation)
    state, first, notes = resume_state(checkpoints, config, like)
    selection.resume(first)
    params = initial_params(loaded, config.seed)
    if state is None:
        state = update.init_state(loaded.mesh, optimizer, params, adaptation)
    checkpoints.compile(state)
    prepare_directory(config)
    before = held_out.before(params)
    selection.measure(params, 0)
    ref_params = params if setup.algorithm.loss.beta else None
    del params
    writer = RunWriter(
        Path(config.output_dir), tensorboard=config.log.tensorboard, resume_step=first
    )
    progress = Progress(
        config,
        checkpoints,
        writer,
        notes,
        measure=selection.measure,
        best=selection.best,
        budget=config.max_sampled_tokens,
    )
    try:
        state, last = _steps(setup, progress, state, ref_params, first)
        state, chosen = choose_state(setup, checkpoints, state, last)
    finally:
        writer.close()
    exported = export_final(loaded, state.params, Path(config.output_dir))
    after = held_out.after(state.params, chosen)
    if before is not None and is_writer():
        say(held_out.compare(before, after))
    say(f"model: {exported}")
    return state


def _steps(
    setup: Setup, progress: Progress, state: TrainState, ref_params: Params | None, first: int
) -> tuple[TrainState, int]:
    """Runs and records the steps, and does what is due after each, such as a checkpoint.

    Returns:
      The last state and its step.
    """
    config, step = setup.config, first
    progress.catch_up(first, state)
    with progress_bar(first, config.max_steps, shown=config.log.progress) as bar:
        while not progress.is_last(step):
            with progress.guard(step, state):  # a reward function may raise
                state, record = train_step(setup, state, ref_params, step, bar.set_postfix_str)
            step += 1
            failures = record.failures()
            progress.add(tokens=record.sampled_tokens(), skipped=bool(failures))
            row = step_metrics(
                record,
                progress.totals(),
                threshold=config.information.redundant_below,
                probed=setup.probe_maker is not None,
            )
            _write(setup, progress, step, record, row)
            bar.set_postfix_str(headline(row), refresh=False)
            bar.update()
            progress.after_step(step, state, failures)
    progress.restore_point(step, state)
    if step < config.max_steps:
        say(
            f"stopped after step {step} of {config.max_steps}: {progress.sampled} tokens have been "
            f"sampled, which reaches max_sampled_tokens ({config.max_sampled_tokens})"
        )
    return state, step


def _write(
    setup: Setup,
    progress: Progress,
    step: int,
    record: StepRecord,
    row: dict[str, float],
) -> None:
    log, last, writer = setup.config.log, progress.is_last(step), progress.writer
    texts = completion_rows(setup.problems, record.rewarded)
    if step % log.logging_steps == 0 or last:
        writer.metrics(step, row)
    if log.completion_steps and (step % log.completion_steps == 0 or last):
        writer.completions(step, texts)
    if failures := record.failures():
        writer.skipped(step, failures, batch_arrays(record), texts)


def choose_state(
    setup: Setup, checkpoints: Checkpoints, state: TrainState, last: int
) -> tuple[TrainState, int]:
    """The state and the step of the best checkpoint on the selection split.

    Without a selection split, or if that checkpoint cannot be read: the last state and its step.
    """
    chosen = setup.selection.best()
    if chosen is None:
        return state, last
    say(setup.selection.describe_choice())
    if chosen == last:
        return state, last
    checkpoints.wait()
    if chosen not in checkpoints.steps():
        say(
            f"note: checkpoint {chosen} no longer exists in {checkpoints.directory}; exporting "
            f"step {last} instead"
        )
        return state, last
    try:
        return checkpoints.restore(chosen, state), chosen
    except DamagedCheckpoint as error:
        say(f"note: {error}; exporting step {last} instead")
        return state, last


def _main(config: TrainConfig, arguments: argparse.Namespace) -> None:
    train(config, dry_run=arguments.dry_run, topology=arguments.topology)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_cli(TrainConfig, _main, prog="iapo_jax.train", argv=argv)


if __name__ == "__main__":
    exit_with(main)
