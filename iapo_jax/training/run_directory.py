"""The directory of a run: created, locked, resumed from, and completed by the exported model."""

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
def run_directory(config: Any) -> Iterator[Checkpoints]:
    """Makes the run directory, holds it for this run alone, and opens its checkpoints.

    SIGTERM and SIGINT are handled meanwhile (`interruption`).

    Raises:
      UserError: if nothing can be written there, another run holds it, or `config.resume` asks for
        what it lacks; before weights are loaded.
      RunError: if it can no longer be written.
    """
    output_dir = Path(config.output_dir)
    checkpoints = Checkpoints(output_dir, config.log.save_total_limit, writes=True)
    with contextlib.ExitStack() as stack:
        check_writable(checkpoints.directory, "the directory of checkpoints")
        _step_to_resume(Checkpoints(output_dir), config)  # before anything is made
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
            say("note: the disk of output_dir has no locks: a second run here would not be noticed")
    return ()


def _step_to_resume(checkpoints: Checkpoints, config: Any) -> int | None:
    step = step_to_resume(checkpoints, config.resume)
    if step is not None and step > config.max_steps:
        raise UserError(
            f"max_steps is {config.max_steps}, but the checkpoint to resume from is of step {step} "
            f"({checkpoints.directory}): expected at least {step}, or another output_dir"
        )
    return step


def resume_state(
    checkpoints: Checkpoints, config: Any, like: TrainState
) -> tuple[TrainState | None, int, dict[str, Any]]:
    """The state to go on from, its step, and what was noted with it; (None, 0, {}) at the start.

    With resume=auto a damaged checkpoint is moved aside, and the newest whole one is taken.

    Args:
      like: shapes with shardings.

    Raises:
      UserError: if what is there is damaged, or does not fit; if a checkpoint would not fit on the
        disk.
    """
    step = _step_to_resume(checkpoints, config)
    on_process_zero(lambda: _check_space(checkpoints, config, like), ())
    if step is None:
        return None, 0, {}
    on_process_zero(
        lambda: _compare_configs(checkpoints.directory.parent / "config.yaml", config), ()
    )
    asked = checkpoints.steps()[::-1] if config.resume == "auto" else [step]
    found, state, damaged = checkpoints.restore_whole(asked, lambda _: like)
    for error, bad in zip(damaged, asked, strict=False):
        say(f"note: {error}; moved to {checkpoints.set_aside(bad)}")
    say(f"resuming from step {found} of {checkpoints.directory}")
    checkpoints.forget_after(found)
    return state, found, checkpoints.notes(found)


def _compare_configs(path: Path, config: Any) -> tuple:
    """Says in what the config differs from the one by which the run was begun.

    Raises:
      UserError: if that was another command.
    """
    if not path.is_file():
        return ()
    before = load_run_config(path)
    if type(before) is not type(config):
        kinds = {TrainConfig: "iapo_jax.train", SftConfig: "iapo_jax.sft"}
        raise UserError(
            f"output_dir {config.output_dir!r} holds a run of {kinds[type(before)]}; expected one "
            f"of {kinds[type(config)]}, or another output_dir"
        )
    there, here = (_flat(dataclasses.asdict(one)) for one in (before, config))
    free = ("mesh.", "log.", "resume", "max_steps", "max_sampled_tokens", "output_dir")
    names = sorted(
        n for n in there | here if there.get(n) != here.get(n) and not n.startswith(free)
    )
    if names:
        say(f"note: the run was begun with another {', '.join(names)}")
    return ()


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


def _check_space(checkpoints: Checkpoints, config: Any, like: TrainState) -> tuple:
    """Whether the disk holds one more checkpoint, and a word where it will not hold all."""
    one = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like))
    usage = shutil.disk_usage(checkpoints.directory.parent)
    gib = lambda size: f"{size / 2**30:.3g} GiB"  # noqa: E731
    if usage.total and usage.free < one:
        raise UserError(
            f"output_dir {config.output_dir!r} is on a disk with {gib(usage.free)} free, but one "
            f"checkpoint takes {gib(one)}"
        )
    missing = max(config.log.save_total_limit + 1 - len(checkpoints.steps()), 1)
    if usage.total and usage.free < missing * one:
        say(
            f"note: output_dir has {gib(usage.free)} free; the checkpoints that are kept "
            f"(log.save_total_limit) and a new one may take {gib(missing * one)} more"
        )
    return ()


def prepare_directory(config: Any) -> None:
    """config.yaml and env.json of the run directory."""
    if not is_writer():
        return
    output_dir = Path(config.output_dir)
    write_atomically(output_dir / "config.yaml", to_yaml(config))
    write_environment(output_dir)


def export_final(loaded: LoadedModel, params: Params, output_dir: Path) -> Path:
    """Writes `OUTPUT_DIR/hf`, which transformers opens as it is."""
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
