"""The sampler of a run: `model.sampling.sample` with its options and shardings bound."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from iapo_jax.config.sections import GenerationSection
from iapo_jax.data import problems as data
from iapo_jax.data.problems import Problems
from iapo_jax.model.decoder import param_shapes
from iapo_jax.model.sampling import prompt_keys, sample
from iapo_jax.pretrained.loaded_model import LoadedModel
from iapo_jax.sharding import AXES, by_prompt, fetch, param_shardings, put, replicated
from iapo_jax.types import Params, Prompts, Rollout


class Sampler(NamedTuple):
    """`model.sampling.sample` with everything but parameters, prompts and keys bound."""

    draw: Callable[..., Rollout]
    prepare: Callable[[Params], Params]
    keys: Callable[[int, int, np.ndarray], jax.Array]
    prompt_width: int
    placement: NamedSharding  # of prompts


def make_sampler(
    loaded: LoadedModel,
    problems: Problems,
    *,
    num_generations: int,
    max_length: int,
    sampling: GenerationSection,
) -> Sampler:
    """A sampler for these problems with the temperature, top_k and top_p of a section."""
    opened = loaded.pretrained
    draw = partial(
        sample,
        loaded.model,
        num_generations=num_generations,
        max_length=max_length,
        stop_ids=put(np.asarray(opened.stop_ids, np.int32), replicated(loaded.mesh)),
        allowed=put(opened.allowed, replicated(loaded.mesh)),
        temperature=put(np.float32(sampling.temperature), replicated(loaded.mesh)),
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
    longest = max(map(len, problems.tokens))
    keys = jax.jit(prompt_keys, out_shardings=by_prompt(loaded.mesh))
    width = -(-longest // 16) * 16
    return Sampler(
        draw=draw,
        prepare=_unroll(loaded, sampling.gather_weights),
        keys=keys,
        prompt_width=width,
        placement=by_prompt(loaded.mesh),
    )


def _unroll(loaded: LoadedModel, gather: bool) -> Callable[[Params], Params]:
    """`model.unroll`, jitted. With `gather` its output is sharded over the tensor axis alone."""
    shapes = jax.eval_shape(loaded.model.unroll, param_shapes(loaded.pretrained.config))
    axes = ("tensor",) if gather else AXES
    return jax.jit(
        loaded.model.unroll, out_shardings=param_shardings(loaded.mesh, shapes, axes=axes)
    )


def prompts_of(sampler: Sampler, problems: Problems, indices: Sequence[int]) -> Prompts:
    """The prompts of these problems on the mesh, padded to the longest of the dataset."""
    rows = [problems.tokens[i] for i in indices]
    prompts = Prompts(*data.pad_rows(rows, sampler.prompt_width))
    return put(prompts, sampler.placement)


def draw_rollout(
    sampler: Sampler,
    params: Params,
    problems: Problems,
    indices: Sequence[int],
    seed: int,
    step: int,
    round: int = 0,
) -> Rollout:
    """Completions of these problems, on the host; a function of its arguments alone."""
    prompts = prompts_of(sampler, problems, indices)
    rows = len(problems.tokens)
    keys = sampler.keys(seed, step, distinct_rows(indices, rows, first=round * len(indices) * rows))
    return fetch(sampler.draw(sampler.prepare(params), prompts, keys))


def distinct_rows(indices: Sequence[int], rows: int, first: int = 0) -> np.ndarray:
    """Numbers [P] that random keys are made from, distinct even where a batch repeats a row.

    A row that occurs twice in a step would otherwise get the same completions twice. The numbers
    start at `first` and wrap around at 2^31.
    """
    seen: dict[int, int] = {}
    numbers = []
    for index in map(int, indices):
        numbers.append((first + index + rows * seen.get(index, 0)) % 2**31)
        seen[index] = seen.get(index, 0) + 1
    return np.asarray(numbers, np.int32)
