"""`sampling.sample` with everything bound but parameters, prompts and keys."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from iapo_jax.data import problems as data
from iapo_jax.data.problems import Problems
from iapo_jax.model.decoder import param_shapes
from iapo_jax.model.sampling import prompt_keys, sample
from iapo_jax.pretrained.loaded import Run
from iapo_jax.sharding import AXES, by_prompt, fetch, param_shardings, put, replicated
from iapo_jax.types import Params, Prompts, Rollout


class Sampler(NamedTuple):
    """`sampling.sample` with everything bound but parameters, prompts and keys."""

    run: Run
    draw: Callable[..., Rollout]
    prepare: Callable[[Params], Params]
    keys: Callable[[int, int, np.ndarray], jax.Array]
    prompt_width: int


def make_sampler(
    run: Run, problems: Problems, *, num_generations: int, max_length: int, sampling: Any
) -> Sampler:
    """A sampler for these problems, as a `config.SamplingSection` or `EvalSection` asks."""
    opened = run.pretrained
    draw = partial(
        sample,
        run.model,
        num_generations=num_generations,
        max_length=max_length,
        stop_ids=put(np.asarray(opened.stop_ids, np.int32), replicated(run.mesh)),
        allowed=put(opened.allowed, replicated(run.mesh)),
        temperature=put(np.float32(sampling.temperature), replicated(run.mesh)),
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
    longest = max(map(len, problems.tokens))
    keys = jax.jit(prompt_keys, out_shardings=by_prompt(run.mesh))
    width = -(-longest // 16) * 16
    return Sampler(run, draw, _unroll(run, sampling.gather_weights), keys, width)


def _unroll(run: Run, gather: bool) -> Callable[[Params], Params]:
    """`model.unroll`, jitted, onto the tensor axis alone or onto all axes."""
    shapes = jax.eval_shape(run.model.unroll, param_shapes(run.pretrained.config))
    axes = ("tensor",) if gather else AXES
    return jax.jit(run.model.unroll, out_shardings=param_shardings(run.mesh, shapes, axes=axes))


def prompts_of(sampler: Sampler, problems: Problems, indices: Sequence[int]) -> Prompts:
    """Prompts of these rows on the mesh, padded to the data set's longest."""
    rows = [problems.tokens[i] for i in indices]
    prompts = Prompts(*data.pad_rows(rows, sampler.prompt_width))
    return put(prompts, by_prompt(sampler.run.mesh))


def draw_rollout(
    sampler: Sampler,
    params: Params,
    problems: Problems,
    indices: Sequence[int],
    seed: int,
    step: int,
    round: int = 0,
) -> Rollout:
    """Completions of these rows, on the host; a function of parameters, rows and numbers."""
    prompts = prompts_of(sampler, problems, indices)
    rows = len(problems.tokens)
    keys = sampler.keys(seed, step, distinct_rows(indices, rows, first=round * len(indices) * rows))
    return fetch(sampler.draw(sampler.prepare(params), prompts, keys))


def distinct_rows(indices: Sequence[int], rows: int, first: int = 0) -> np.ndarray:
    """Numbers [P] to draw keys from: a row's own, and others where it stands again in the batch.

    Otherwise a row that comes twice in a step would get the same completions twice. They begin at
    `first`, and wrap around at 2^31.
    """
    seen: dict[int, int] = {}
    numbers = []
    for index in map(int, indices):
        numbers.append((first + index + rows * seen.get(index, 0)) % 2**31)
        seen[index] = seen.get(index, 0) + 1
    return np.asarray(numbers, np.int32)
