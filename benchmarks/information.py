"""The answer probe at every prefix: against the published algorithm, and against its floor.

    python benchmarks/information.py [--lengths 256 512 1024 2048] [--repeats 5]
    python benchmarks/information.py --gpu [--shape qwen2.5-1.5b] [--length 2048]
    python benchmarks/information.py --memory [--length 2048]

The first needs torch and transformers (`.[oracle]`): a random Qwen2 model (8 layers of width 256,
8 query and 2 key heads, float32), 2 prompts of 32 tokens with a completion of T tokens each, a
postfix of K = 6. On the same weights, in one process, by turns:
- ours: the scoring pass that makes the cache, and the probes of all T + 1 prefixes;
- published: `published_probe.py`, its own pass for the cache included, plain (with transformers'
  default attention) and tuned (with whichever attention is faster for it);
- floor: K scoring passes over the prompts and completions, log-probability and entropy of every
  token: about as many tokens as the probes have.
`--gpu` times ours and the floor at a real model's shapes with random weights, and what share of a
training step the probes take. `--memory` compiles for such shapes and prints what XLA would need.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iapo_jax import (
    Cuts,
    DecoderConfig,
    Model,
    Probe,
    Prompts,
    Rollout,
    answer_entropy,
    compute_signals,
    every_prefix,
    init_params,
    make_model,
    read_completions,
    read_prompts,
    score_completions,
    token_scores,
)

K = 6
SHAPES = {
    "qwen2.5-0.5b": DecoderConfig(
        *(151_936, 896, 4864, 24, 14, 2, 64), 1e6, tie_word_embeddings=True, qkv_bias=True
    ),
    "qwen2.5-1.5b": DecoderConfig(
        *(151_936, 1536, 8960, 28, 12, 2, 128), 1e6, tie_word_embeddings=True, qkv_bias=True
    ),
}


class Programs(NamedTuple):
    """What is timed, jitted; each called as (params, prompts, tokens, postfix)."""

    whole: object  # scoring pass and probes
    score: object  # scoring pass alone


@functools.cache
def programs(model: Model) -> Programs:
    """Ours, as a training step computes it."""

    def read(params, prompts, tokens):
        context = read_prompts(model, params, prompts)
        hidden, cache = read_completions(model, params, prompts, tokens, context)
        return hidden, (context, cache)

    @jax.jit
    def whole(params, prompts, tokens, postfix):
        _, contexts = read(params, prompts, tokens)
        size = tokens.shape[-1]
        cuts = every_prefix(jnp.full(tokens.shape[:2], size), size)
        return answer_entropy(model, params, prompts, contexts, postfix, cuts)

    @jax.jit
    def score(params, prompts, tokens, postfix):
        hidden, _ = read(params, prompts, tokens)
        weight = model.logit_weight(params)
        return token_scores(hidden[..., :-1, :], weight, tokens, 1.0, devices=model.devices)

    return Programs(whole, score)


def clock(run) -> float:
    """Seconds of one call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def by_turns(runs: dict, repeats: int, label: str) -> dict[str, list[float]]:
    """Seconds of each, `repeats` times by turns; the first call of each is not counted."""
    for run in runs.values():
        clock(run)
    seconds = {name: [] for name in runs}
    for turn in range(repeats):
        for name, run in runs.items():
            seconds[name].append(clock(run))
        told = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"{label}, turn {turn + 1} of {repeats}: {told}", file=sys.stderr, flush=True)
    return seconds


def middle(values: list[float], form: str = "{:.2f}") -> str:
    """median (minimum to maximum)."""
    low, high = form.format(min(values)), form.format(max(values))
    return f"{form.format(statistics.median(values))} ({low} to {high})"


def ratio(above: list[float], below: list[float], times: float = 1.0) -> list[float]:
    """above / (times * below), turn by turn."""
    return [a / (times * b) for a, b in zip(above, below, strict=True)]


# ---------------------------------------------------------- against the published algorithm


