"""A model on its mesh: its directory read, its weights placed."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from iapo_jax.config.schema import MeshSection
from iapo_jax.errors import UserError
from iapo_jax.model.decoder import init_params, make_model, param_shapes
from iapo_jax.pretrained import directory, weights
from iapo_jax.pretrained.directory import Pretrained
from iapo_jax.runtime.console import use_compilation_cache
from iapo_jax.runtime.processes import join
from iapo_jax.sharding import described_devices, make_mesh, param_shardings
from iapo_jax.types import Model, Params


class Run(NamedTuple):
    """A run's fixed surroundings."""

    mesh: Mesh
    pretrained: Pretrained
    model: Model
    output_dir: Path


def open_run(config: Any, topology: str | None = None) -> Run:
    """Reads the model directory and builds the mesh; touches nothing on disk yet.

    Args:
      topology: chips to compile for, in place of the devices that are here.
    """
    join(config.mesh)
    if topology is None:  # JAX cannot read back what was compiled for devices that are not here
        use_compilation_cache(config.log.compilation_cache)
    mesh = open_mesh(config.mesh, topology)
    opened = directory.open_pretrained(config.model)
    return Run(mesh, opened, make_model(opened.config, mesh), Path(config.output_dir))


def open_mesh(section: MeshSection, topology: str | None = None) -> Mesh:
    """The mesh of a config.

    Raises:
      UserError: if it does not fit the devices, or the topology cannot be described.
    """
    try:
        devices = None if topology is None else described_devices(topology)
        return make_mesh(section.data, section.fsdp, section.tensor, devices=devices)
    except ValueError as error:
        raise UserError(str(error)) from None


def abstract_params(run: Run) -> Params:
    """Shapes of the parameters; of a directory, its tensors are checked against them."""
    if run.pretrained.directory is not None:
        weights.check_tensors(run.pretrained.directory, run.pretrained.config)
    return param_shapes(run.pretrained.config)


def initial_params(run: Run, seed: int) -> Params:
    """The directory's weights, or random ones for a new model, placed on the mesh."""
    config = run.pretrained.config
    places = param_shardings(run.mesh, param_shapes(config))
    if run.pretrained.directory is None:
        init = partial(init_params, config)
        return jax.jit(init, out_shardings=places)(jax.random.key(seed))
    return weights.load_params(run.pretrained.directory, config, places)
