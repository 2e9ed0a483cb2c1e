"""Reinforcement learning: `python -m iapo_jax.train --config FILE [key=value ...]`.

The loop around `step.run_step`: checkpoints, metrics, the table before and after, the export.
"""

import argparse
from collections.abc import Callable, Sequence

import jax
import numpy as np

from iapo_jax.algorithms.methods import Algorithm
from iapo_jax.config.schema import TrainConfig
from iapo_jax.information.probes import abstract_probe
from iapo_jax.information.signals import compute_signals
from iapo_jax.pretrained.loaded import abstract_params, initial_params
from iapo_jax.rollout import sampler
from iapo_jax.rollout.collect import Scored
from iapo_jax.runtime.cli import run_cli
from iapo_jax.runtime.console import is_writer, progress_bar, say, say_memory
from iapo_jax.runtime.processes import leave
from iapo_jax.sharding import by_prompt, put, replicated
from iapo_jax.training import optimizer as update
from iapo_jax.training import step_metrics
from iapo_jax.training.boundary import Boundary
from iapo_jax.training.checkpoint import Checkpoints, DamagedCheckpoint
from iapo_jax.training.held_out import HeldOut
from iapo_jax.training.optimizer import TrainState
from iapo_jax.training.run_directory import (
    export_final,
    prepare_directory,
    resume_state,
    run_directory,
)
from iapo_jax.training.run_writer import RunWriter
from iapo_jax.training.setup import Trainer, make_trainer
from iapo_jax.training.skipping import Skipped
from iapo_jax.training.step import run_step
from iapo_jax.training.update import TrainBatch, train_step
from iapo_jax.types import Credit, Params, Rollout


def train(
    config: TrainConfig,
    *,
    advantage: Callable[..., Credit] | Algorithm | None = None,
    reward_functions: Sequence[Callable] | None = None,
    dry_run: bool = False,
    topology: str | None = None,
) -> TrainState | None:
    """Trains, writes the run directory, prints the table before and after, exports the model.

    Args:
      advantage: a credit rule of your own, instead of the one that `algorithm.name` names; what
        is around it (loss, shaping, filters) stays that algorithm's, and the information of every
        prefix is always computed for it. Or an `Algorithm` of your own, pieces and all.
      reward_functions: your own, instead of `reward.functions`.
      dry_run: check and compile everything, print the memory, and return None.
      topology: the same for TPU chips that are not here, such as v5e:2x4; needs libtpu.

    Raises:
      UserError: for what is wrong in the config, the model directory or the data.
      RunError: if a run under way cannot go on.
      Stopped: if SIGTERM or SIGINT asks for it; everything is saved.
    """
    own = {"advantage": advantage, "reward_functions": reward_functions}
    trainer = make_trainer(config, **own, topology=topology)
    run = trainer.run
    held_out = HeldOut(trainer.config, run, trainer.questions)
    say(step_metrics.describe_run(trainer))
    for note in held_out.notes:
        say(f"eval        {note}")
    if dry_run or topology is not None:
        compile_only(trainer)
        return None
    with run_directory(run, config) as checkpoints:
        return _train(trainer, held_out, checkpoints)


def _train(trainer: Trainer, held_out: HeldOut, checkpoints: Checkpoints) -> TrainState:
    config, run, selection = trainer.config, trainer.run, trainer.selection
    adapt, optimizer = trainer.algorithm.adapt, trainer.spec.optimizer
    memory = () if adapt is None else put(adapt.init(), replicated(run.mesh))
    like = update.abstract_state(run.mesh, optimizer, abstract_params(run), memory)
    state, first, notes = resume_state(checkpoints, config, like)
    selection.resume(first)
    params = initial_params(run, config.seed)
    if state is None:
        state = update.init_state(run.mesh, optimizer, params, memory)
    checkpoints.compile(state)
    prepare_directory(run, config)
    before = held_out.before(params)
    selection.measure(params, 0)
    ref_params = params if trainer.algorithm.loss.beta else None
    del params
    writer = RunWriter(run.output_dir, tensorboard=config.log.tensorboard, resume_step=first)
    found = selection.measure, selection.best, config.max_sampled_tokens
    boundary = Boundary(config, checkpoints, writer, notes, *found)
    try:
        state, last = _steps(trainer, boundary, state, ref_params, first)
        state, chosen = choose_state(trainer, checkpoints, state, last)
    finally:
        writer.close()
    exported = export_final(run, state.params)
    after = held_out.after(state.params, chosen)
    if before is not None and is_writer():
        say(held_out.compare(before, after))
    say(f"model: {exported}")
    return state