def torch_model(directory: Path):
    """A random Qwen2 model of transformers, saved for ours to read."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=4096,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.06,  # so that entropies vary
    )
    model = Qwen2ForCausalLM(config).eval().float()
    model.save_pretrained(directory)
    return model


def compare(lengths: list[int], repeats: int) -> None:
    """The table of times and ratios; stops if results differ by 1e-4 nats."""
    import torch
    import transformers
    from published_probe import probe_by_cloning, probe_by_full_forwards

    from iapo_jax.pretrained import decoder_config
    from iapo_jax.weights import load_params

    with tempfile.TemporaryDirectory() as name:
        theirs = torch_model(Path(name))
        config = decoder_config(json.loads((Path(name) / "config.json").read_text()))
        params = load_params(Path(name), config)
    torch.set_num_threads(_cores())
    ours = programs(make_model(config))
    rng, prompt, rows = np.random.default_rng(0), 32, []
    for length in lengths:
        ids = rng.integers(0, config.vocab_size, (2, prompt + length))
        postfix = rng.integers(0, config.vocab_size, K)
        prompts = Prompts(jnp.asarray(ids[:, :prompt], jnp.int32), jnp.full(2, prompt, jnp.int32))
        tokens = jnp.asarray(ids[:, None, prompt:], jnp.int32)
        arguments = (params, prompts, tokens, jnp.asarray(postfix, jnp.int32))
        text, exit = torch.from_numpy(ids), torch.from_numpy(postfix)
        best = fastest_attention(theirs, text, prompt, exit)

        def published(tuned):
            theirs.set_attn_implementation(best if tuned else "sdpa")  # noqa: B023
            return probe_by_cloning(theirs, text, prompt, exit, tuned=tuned)  # noqa: B023

        runs = {
            "ours": lambda: ours.whole(*arguments),  # noqa: B023
            "published": lambda: published(False),  # noqa: B023
            "tuned": lambda: published(True),  # noqa: B023
            "floor": lambda: [jax.block_until_ready(ours.score(*arguments)) for _ in range(K)],  # noqa: B023
        }
        found = np.asarray(runs["ours"]())[:, 0]
        cuts = [0, 1, 7, length // 2, length]
        full = probe_by_full_forwards(theirs, text, prompt, exit, cuts).numpy()
        cloned = runs["published"]().numpy()
        errors = np.abs(found - cloned).max(), np.abs(found[:, cuts] - full).max()
        assert max(errors) < 1e-4, f"results differ: {errors} nats"
        seconds = by_turns(runs, repeats, f"T = {length}")
        rows.append(
            f"| {length} | {middle(seconds['ours'])} | {middle(seconds['published'])} "
            f"| {middle(seconds['tuned'])}, {best} | {middle(seconds['floor'])} "
            f"| {middle(ratio(seconds['published'], seconds['ours']), '{:.1f}')} "
            f"| {middle(ratio(seconds['tuned'], seconds['ours']), '{:.1f}')} "
            f"| {middle(ratio(seconds['ours'], seconds['floor']))} "
            f"| {errors[0]:.0e}, {errors[1]:.0e} |"
        )
    print(
        f"{platform.machine()}, {_cores()} cores, Python {platform.python_version()}, "
        f"jax {jax.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; medians (and extremes) of {repeats} turns\n"
    )
    print(
        f"| T | ours, s | published, s | tuned, s | {K} plain forwards, s | published / ours "
        f"| tuned / ours | ours / {K} plain | difference, nats: to published, to full forwards |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(rows))


def fastest_attention(model, text, prompt: int, postfix) -> str:
    """Of transformers' own attentions, the one with which the published algorithm runs faster."""
    from published_probe import probe_by_cloning

    seconds = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        short = text[:, : prompt + 128]
        run = functools.partial(probe_by_cloning, model, short, prompt, postfix, tuned=True)
        run()
        seconds[name] = clock(run)
    best = min(seconds, key=seconds.get)
    model.set_attn_implementation(best)
    return best


def _cores() -> int:
    return len(os.sched_getaffinity(0))


# ---------------------------------------------------------- at a real model's shapes


def abstract_inputs(length: int, generations: int = 8, prompt: int = 256):
    """Shapes of one prompt with `generations` completions, and of the probe at every prefix."""
    ids = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    rows = (1, generations)
    floats = jax.ShapeDtypeStruct((*rows, length), jnp.float32)
    flags = jax.ShapeDtypeStruct(rows, jnp.bool_)
    rollout = Rollout(
        Prompts(ids(1, prompt), ids(1)), ids(*rows, length), ids(*rows), floats, flags
    )
    return rollout, Probe(ids(K), Cuts(ids(*rows, length + 1), ids(*rows)))


