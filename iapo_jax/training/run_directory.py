"""Creates and locks the directory of a run, resumes from it, and exports the final model."""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from iapo_jax.config.checks import check_writable
from iapo_jax.config.loading import load_run_config, to_yaml
from iapo_jax.config.sft import SftConfig
from iapo_jax.config.train import TrainConfig
from iapo_jax.errors import UserError
from iapo_jax.pretrained import model_directory as pretrained
from iapo_jax.pretrained.loaded_model import LoadedModel
from iapo_jax.runtime.console import is_writer, say, write_environment
from iapo_jax.runtime.files import write_atomically, writing
from iapo_jax.runtime.interruption import handling_signals
from iapo_jax.runtime.locks import file_lock
from iapo_jax.runtime.processes import on_process_zero
from iapo_jax.sharding import fetch
from iapo_jax.training.checkpoint import Checkpoints, step_to_resume
from iapo_jax.training.optimizer import TrainState
from iapo_jax.types import Params


@contextlib.contextmanager
def run_directory(config: TrainConfig | SftConfig) -> Iterator[Checkpoints]:
    """Creates and locks the run directory, and opens its checkpoints.

    Inside the context SIGTERM and SIGINT are handled (`runtime.interruption`).

    Raises:
      UserError: before weights are loaded, if the directory cannot be written, another run holds
        it, or it lacks the checkpoint that `config.resume` names.
      RunError: if the directory can no longer be written.
    """
    output_dir = Path(config.output_dir)
    checkpoints = Checkpoints(output_dir, config.log.save_total_limit, writes=True)
    with contextlib.ExitStack() as stack:
        check_writable(checkpoints.directory, "the directory of checkpoints")
        _step_to_resume(Checkpoints(output_dir), config)  # before anything is created
        on_process_zero(lambda: _make_directory(output_dir, stack), ())
        stack.enter_context(handling_signals())
        stack.callback(checkpoints.close)
        with writing(output_dir):
            yield checkpoints


def _make_directory(output_dir: Path, stack: contextlib.ExitStack) -> tuple:
    with writing(f"output_dir {str(output_dir)!r}", UserError):
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
        lock = output_dir / ".lock"
        if not stack.enter_context(file_lock(lock, instead="another output_dir", sign=True)):
            say(
                "note: the file system of output_dir does not support locks, so a second run in "
                "the same directory will not be detected"
            )
    return ()


def _step_to_resume(checkpoints: Checkpoints, config: TrainConfig | SftConfig) -> int | None:
    step = step_to_resume(checkpoints, config.resume)
    if step is not None and step > config.max_steps:
        raise UserError(
            f"max_steps is {config.max_steps}, but the run would resume from step {step} "
            f"({checkpoints.directory}); expected at least {step}, or another output_dir"
        )
    return step


def resume_state(
    checkpoints: Checkpoints, config: TrainConfig | SftConfig, like: TrainState
) -> tuple[TrainState | None, int, dict[str, Any]]:
    """The state to resume from, its step and its notes; (None, 0, {}) for a new run.

    With resume=auto, damaged checkpoints are moved aside and the newest intact one is used.

    Args:
      like: shapes with shardings.

    Raises:
      UserError: if the checkpoint is damaged or does not fit the config, or if the disk has no room
        for a new one.
    """
    step = _step_to_resume(checkpoints, config)
    on_process_zero(lambda: _check_space(checkpoints, config, like), ())
    if step is None:
        return None, 0, {}
    on_process_zero(
        lambda: _compare_configs(checkpoints.directory.parent / "config.yaml", config), ()
    )
    candidates = checkpoints.steps()[::-1] if config.resume == "auto" else [step]
    restored, state, damaged = checkpoints.restore_undamaged(candidates, lambda _: like)
    for error, bad in zip(damaged, candidates, strict=False):
        say(f"note: {error}; moved to {checkpoints.set_aside(bad)}")
    say(f"resuming from step {restored} of {checkpoints.directory}")
    checkpoints.forget_after(restored)
    return state, restored, checkpoints.notes(restored)


def _compare_configs(path: Path, config: TrainConfig | SftConfig) -> tuple:
    """Reports the fields in which the config differs from that of the last start of the run.

    Raises:
      UserError: if a different command started the run.
    """
    if not path.is_file():
        return ()
    before = load_run_config(path)
    if type(before) is not type(config):
        kinds = {TrainConfig: "iapo_jax.train", SftConfig: "iapo_jax.sft"}
        raise UserError(
            f"output_dir {config.output_dir!r} contains a run of {kinds[type(before)]}; expected a "
            f"run of {kinds[type(config)]}, or another output_dir"
        )
    old, new = _flat(dataclasses.asdict(before)), _flat(dataclasses.asdict(config))
    free = ("mesh.", "log.", "resume", "max_steps", "max_sampled_tokens", "output_dir")
    names = sorted(n for n in old | new if old.get(n) != new.get(n) and not n.startswith(free))
    if names:
        changes = [f"{n} ({old.get(n)!r:.60} -> {new.get(n)!r:.60})" for n in names]
        say(f"note: these fields have changed since the run was last started: {', '.join(changes)}")
    return ()


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


def _check_space(
    checkpoints: Checkpoints, config: TrainConfig | SftConfig, like: TrainState
) -> tuple:
    """Requires disk space for a checkpoint, and notes if those to be kept will not all fit."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like))
    usage = shutil.disk_usage(checkpoints.directory.parent)
    if usage.total and usage.free < size:
        raise UserError(
            f"output_dir {config.output_dir!r} is on a disk with {_gib(usage.free)} free, but a "
            f"checkpoint takes {_gib(size)}; expected more space, or another output_dir"
        )
    missing = max(config.log.save_total_limit + 1 - len(checkpoints.steps()), 1)
    if usage.total and usage.free < missing * size:
        say(
            f"note: output_dir has {_gib(usage.free)} free, but the checkpoints that are kept "
            f"(log.save_total_limit) and a new one may take {_gib(missing * size)} more"
        )
    return ()


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def prepare_directory(config: TrainConfig | SftConfig) -> None:
    """Writes config.yaml and env.json."""
    if not is_writer():
        return
    output_dir = Path(config.output_dir)
    write_atomically(output_dir / "config.yaml", to_yaml(config))
    write_environment(output_dir)


def export_final(loaded: LoadedModel, params: Params, output_dir: Path) -> Path:
    """Writes `OUTPUT_DIR/hf`, which transformers can open."""
    directory = output_dir / "hf"
    host = fetch(params)
    if is_writer():
        with writing(directory):
            pretrained.save_pretrained(
                host,
                loaded.pretrained.hf_config,
                loaded.pretrained.tokenizer,
                directory,
                generation_config=loaded.pretrained.generation_config,
            )
    return directory
