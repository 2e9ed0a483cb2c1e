"""Opens a model from a model directory, a hub name, a run directory or a checkpoint."""

import contextlib
import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from iapo_jax.config.loading import load_run_config
from iapo_jax.config.sections import ModelSection
from iapo_jax.config.sft import SftConfig
from iapo_jax.config.train import TrainConfig
from iapo_jax.data import loading, prompts
from iapo_jax.errors import UserError
from iapo_jax.pretrained import model_directory, weights
from iapo_jax.pretrained.loaded_model import LoadedModel, abstract_params, load_model, prepare_model
from iapo_jax.pretrained.model_directory import Pretrained
from iapo_jax.runtime.console import say
from iapo_jax.runtime.files import read_json
from iapo_jax.sharding import replicated
from iapo_jax.training import optimizer as update
from iapo_jax.training.checkpoint import Checkpoints, step_to_resume
from iapo_jax.training.checkpoint_selection import chosen_step


def run_config(run_dir: Path) -> TrainConfig | SftConfig:
    """The config of a run directory.

    Raises:
      UserError: if it is not a run directory.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run directory: it has no config.yaml")
    return load_run_config(path)


def run_directory(text: str) -> tuple[Path, str] | None:
    """(run directory, step) of `RUN_DIR` or `RUN_DIR/checkpoints/N`; None for anything else."""
    path = Path(text).expanduser()
    if (path / "config.json").is_file():  # a model directory, even inside a run directory
        return None
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        return path.parent.parent, path.name
    if (path / "config.yaml").is_file():
        return path, "auto"
    return None


def training_run(text: str) -> Path | None:
    """The run directory that a model comes from; None if its path does not tell."""
    found = run_directory(text)
    parent = Path(text).expanduser().absolute().parent
    if found is None and (parent / "config.yaml").is_file():  # RUN_DIR/hf
        return parent
    return None if found is None else found[0]


def training_questions(run_dir: Path) -> list[str | list[dict]]:
    """The questions of a run's training rows, read again from where the run was started.

    Raises:
      UserError: if the data can no longer be read.
    """
    config, environment = run_config(run_dir), run_dir / "env.json"
    start = read_json(environment).get("directory") if environment.is_file() else None
    with contextlib.chdir(start if isinstance(start, str) and Path(start).is_dir() else "."):
        if isinstance(config, TrainConfig):
            return [row.question for row in loading.load_training(config).rows]
        rows = loading.load_rows(config.data)
        return [prompts.read_question(row, f"row {n}") for n, row in enumerate(rows, 1)]


def _model_section(
    run_dir: Path, config: TrainConfig | SftConfig, model: ModelSection | None
) -> ModelSection:
    """The section that opens a run's initial model or, if that is not local, the run's export."""
    section = config.model
    if model is not None:
        section = dataclasses.replace(section, dtype=model.dtype, attention=model.attention)
    exported = run_dir / "hf"
    if not Path(section.path).is_dir() and (exported / "config.json").is_file():
        section = dataclasses.replace(section, path=str(exported), config=None, tokenizer=None)
    return section


def open_source(text: str, model: ModelSection) -> Pretrained:
    """The model that `load_source` would open, without its weights.

    Raises:
      UserError: as `load_source`, except for mistakes that only loading the weights reveals.
    """
    place = run_directory(text)
    if place is not None and (place[0] / "checkpoints").is_dir():
        run_dir, step = place
        config = run_config(run_dir)
        checkpoints = Checkpoints(run_dir)
        if step_to_resume(checkpoints, step, option="the step of --model") is None:
            raise UserError(f"{checkpoints.directory} has no checkpoints")
        checkpoints.close()
        return model_directory.open_pretrained(_model_section(run_dir, config, model))
    path = text if place is None else str(place[0] / "hf")
    opened = model_directory.open_pretrained(dataclasses.replace(model, path=path, config=None))
    weights.check_tensors(opened.directory, opened.config)
    return opened


def load_checkpoint(
    run_dir: Path,
    step: str = "auto",
    *,
    model: ModelSection | None = None,
    mesh: Mesh,
    option: str = "--step",
) -> LoadedModel:
    """The model of a run's checkpoint.

    Args:
      step: a number, or auto for the step that the run chose, if any, otherwise the newest.
      model: overrides the dtype and the attention of the run.

    Raises:
      UserError: if `run_dir` is not a run directory, or has no such checkpoint.
    """
    config = run_config(run_dir)
    section = _model_section(run_dir, config, model)
    loaded = prepare_model(section, mesh)
    checkpoints = Checkpoints(run_dir)
    chosen = chosen_step(run_dir) if step == "auto" else None
    wanted = str(chosen) if chosen in checkpoints.steps() else step
    number = step_to_resume(checkpoints, wanted, option=option)
    if number is None:
        raise UserError(f"{checkpoints.directory} has no checkpoints")
    if chosen is not None and wanted == step:
        say(
            f"note: checkpoint {chosen}, which the run chose, no longer exists in "
            f"{checkpoints.directory}; using step {number} instead"
        )
    steps = [number]
    if step == "auto":
        steps += [other for other in checkpoints.steps()[::-1] if other != number]
    optimizer = update.make_optimizer(config.optimizer, 1)
    shapes, everywhere = abstract_params(loaded), replicated(mesh)

    def like(step: int) -> update.TrainState:
        adaptation = checkpoints.saved_adaptation(step, everywhere)
        return update.abstract_state(mesh, optimizer, shapes, adaptation)

    number, state, damaged = checkpoints.restore_undamaged(steps, like)
    for error in damaged:
        say(f"note: {error}; using step {number} instead")
    checkpoints.close()
    return loaded._replace(params=state.params, step=number)


def load_source(text: str, model: ModelSection, mesh: Mesh) -> LoadedModel:
    """The model of a model directory, a run directory, RUN_DIR/checkpoints/N or a hub name.

    For a run directory without checkpoints, the exported model is opened.

    Raises:
      UserError: if `text` is none of these.
    """
    place = run_directory(text)
    if place is not None and (place[0] / "checkpoints").is_dir():
        return load_checkpoint(*place, model=model, mesh=mesh, option="the step of --model")
    if place is not None:
        text = str(place[0] / "hf")
    return load_model(dataclasses.replace(model, path=text, config=None), mesh)
