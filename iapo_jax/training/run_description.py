"""What is about to run, in words: model, data, batch, method, devices."""

import jax
import numpy as np
from jax.sharding import Mesh

from iapo_jax.information import probes
from iapo_jax.model.decoder import param_shapes
from iapo_jax.sharding import is_described
from iapo_jax.training.setup import Setup


def describe_run(setup: Setup) -> str:
    """What is about to run, with every derived number."""
    config, opened, spec = setup.config, setup.loaded.pretrained, setup.spec
    batch, c = config.batch, opened.config
    weights = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(param_shapes(c)))
    stops = {i: opened.tokenizer.convert_ids_to_tokens(i) for i in opened.stop_ids}
    padded = int((~opened.allowed).sum())
    lines = [
        f"model       {opened.directory or config.model.config}: {opened.hf_config['model_type']}, "
        f"{weights:,} parameters, {c.dtype} layers",
        f"stops at    {stops}; {padded} of {c.vocab_size} ids have no token and are never drawn",
        f"data        {config.data.dataset}: {len(setup.problems.tokens)} prompts"
        + (f", {setup.problems.left_out} too long" if setup.problems.left_out else ""),
        *(f"            {note}" for note in setup.notes),
        *([f"selection   {describe_selection(setup)}"] if setup.selection.task else []),
        f"step        {batch.prompts_per_step} prompts x {batch.num_generations} completions of up "
        f"to {config.sampling.max_completion_length} tokens; "
        f"{batch.mini_batches * batch.num_iterations} update(s) of {spec.micro_batches} "
        f"micro-batch(es) of {batch.prompts_per_step // batch.mini_batches // spec.micro_batches} "
        "prompts",
        f"algorithm   {describe_algorithm(setup)}",
        *([f"asks        {probes.describe(setup.probe_maker)}"] if setup.probe_maker else []),
        f"devices     {_describe_devices(setup.loaded.mesh)}",
        f"output      {config.output_dir}",
    ]
    return "\n".join(lines)


def _describe_devices(mesh: Mesh) -> str:
    if is_described(mesh):
        return f"{dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}, not here"
    return f"{dict(mesh.shape)} of {jax.device_count()} {jax.devices()[0].platform}"


def describe_selection(setup: Setup) -> str:
    """How the checkpoint that is kept is chosen, in one line."""
    section, count = setup.config.selection, len(setup.selection.task.problems.rows)
    guard = f", accuracy at most {section.tolerance} below the start's"
    return (
        f"{count} of the training problems are held out; the checkpoint with the best "
        f"{section.criterion}{guard * (section.criterion == 'ratio')} is kept"
    )


def describe_algorithm(setup: Setup) -> str:
    """Name, source, pieces with what is bound to them, and loss, in one line."""
    algorithm, section = setup.algorithm, setup.config.algorithm
    told = [f"{section.name} ({algorithm.source})" if algorithm.source else section.name]
    for field, piece in algorithm.pieces().items():
        bound = getattr(piece, "keywords", {})
        name = getattr(getattr(piece, "func", piece), "__name__", type(piece).__name__)
        told.append(f"{field} {name}" + (f" {bound}" if bound else ""))
    if algorithm.adapt is not None:
        told.append(f"adapt {section.adapt or 'its own'}")
    if algorithm.dynamic_sampling:
        told.append(f"dynamic sampling, up to {section.max_rounds} rounds")
    told.append(f"loss {algorithm.loss._asdict()}")
    return "; ".join(told)