def memory(config: DecoderConfig, length: int) -> None:
    """Temporary memory of scoring, and of scoring with probes; compiled only."""
    model = make_model(config)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rollout, probe = abstract_inputs(length)
    found = {}
    for name, asked in (("scoring", None), ("scoring and probes", probe)):
        temperature = jax.ShapeDtypeStruct((), jnp.float32)
        program = compute_signals.lower(model, params, None, rollout, asked, temperature)
        found[name] = program.compile().memory_analysis().temp_size_in_bytes / 2**20
        print(f"{name:<44} {found[name]:8.0f} MiB temporary")
    rows, prompt = rollout.length.shape[1], rollout.prompts.tokens.shape[1]
    per_token = config.num_layers * 2 * config.num_kv_heads * config.head_dim * 2 / 2**20
    kept = (prompt + rows * (length + 1)) * per_token
    clones = 36 * rows * (prompt + length) * per_token
    print(f"{'difference':<44} {found['scoring and probes'] - found['scoring']:8.0f} MiB")
    print(f"{'by arithmetic: one cache, in bfloat16':<44} {kept:8.0f} MiB")
    print(f"{'by arithmetic: 36 clones of each row':<44} {clones:8.0f} MiB")


def accelerator(config: DecoderConfig, length: int, repeats: int) -> None:
    """Times, peak memory, and the probes' share of a step, on whatever device JAX has."""
    model = make_model(config)
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    shapes, _ = abstract_inputs(length)
    rng = np.random.default_rng(0)
    ids = lambda s: jnp.asarray(rng.integers(0, config.vocab_size, s.shape), jnp.int32)  # noqa: E731
    full = lambda s, value: jnp.full(s.shape, value, s.dtype)  # noqa: E731
    prompts = Prompts(ids(shapes.prompts.tokens), full(shapes.prompts.length, 256))
    tokens, size = ids(shapes.tokens), full(shapes.length, length)
    rollout = Rollout(prompts, tokens, size, full(shapes.log_prob, 0), full(shapes.finished, True))
    postfix = jnp.asarray(rng.integers(0, config.vocab_size, K), jnp.int32)
    probe, one = Probe(postfix, every_prefix(size, length)), jnp.float32(1)
    arguments = (params, prompts, tokens, postfix)
    ours = programs(model)

    @jax.jit
    def update(params, prompts, tokens):
        loss = lambda p: score_completions(model, p, prompts, tokens, one).log_prob.mean()  # noqa: E731
        return jax.grad(loss)(params)["final_norm"]

    seconds = by_turns(
        {
            "ours": lambda: ours.whole(*arguments),
            "floor": lambda: [jax.block_until_ready(ours.score(*arguments)) for _ in range(K)],
            "signals": lambda: compute_signals(model, params, None, rollout, probe, one),
            "signals without": lambda: compute_signals(model, params, None, rollout, None, one),
            "update": lambda: update(params, prompts, tokens),
        },
        repeats,
        f"T = {length}",
    )
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, T = {length}, 8 completions")
    for name, values in seconds.items():
        print(f"{name:<24} {middle(values, '{:.3f}')} s")
    print(f"{f'ours / {K} plain':<24} {middle(ratio(seconds['ours'], seconds['floor']))}")
    probes = [a - b for a, b in zip(seconds["signals"], seconds["signals without"], strict=True)]
    step = [a + b for a, b in zip(seconds["signals"], seconds["update"], strict=True)]
    print(f"{'share of signals + update':<24} {middle(ratio(probes, step))}")
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        print(f"{'peak memory':<24} {stats['peak_bytes_in_use'] / 2**30:.1f} GiB")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpu", action="store_true", help="ours at a real model's shapes")
    parser.add_argument("--memory", action="store_true", help="compile only")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-1.5b")
    parser.add_argument("--layers", type=int, help="other than the shape's own")
    parser.add_argument("--length", type=int, default=2048, help="T of --gpu and --memory")
    arguments = parser.parse_args()
    config = SHAPES[arguments.shape]
    layers = arguments.layers or config.num_layers
    config = dataclasses.replace(config, num_layers=layers, dtype="bfloat16", remat=True)
    if arguments.memory:
        memory(config, arguments.length)
    elif arguments.gpu:
        accelerator(config, arguments.length, arguments.repeats)
    else:
        compare(arguments.lengths, arguments.repeats)


if __name__ == "__main__":
    main()
