"""What every run begins and ends with: devices, model, run directory, final export."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from iapo_jax import pretrained, weights
from iapo_jax.checkpoint import Checkpoints, step_to_resume
from iapo_jax.checks import check_writable
from iapo_jax.config import MeshSection, to_yaml
from iapo_jax.errors import UserError
from iapo_jax.metrics import is_writer, say, use_compilation_cache, write_environment
from iapo_jax.model import init_params, make_model
from iapo_jax.pretrained import Pretrained
from iapo_jax.sharding import fetch, make_mesh, param_shardings
from iapo_jax.types import Model, Params
from iapo_jax.update import TrainState


class Run(NamedTuple):
    """A run's fixed surroundings."""

    mesh: Mesh
    pretrained: Pretrained
    model: Model
    output_dir: Path


def open_run(config: Any) -> Run:
    """Reads the model directory and builds the mesh; touches nothing on disk yet."""
    if config.mesh.distributed:
        jax.distributed.initialize()
    use_compilation_cache(config.log.compilation_cache)
    mesh = open_mesh(config.mesh)
    opened = pretrained.open_pretrained(config.model)
    return Run(mesh, opened, make_model(opened.config, mesh), Path(config.output_dir))


def open_mesh(section: MeshSection) -> Mesh:
    """The mesh of a config.

    Raises:
      UserError: if it does not fit the devices.
    """
    try:
        return make_mesh(section.data, section.fsdp, section.tensor)
    except ValueError as error:
        raise UserError(str(error)) from None


def abstract_params(run: Run) -> Params:
    """Shapes of the parameters; of a directory, its tensors are checked against them."""
    if run.pretrained.directory is not None:
        weights.check_tensors(run.pretrained.directory, run.pretrained.config)
    return jax.eval_shape(lambda: init_params(run.pretrained.config, jax.random.key(0)))


def initial_params(run: Run, seed: int) -> Params:
    """The directory's weights, or random ones for a new model, placed on the mesh."""
    build = lambda: init_params(run.pretrained.config, jax.random.key(seed))  # noqa: E731
    places = param_shardings(run.mesh, jax.eval_shape(build))
    if run.pretrained.directory is None:
        return jax.jit(build, out_shardings=places)()
    return weights.load_params(run.pretrained.directory, run.pretrained.config, places)


def open_checkpoints(config: Any, run: Run) -> tuple[Checkpoints, int | None]:
    """The run's checkpoints and the step to go on from, if any; before weights are loaded.

    Makes the run directory.

    Raises:
      UserError: if there is nothing to do after that step, or nothing can be written.
    """
    checkpoints = Checkpoints(run.output_dir, config.log.save_total_limit)
    step = step_to_resume(checkpoints, config.resume)
    if step is not None and step > config.max_steps:
        raise UserError(
            f"max_steps is {config.max_steps}, but the checkpoint to resume from is of step {step} "
            f"({checkpoints.directory}): expected at least {step}, or another output_dir"
        )
    check_writable(checkpoints.directory, "the directory of checkpoints")
    try:
        if is_writer():
            run.output_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=run.output_dir):
                pass
    except OSError as error:
        raise UserError(f"output_dir {str(run.output_dir)!r} cannot be written: {error}") from None
    return checkpoints, step


def prepare_directory(run: Run, config: Any) -> None:
    """config.yaml and env.json of the run directory."""
    if not is_writer():
        return
    try:
        (run.output_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise UserError(f"output_dir {str(run.output_dir)!r} cannot be written: {error}") from None
    write_environment(run.output_dir)


def resume_state(checkpoints: Checkpoints, step: int | None, state: TrainState) -> TrainState:
    """The state of that step, or `state` where the run begins."""
    if step is None:
        return state
    say(f"resuming from step {step} of {checkpoints.directory}")
    state = checkpoints.restore(step, state)
    checkpoints.forget_after(step)
    return state


def leave(code: int) -> int:
    """The exit code; one process of several ends here, at once.

    After a clean shutdown of jax.distributed the interpreter's teardown hangs more often than not
    (seen with jax 0.10 to 0.12).
    """
    if jax.process_count() > 1:
        jax.distributed.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def export_final(run: Run, params: Params) -> Path:
    """Writes `OUTPUT_DIR/hf`, which transformers opens as it is."""
    directory = run.output_dir / "hf"
    host = fetch(params)
    if is_writer():
        pretrained.save_pretrained(
            host,
            run.pretrained.hf_config,
            run.pretrained.tokenizer,
            directory,
            generation_config=run.pretrained.generation_config,
        )
    return directory
