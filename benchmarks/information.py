"""The answer probe at every prefix: against the published algorithm, and against its floor.

    python benchmarks/information.py [--lengths 256 512 1024 2048] [--repeats 5] [--group]
    python benchmarks/information.py --gpu [--shape qwen2.5-1.5b] [--length 2048]
    python benchmarks/information.py --memory [--length 2048]

The first needs torch and transformers (`.[oracle]`): a random Qwen2 model (8 layers of width 256,
8 query and 2 key heads, float32), 2 prompts of 32 tokens with a completion of T tokens each (with
`--group`, 2 completions of one prompt), a postfix of K = 6. On the same weights, in one process, by
turns:
- ours: the pass that makes the cache, and the probes of all T + 1 prefixes;
- probes: the second part of it alone, given the cache;
- published: `published_probe.py`, its own pass for the cache included, plain (with transformers'
  default attention) and tuned (with whichever attention is faster for it at that length);
- floor: K scoring passes over the prompts and completions, log-probability and entropy of every
  token: about as many tokens as the probes have;
- torch: K forwards of transformers over the same tokens, logits of all, its default attention.
`--gpu` times ours and the floor at a real model's shapes with random weights in bfloat16 (where
torch sees the GPU also the published algorithm, tuned, with different weights), and prints the
probes' share of the time of scoring, probes and update together. `--memory` compiles for such
shapes and prints what XLA would need.
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

from iapo_jax import Model, Probe, Prompts, Rollout, compute_signals, score_completions
from iapo_jax.information import ProbePositions, every_prefix
from iapo_jax.information.estimators import entropy_at
from iapo_jax.model import (
    DecoderConfig,
    forward_completions,
    init_params,
    make_model,
    prefill,
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
    """What is timed, jitted; called as (params, prompts, tokens, postfix) but for two."""

    whole: object  # the pass that makes the cache, and the probes
    read: object  # that pass alone, (params, prompts, tokens) -> states, contexts
    probes: object  # the probes alone, (params, prompts, contexts, postfix, positions)
    score: object  # the pass and the head: log-probability and entropy


@functools.cache
def programs(model: Model) -> Programs:
    """Ours, as a training step computes it."""

    @jax.jit
    def read(params, prompts, tokens):
        context = prefill(model, params, prompts)
        hidden, cache = forward_completions(model, params, prompts, tokens, context)
        return hidden, (context, cache)

    @jax.jit
    def whole(params, prompts, tokens, postfix):
        _, contexts = read(params, prompts, tokens)
        return entropy_at(model, params, prompts, contexts, postfix, all_positions(tokens))

    @jax.jit
    def probes(params, prompts, contexts, postfix, positions):
        return entropy_at(model, params, prompts, contexts, postfix, positions)

    @jax.jit
    def score(params, prompts, tokens, postfix):
        hidden, _ = read(params, prompts, tokens)
        weight = model.logit_weight(params)
        return token_scores(hidden[..., :-1, :], weight, tokens, 1.0, devices=model.devices)

    return Programs(whole, read, probes, score)


def all_positions(tokens) -> ProbePositions:
    """Every prefix of completions [P, G, T] without padding."""
    size = tokens.shape[-1]
    return every_prefix(jnp.full(tokens.shape[:2], size), size)


def clock(run) -> float:
    """Seconds of one call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def others_seconds() -> float:
    """CPU seconds that other processes have used since the machine started; 0 where unknown."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0
    user, nice, system, _, _, interrupt, soft = map(int, stat.read_text().split()[1:8])
    busy = (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:2])


def by_turns(runs: dict, repeats: int, label: str) -> dict[str, list[float]]:
    """Seconds of each, `repeats` times by turns; the first call of each is not counted."""
    for run in runs.values():
        clock(run)
    seconds = {name: [] for name in runs}
    for turn in range(repeats):
        start, others = time.perf_counter(), others_seconds()
        for name, run in runs.items():
            seconds[name].append(clock(run))
        others = (others_seconds() - others) / (time.perf_counter() - start)
        told = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(
            f"{label}, turn {turn + 1} of {repeats}: {told}; others took {others:.2f} cores",
            file=sys.stderr,
            flush=True,
        )
        if others > 0.2:
            print("busy machine: torch suffers more than JAX", file=sys.stderr, flush=True)
    return seconds


def middle(values: list[float], form: str = "{:.2f}") -> str:
    """median (minimum to maximum)."""
    low, high = form.format(min(values)), form.format(max(values))
    return f"{form.format(statistics.median(values))} ({low} to {high})"


def ratio(above: list[float], below: list[float], times: float = 1.0) -> list[float]:
    """above / (times * below), turn by turn."""
    return [a / (times * b) for a, b in zip(above, below, strict=True)]


# ---------------------------------------------------------- against the published algorithm


def cpu_name() -> str:
    """Of Linux, what the kernel says; elsewhere the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def compare(lengths: list[int], repeats: int, group: bool) -> None:
    """The table of times and ratios; stops if results differ by 1e-4 nats."""
    import torch
    import transformers
    from published_probe import random_model

    from iapo_jax.pretrained.architecture import decoder_config
    from iapo_jax.pretrained.weights import load_params

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        theirs = random_model(Path(name))
        config = decoder_config(json.loads((Path(name) / "config.json").read_text()))
        params = load_params(Path(name), config)
    model = make_model(config)
    rows = [compare_at(length, repeats, group, model, params, theirs) for length in lengths]
    one = "2 completions of one prompt" if group else "2 prompts, a completion each"
    print(
        f"{cpu_name()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"jax {jax.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {one}; medians (and extremes) of {repeats} turns\n"
    )
    heads = ["T", "ours, s", "probes alone, s", "published, s", "tuned, s"]
    heads += [f"{K} plain forwards, s", f"{K} of torch, s", "published / ours", "tuned / ours"]
    heads += [
        f"ours / {K} plain",
        "largest difference, nats: to published; of each to full forwards",
    ]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    print("\n".join(rows))


def compare_at(length: int, repeats: int, group: bool, model: Model, params, theirs) -> str:
    """One row of the table."""
    import torch
    from published_probe import fastest_attention, plain_forward, probe_by_cloning

    ours, prompt = programs(model), 32
    rng = np.random.default_rng(0)
    ids = rng.integers(0, theirs.config.vocab_size, (2, prompt + length))
    if group:
        ids[1, :prompt] = ids[0, :prompt]
    asked = ids[:1, :prompt] if group else ids[:, :prompt]
    prompts = Prompts(jnp.asarray(asked, jnp.int32), jnp.full(len(asked), prompt, jnp.int32))
    tokens = jnp.asarray(ids[:, prompt:].reshape(len(asked), -1, length), jnp.int32)
    exit = rng.integers(0, theirs.config.vocab_size, K)
    postfix, positions = jnp.asarray(exit, jnp.int32), all_positions(tokens)
    text, exit = torch.from_numpy(ids), torch.from_numpy(exit)
    arguments = (params, prompts, tokens, postfix)
    _, contexts = ours.read(params, prompts, tokens)
    best = fastest_attention(theirs, text, prompt, exit)

    def published(tuned):
        theirs.set_attn_implementation(best if tuned else "sdpa")
        return probe_by_cloning(theirs, text, prompt, exit, tuned=tuned)

    def plain():
        theirs.set_attn_implementation("sdpa")
        return [plain_forward(theirs, text) for _ in range(K)]

    runs = {
        "ours": lambda: ours.whole(*arguments),
        "probes": lambda: ours.probes(params, prompts, contexts, postfix, positions),
        "published": lambda: published(False),
        "tuned": lambda: published(True),
        "floor": lambda: [jax.block_until_ready(ours.score(*arguments)) for _ in range(K)],
        "torch": plain,
    }
    errors = largest_differences(runs, theirs, text, prompt, exit)
    assert max(errors) < 1e-4, f"results differ: {errors} nats"
    seconds = by_turns(runs, repeats, f"T = {length}")
    cells = [str(length), *(middle(values) for values in seconds.values())]
    cells[4] += f", {best}"
    cells += [middle(ratio(seconds[name], seconds["ours"])) for name in ("published", "tuned")]
    cells += [middle(ratio(seconds["ours"], seconds["floor"]))]
    cells += ["; ".join(f"{error:.0e}" for error in errors)]
    return "| " + " | ".join(cells) + " |"


def largest_differences(runs: dict, theirs, text, prompt: int, exit) -> list[float]:
    """Of ours to the published at every cut, and at some cuts of both to full forwards."""
    from published_probe import probe_by_full_forwards

    length = text.shape[1] - prompt
    ours = np.asarray(runs["ours"]()).reshape(2, -1)
    alone = np.asarray(runs["probes"]()).reshape(2, -1)
    published = [runs[name]().numpy() for name in ("published", "tuned")]
    cuts = sorted({0, 1, 7, 35, 36, length // 2, length})
    full = probe_by_full_forwards(theirs, text, prompt, exit, cuts).numpy()
    found = [ours, alone, *published]
    to_published = max(np.abs(a - b).max() for a in found[:2] for b in found[2:])
    to_full = [np.abs(one[:, cuts] - full).max() for one in found]
    return [to_published, max(to_full[:2]), max(to_full[2:])]


# ---------------------------------------------------------- at a real model's shapes


def abstract_inputs(length: int, generations: int = 8, prompt: int = 256):
    """Shapes of one prompt with `generations` completions, and of the probe at every prefix."""

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    rows = (1, generations)
    floats = jax.ShapeDtypeStruct((*rows, length), jnp.float32)
    flags = jax.ShapeDtypeStruct(rows, jnp.bool_)
    rollout = Rollout(
        Prompts(ids(1, prompt), ids(1)), ids(*rows, length), ids(*rows), floats, flags
    )
    return rollout, Probe(ids(K), ProbePositions(ids(*rows, length + 1), ids(*rows)))


def memory(config: DecoderConfig, length: int) -> None:
    """Temporary memory of scoring, and of scoring with probes; compiled only."""
    model = make_model(config)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rollout, probe = abstract_inputs(length)
    found = {}
    for name, asked in (("scoring", None), ("scoring and probes", probe)):
        temperature = jax.ShapeDtypeStruct((), jnp.float32)
        program = compute_signals.lower(model, params, rollout, asked, temperature=temperature)
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

    def ids(s):
        return jnp.asarray(rng.integers(0, config.vocab_size, s.shape), jnp.int32)

    def full(s, value):
        return jnp.full(s.shape, value, s.dtype)

    size = full(shapes.length, length)
    prompts = Prompts(
        ids(shapes.prompts.tokens),
        full(shapes.prompts.length, shapes.prompts.tokens.shape[-1]),
    )
    tokens = ids(shapes.tokens)
    rollout = Rollout(prompts, tokens, size, full(shapes.log_prob, 0), full(shapes.finished, True))
    postfix = jnp.asarray(rng.integers(0, config.vocab_size, K), jnp.int32)
    probe, one = Probe(postfix, every_prefix(size, length)), jnp.float32(1)
    arguments = (params, prompts, tokens, postfix)
    ours = programs(model)

    @jax.jit
    def update(params, prompts, tokens):  # all gradients: XLA leaves out what nobody asks for
        def loss(p):
            return score_completions(model, p, prompts, tokens, one).log_prob.mean()

        return jax.value_and_grad(loss)(params)

    runs = {
        "floor": lambda: [jax.block_until_ready(ours.score(*arguments)) for _ in range(K)],
        "signals without": lambda: compute_signals(model, params, rollout, temperature=one),
        "ours": lambda: ours.whole(*arguments),
        "signals": lambda: compute_signals(model, params, rollout, probe, temperature=one),
        "update": lambda: update(params, prompts, tokens),
    }
    peaks = {name: (clock(run), peak_memory())[1] for name, run in runs.items()}
    published = published_on_gpu(config, prompts, tokens, postfix)
    if published:
        runs["published"] = published
    seconds = by_turns(runs, repeats, f"T = {length}")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, T = {length}, 8 completions")
    for name, values in seconds.items():
        peak = peaks.get(name)
        told = f", peak so far {peak / 2**30:.1f} GiB" if peak else ""
        print(f"{name:<28} {middle(values, '{:.3f}')} s{told}")
    print(f"{f'ours / {K} plain':<28} {middle(ratio(seconds['ours'], seconds['floor']))}")
    if published:
        print(f"{'published / ours':<28} {middle(ratio(seconds['published'], seconds['ours']))}")
        print(f"{'peak of published (torch)':<28} {torch_peak() / 2**30:.1f} GiB")
    probes = [a - b for a, b in zip(seconds["signals"], seconds["signals without"], strict=True)]
    step = [a + b for a, b in zip(seconds["signals"], seconds["update"], strict=True)]
    print(f"{'share of signals + update':<28} {middle(ratio(probes, step))}")


def peak_memory() -> int | None:
    """Bytes in use at most, since the process started; None where the device does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def torch_peak() -> int:
    """Bytes of torch's tensors on the GPU at most, weights included."""
    import torch

    return torch.cuda.max_memory_allocated()


def published_on_gpu(config: DecoderConfig, prompts: Prompts, tokens, postfix):
    """The published algorithm at the same shapes, ready to run; None where torch has no GPU."""
    try:
        import torch
        from published_probe import fastest_attention, model_of, probe_by_cloning
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    theirs = model_of(config).to("cuda", torch.bfloat16)
    rows = np.asarray(tokens)[0]
    text = np.concatenate([np.tile(np.asarray(prompts.tokens), (len(rows), 1)), rows], axis=1)
    text, exit = (torch.tensor(x, device="cuda").long() for x in (text, np.asarray(postfix)))
    size = prompts.tokens.shape[-1]
    attention = fastest_attention(theirs, text, size, exit)
    print(f"published with {attention}", file=sys.stderr, flush=True)
    return lambda: probe_by_cloning(theirs, text, size, exit, tuned=True).cpu()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--group", action="store_true", help="2 completions of one prompt")
    parser.add_argument("--gpu", action="store_true", help="ours at a real model's shapes")
    parser.add_argument("--memory", action="store_true", help="compile only")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-1.5b")
    parser.add_argument("--layers", type=int, help="if not the shape's own")
    parser.add_argument("--length", type=int, default=2048, help="T of --gpu and --memory")
    arguments = parser.parse_args()
    config = SHAPES[arguments.shape]
    layers = arguments.layers or config.num_layers
    config = dataclasses.replace(config, num_layers=layers, dtype="bfloat16", remat=True)
    if arguments.memory:
        memory(config, arguments.length)
    elif arguments.gpu:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs room too
        accelerator(config, arguments.length, arguments.repeats)
    else:
        compare(arguments.lengths, arguments.repeats, arguments.group)


if __name__ == "__main__":
    main()
