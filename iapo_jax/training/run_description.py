"""A description of the run that is about to start: model, data, batch, method, devices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from iapo_jax.information import probes
from iapo_jax.model.decoder import param_shapes
from iapo_jax.pretrained.model_directory import Pretrained
from iapo_jax.sharding import is_described
from iapo_jax.training.checkpoint_selection import CRITERIA
from iapo_jax.training.setup import Setup


def describe_run(setup: Setup) -> str:
    """The lines that a run prints when it starts, with the numbers that follow from the config."""
    config, pretrained = setup.config, setup.loaded.pretrained
    lines = [
        f"model       {pretrained.directory or config.model.config}: {_describe_model(pretrained)}",
        f"stop tokens {_describe_stops(pretrained)}",
        f"data        {_describe_data(setup)}",
        *(f"            {note}" for note in setup.notes),
        *([f"selection   {describe_selection(setup)}"] if setup.selection.task else []),
        f"step        {_describe_step(setup)}",
        f"algorithm   {describe_algorithm(setup)}",
        *([f"probe       {probes.describe(setup.probe_maker)}"] if setup.probe_maker else []),
        f"devices     {_describe_devices(setup.loaded.mesh)}",
        f"output      {config.output_dir}",
    ]
    return "\n".join(lines)


def _describe_model(pretrained: Pretrained) -> str:
    shapes = jax.tree.leaves(param_shapes(pretrained.config))
    weights = sum(int(np.prod(x.shape)) for x in shapes)
    family, dtype = pretrained.hf_config["model_type"], pretrained.config.dtype
    return f"{family}, {weights:,} parameters, layers in {dtype}"


def _describe_stops(pretrained: Pretrained) -> str:
    names = pretrained.tokenizer.convert_ids_to_tokens(list(pretrained.stop_ids))
    stops = [f"{name} ({i})" for name, i in zip(names, pretrained.stop_ids, strict=True)]
    unused, size = int((~pretrained.allowed).sum()), pretrained.config.vocab_size
    note = f"; {unused:,} of the {size:,} ids have no token and are never sampled" if unused else ""
    return ", ".join(stops) + note


def _describe_data(setup: Setup) -> str:
    problems = setup.problems
    long = f", {problems.left_out} left out as too long" if problems.left_out else ""
    return f"{setup.config.data.dataset}: {_count(len(problems.tokens), 'prompt')}{long}"


def _describe_step(setup: Setup) -> str:
    batch, micro_batches = setup.config.batch, setup.spec.micro_batches
    updates = batch.mini_batches * batch.num_iterations
    prompts = batch.prompts_per_step // batch.mini_batches // micro_batches
    completions = _count(batch.num_generations, "completion")
    return (
        f"{_count(batch.prompts_per_step, 'prompt')} x {completions} "
        f"of up to {_count(setup.config.sampling.max_completion_length, 'token')}; "
        f"{_count(updates, 'update')}{', each' if updates > 1 else ''} in "
        f"{_count(micro_batches, 'micro-batch', 'micro-batches')} of {_count(prompts, 'prompt')}"
    )


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _describe_devices(mesh: Mesh) -> str:
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    if is_described(mesh):
        devices = _count(mesh.size, f"{mesh.devices.flat[0].device_kind} device")
        return f"{devices} (compile only: not on this machine), mesh {axes}"
    return f"{_count(jax.device_count(), f'{jax.devices()[0].platform} device')}, mesh {axes}"


def describe_selection(setup: Setup) -> str:
    """How the run chooses the checkpoint that it keeps, in one line."""
    section = setup.config.selection
    count = _count(len(setup.selection.task.problems.rows), "training problem")
    guard = ""
    if section.criterion == "ratio":
        guard = (
            f", among checkpoints whose accuracy is at most {section.tolerance} below the initial "
            "model's"
        )
    return (
        f"{count} held out; the run keeps the checkpoint with the best "
        f"{CRITERIA[section.criterion]} on them{guard}"
    )


def describe_algorithm(setup: Setup) -> str:
    """Name, source, pieces with their options, and loss, in one line."""
    algorithm, section = setup.algorithm, setup.config.algorithm
    parts = [f"{section.name} ({algorithm.source})" if algorithm.source else section.name]
    for field, piece in algorithm.pieces().items():
        name = getattr(getattr(piece, "func", piece), "__name__", type(piece).__name__)
        parts.append(f"{field} {_call(name, getattr(piece, 'keywords', {}))}")
    if algorithm.adapt is not None:
        parts.append(f"adapt {section.adapt or 'as the algorithm defines it'}")
    if algorithm.dynamic_sampling:
        parts.append(f"dynamic sampling in up to {_count(section.max_rounds, 'round')}")
    loss = algorithm.loss._asdict()
    parts.append(f"loss {_call(loss.pop('loss_type'), loss)}")
    return "; ".join(parts)


def _call(name: str, options: Mapping[str, Any]) -> str:
    """`name(option=value, ...)`, or the name alone."""
    listed = ", ".join(f"{option}={value!r}" for option, value in options.items())
    return f"{name}({listed})" if listed else name
