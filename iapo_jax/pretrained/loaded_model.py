"""Reads a model and places its weights on the mesh."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from iapo_jax.config.sections import MeshSection, ModelSection
from iapo_jax.errors import UserError
from iapo_jax.model.decoder import init_params, make_model, param_shapes
from iapo_jax.pretrained import model_directory, weights
from iapo_jax.pretrained.model_directory import Pretrained
from iapo_jax.pretrained.tokenization import Tokenizer
from iapo_jax.runtime.console import use_compilation_cache
from iapo_jax.runtime.processes import join
from iapo_jax.sharding import described_devices, make_mesh, param_shardings
from iapo_jax.types import Model, Params


def load(
    path: str | Path, *, mesh: Mesh | None = None, dtype: str = "float32"
) -> tuple[Model, Params, Tokenizer]:
    """A model, its parameters and its tokenizer, from a Hugging Face directory or the hub.

    Never runs code from the directory.

    Args:
      path: a directory, or a hub name such as Qwen/Qwen2.5-1.5B-Instruct (downloaded unless
        cached).
      mesh: over which the parameters are split (`iapo_jax.make_mesh`); one device by default.
      dtype: of the layers' arithmetic, float32 or bfloat16; parameters, norms, softmax and head are
        float32.

    Returns:
      (model, params, tokenizer): pure functions, a tree of arrays, and a transformers tokenizer.

    Raises:
      UserError: one sentence, if the directory is missing or incomplete, or not a supported model.

    >>> model, params, tokenizer = load("experiments/arithmetic/model")
    >>> tokenizer.decode(tokenizer.encode("1+2"))
    '1+2'
    """
    section = ModelSection(path=str(path), dtype=dtype)
    if mesh is None:
        opened = model_directory.open_pretrained(section)
        params = weights.load_params(opened.directory, opened.config)
        return make_model(opened.config), params, opened.tokenizer
    found = load_model(section, mesh)
    return found.model, found.params, found.pretrained.tokenizer


class LoadedModel(NamedTuple):
    """A model on its mesh.

    Commands check everything else before they read weights; until then `params` is None.
    """

    mesh: Mesh
    pretrained: Pretrained  # config, tokenizer and stop tokens
    model: Model  # pure functions of the parameters
    params: Params | None = None
    step: int | None = None  # of the checkpoint that the parameters were read from


def start_mesh(
    section: MeshSection, *, compilation_cache: str = "", topology: str | None = None
) -> Mesh:
    """Joins the processes of a distributed run and builds the mesh of a config.

    Args:
      compilation_cache: directory in which compiled programs are kept; "" for none.
      topology: chips to compile for, in place of the devices of this machine.

    Raises:
      UserError: as `open_mesh`.
    """
    join(section)
    if topology is None:  # JAX cannot read back what was compiled for devices that are absent
        use_compilation_cache(compilation_cache)
    return open_mesh(section, topology)


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


def prepare_model(section: ModelSection, mesh: Mesh) -> LoadedModel:
    """The model of a config without its weights: only config and tokenizer are read.

    Raises:
      UserError: if the directory is not a complete model directory.
    """
    opened = model_directory.open_pretrained(section)
    return LoadedModel(mesh=mesh, pretrained=opened, model=make_model(opened.config, mesh))


def load_model(section: ModelSection, mesh: Mesh, *, seed: int = 0) -> LoadedModel:
    """The model of a config with its weights on the mesh.

    Args:
      seed: of the random weights of a new model (`model.config`).

    Raises:
      UserError: as `prepare_model`, or if a tensor is missing or has another shape.
    """
    loaded = prepare_model(section, mesh)
    return loaded._replace(params=initial_params(loaded, seed))


def abstract_params(loaded: LoadedModel) -> Params:
    """Shapes of the parameters; the tensors of a model directory are checked against them.

    Raises:
      UserError: if a tensor is missing or has another shape.
    """
    opened = loaded.pretrained
    if opened.directory is not None:
        weights.check_tensors(opened.directory, opened.config)
    return param_shapes(opened.config)


def initial_params(loaded: LoadedModel, seed: int) -> Params:
    """The weights of the model directory on the mesh; random ones for a new model."""
    opened = loaded.pretrained
    places = param_shardings(loaded.mesh, param_shapes(opened.config))
    if opened.directory is None:
        init = partial(init_params, opened.config)
        return jax.jit(init, out_shardings=places)(jax.random.key(seed))
    return weights.load_params(opened.directory, opened.config, places)