def _steps(
    trainer: Trainer, boundary: Boundary, state: TrainState, ref_params: Params | None, first: int
) -> tuple[TrainState, int]:
    """The loop: every step is written down, then its boundary is crossed; also the last step."""
    config, step = trainer.config, first
    boundary.arrive(first, state)
    with progress_bar(first, config.max_steps, shown=config.log.progress) as bar:
        while not boundary.is_last(step):
            with boundary.rescuing(step, state):  # such as from a reward function
                done = run_step(trainer, state, ref_params, step, bar.set_postfix_str)
            state, scored, row, skipped = done
            step += 1
            row["skipped/in_a_row"] = boundary.count(skipped is not None)
            row["sampled_tokens"] = boundary.spend(row["completions/sampled_tokens"])
            _write(trainer, boundary, step, scored, row, skipped)
            bar.set_postfix_str(step_metrics.headline(row), refresh=False)
            bar.update()
            boundary.cross(step, state, skipped.why if skipped else {})
    boundary.save(step, state)
    if step < config.max_steps:
        say(
            f"ended at step {step} of {config.max_steps}: {boundary.sampled} tokens are sampled "
            f"(max_sampled_tokens is {config.max_sampled_tokens})"
        )
    return state, step


def _write(
    trainer: Trainer,
    boundary: Boundary,
    step: int,
    scored: Scored,
    row: dict[str, float],
    skipped: Skipped | None,
) -> None:
    log, last, writer = trainer.config.log, boundary.is_last(step), boundary.writer
    texts = step_metrics.completion_rows(trainer.problems, scored)
    if step % log.logging_steps == 0 or last:
        writer.metrics(step, row)
    if log.completion_steps and (step % log.completion_steps == 0 or last):
        writer.completions(step, texts)
    if skipped is not None:
        writer.skipped(step, skipped.why, skipped.arrays, texts)


def choose_state(
    trainer: Trainer, checkpoints: Checkpoints, state: TrainState, last: int
) -> tuple[TrainState, int]:
    """The state of the checkpoint that the selection split prefers, and its step; else the last."""
    chosen = trainer.selection.best()
    if chosen is None:
        return state, last
    say(trainer.selection.told())
    if chosen == last:
        return state, last
    checkpoints.wait()
    if chosen not in checkpoints.steps():
        say(f"its checkpoint is gone from {checkpoints.directory}: going on with step {last}")
        return state, last
    try:
        return checkpoints.restore(chosen, state), chosen
    except DamagedCheckpoint as error:
        say(f"note: {error}; going on with step {last}")
        return state, last


def compile_only(trainer: Trainer) -> None:
    """Compiles the programs of a step and says the memory that each needs.

    Parameters and batches are shapes only: a machine too small for the model can ask, too.
    """
    config, run, split = trainer.config, trainer.run, by_prompt(trainer.run.mesh)
    adapt = trainer.algorithm.adapt
    memory = () if adapt is None else jax.eval_shape(adapt.init)
    state = update.abstract_state(run.mesh, trainer.spec.optimizer, abstract_params(run), memory)
    ref_params = state.params if trainer.algorithm.loss.beta else None
    unroll = trainer.sampler.prepare.lower(state.params)
    sampler_params = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        unroll.out_info,
        unroll.compile().output_shardings,
    )
    indices = trainer.order(0)
    prompts = sampler.prompts_of(trainer.sampler, trainer.problems, indices)
    keys = jax.eval_shape(trainer.sampler.keys, config.seed, 0, indices)
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=split)
    shape = (*indices.shape, config.batch.num_generations)
    full = (*shape, config.sampling.max_completion_length)
    struct = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=split)  # noqa: E731
    floats, tokens = struct(full, np.float32), struct(full, np.int32)
    rollout = Rollout(prompts, tokens, struct(shape, np.int32), floats, struct(shape, bool))
    batch = TrainBatch(prompts, tokens, floats, floats, Credit(floats, floats))
    draw, spec = trainer.sampler.draw, trainer.spec
    programs = {
        "sample": draw.func.lower(*draw.args, sampler_params, prompts, keys, **draw.keywords),
        "signals": compute_signals.lower(
            run.model,
            state.params,
            ref_params,
            rollout,
            abstract_probe(trainer.asker, full) if trainer.asker else None,
            trainer.temperature,
            micro=spec.micro_batches * spec.mini_batches,
            estimator=config.information.estimator,
        ),
        "update": train_step.lower(state, batch, np.int32(0), trainer.temperature, spec=spec),
    }
    say_memory(programs)


def _main(config: TrainConfig, arguments: argparse.Namespace) -> None:
    train(config, dry_run=arguments.dry_run, topology=arguments.topology)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_cli(TrainConfig, _main, prog="iapo_jax.train", argv=argv)


if __name__ == "__main__":
    raise SystemExit(leave(main))
