"""What each method does to the decision to stop thinking, computed on a simple chain.

    python experiments/stopping.py            # prints the table of docs/methods.md

The first `informative` tokens of a completion carry all information about the answer. After them
the policy chooses repeatedly: it stops (with probability p), or checks once more, with `check`
tokens that carry none. All completions are correct, so z(r) is 0, and only the method's own terms
act on stopping. With the logit theta of stopping as the only parameter, the policy gradient of a
completion is

    push = sum over its decisions of A_t d log pi(o_t) / d theta,

(1 - p) A_t where it stops, and -p A_t where it continues. A positive mean push makes stopping more
likely, so completions become shorter; a negative one makes them longer.

The methods are the library's, on groups drawn from this chain. For methods that use only one
completion, `exact_push` computes the mean exactly; a test compares the two.
"""

import argparse
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iapo_jax import Group, make_algorithm
from iapo_jax.algorithms.diagnostics import length_covariance

SIZE = 8  # completions of a group
ANSWER = 3  # tokens from the one that ends thinking to the stop token
MOST = 6  # checks, after which it must stop


class Chain(NamedTuple):
    """The chain of one experiment."""

    informative: int = 4  # tokens that share the information equally
    check: int = 5  # tokens of one check
    stop: float = 0.4  # p
    nats: float = 2.0  # uncertainty at the start
    told_by_check: float = 0.0  # nats that the first check carries

    @property
    def width(self) -> int:
        """Tokens of the longest completion."""
        return self.informative + MOST * self.check + ANSWER


def completions(chain: Chain, checks: jax.Array) -> Group:
    """The group of completions with these numbers of checks [G]."""
    thinking = chain.informative + checks * chain.check
    place = jnp.arange(chain.width)
    read = jnp.arange(chain.width + 1)
    left = chain.nats * jnp.clip(1 - read / chain.informative, 0.0, 1.0)
    first = jnp.clip((chain.informative + chain.check - read) / chain.check, 0.0, 1.0)
    u = jnp.where(read < chain.informative, left + chain.told_by_check, chain.told_by_check * first)
    u = jnp.broadcast_to(u, (len(checks), len(u)))
    # u is constant after the end of thinking.
    u = jnp.take_along_axis(u, jnp.minimum(read, thinking[:, None]), axis=1)
    decision = (place >= chain.informative) & ((place - chain.informative) % chain.check == 0)
    goes_on, stops = decision & (place < thinking[:, None]), place == thinking[:, None]
    free = checks[:, None] < MOST
    probability = jnp.where(goes_on, 1 - chain.stop, jnp.where(stops & free, chain.stop, 0.9))
    two_ways = -(chain.stop * np.log(chain.stop) + (1 - chain.stop) * np.log(1 - chain.stop))
    mask = place < thinking[:, None] + ANSWER
    is_thinking = place < thinking[:, None]
    return Group(
        tokens=jnp.where(mask, 1 + stops + 2 * goes_on, 0).astype(jnp.int32),
        mask=mask,
        reward=jnp.ones(len(checks)),
        correct=jnp.ones(len(checks), bool),
        log_prob=jnp.where(mask, jnp.log(probability), 0.0),
        entropy=jnp.where(mask, jnp.where(goes_on | (stops & free), two_ways, 0.3), 0.0),
        uncertainty=u,
        thinking=is_thinking,
    )


def scores(chain: Chain, checks: jax.Array) -> jax.Array:
    """d log pi(o_t) / d theta of every token [G, T]; 0 for tokens that are not decisions."""
    place = jnp.arange(chain.width)
    thinking = (chain.informative + checks * chain.check)[:, None]
    decision = (place >= chain.informative) & ((place - chain.informative) % chain.check == 0)
    stops = (place == thinking) & (checks < MOST)[:, None]
    return jnp.where(stops, 1 - chain.stop, 0.0) - chain.stop * (decision & (place < thinking))


def draw_checks(chain: Chain, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Numbers of checks: geometric, truncated at MOST."""
    uniform = jax.random.uniform(key, shape, minval=1e-12)
    return jnp.minimum(jnp.log(uniform) // np.log(1 - chain.stop), MOST).astype(jnp.int32)


class Push(NamedTuple):
    """Means over groups, and the standard error of the first."""

    push: float
    error: float
    covariance: float  # Cov(L, sum of bonus), the quantity of the paper's Theorem 4.1


@partial(jax.jit, static_argnames=("algorithm", "chain"))
def _drawn(algorithm, chain: Chain, told: float, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    # An array, so that chains of the same length share a program.
    chain = chain._replace(told_by_check=told)

    def one(key):
        ours, rules = jax.random.split(key)
        checks = draw_checks(chain, ours, (SIZE,))
        group = completions(chain, checks)
        credit = algorithm.credit(group, rules)
        pushed = (credit.weight * credit.advantage * scores(chain, checks)).sum(-1).mean()
        return pushed, length_covariance(group, credit).value()

    return jax.lax.map(one, keys, batch_size=500)


def push(algorithm, chain: Chain, *, groups: int, seed: int = 0) -> Push:
    """The mean push of a completion over `groups` groups."""
    keys = jax.random.split(jax.random.key(seed), groups)
    fixed = chain._replace(told_by_check=0.0)
    values, covariance = map(np.asarray, _drawn(algorithm, fixed, chain.told_by_check, keys))
    error = values.std(ddof=1) / np.sqrt(groups)
    return Push(float(values.mean()), float(error), float(covariance.mean()))


@partial(jax.jit, static_argnames=("algorithm", "chain"))
def _each(algorithm, chain: Chain, told: float) -> jax.Array:
    chain, checks = chain._replace(told_by_check=told), jnp.arange(MOST + 1)
    credit = algorithm.credit(completions(chain, checks), None)
    return (credit.weight * credit.advantage * scores(chain, checks)).sum(-1)


def exact_push(algorithm, chain: Chain) -> float:
    """The exact mean push of a method that uses only one completion: a sum over check counts."""
    chance = chain.stop * (1 - chain.stop) ** np.arange(MOST + 1)
    chance[-1] = (1 - chain.stop) ** MOST
    each = _each(algorithm, chain._replace(told_by_check=0.0), chain.told_by_check)
    return float((chance * np.asarray(each)).sum())


# Method, options, and whether the method uses only one completion here.
INFORMATION_ALONE = {"information_weight": 1.0, "exploration_weight": 0.0}
CASES = [
    ("iapo", INFORMATION_ALONE, True),
    ("iapo", INFORMATION_ALONE | {"normalizer": "group"}, False),
    ("iapo", INFORMATION_ALONE | {"normalizer": "norm"}, True),
    ("iapo", INFORMATION_ALONE | {"normalizer": "none"}, True),
    ("iapo_shuffled", INFORMATION_ALONE, False),
    ("iapo_random", INFORMATION_ALONE, False),
    ("iapo_reference", INFORMATION_ALONE, True),
    ("iapo_ni", {"exploration_weight": 1.0}, True),
    ("iapo_ne", {"information_weight": 1.0, "exploration_weight": 0.0}, True),
    ("iapo_priced", {"information_weight": 1.0, "price": 0.002}, False),
    ("iapo_priced", {"information_weight": 1.0, "price": 0.1}, False),
    ("grpo", {}, True),
    ("dr_grpo", {}, True),
    ("rloo", {}, True),
    ("dapo", {}, False),
    ("gfpo", {}, True),
    ("gtpo", {}, False),
    ("s_grpo", {"first": 0, "until": 0}, False),
    ("length_penalty", {"penalty": 0.2}, False),
    ("length_cap", {"cap": 12}, False),
    ("l1_max", {"target_length": 12, "slope": 0.05}, False),
]
CHAINS = {
    "checks carry 0 nats": Chain(),
    "first check carries 0.5 nats": Chain(told_by_check=0.5),
}


def table(groups: int) -> str:
    """The pushes of all cases on all chains, as Markdown."""
    lines = [
        f"| method | options | {' | '.join(f'push, {name}' for name in CHAINS)} "
        "| Cov(L, bonus), second chain |",
        "|---|---|" + "---|" * (len(CHAINS) + 1),
    ]
    for name, options, _ in CASES:
        cells = []
        algorithm = make_algorithm(name, options, max_length=Chain().width)
        for chain in CHAINS.values():
            found = push(algorithm, chain, groups=groups)
            still = abs(found.push) < 1e-6 and found.error < 1e-6
            cells.append("0" if still else f"{found.push:+.3f} ± {found.error:.3f}")
            covariance = f"{found.covariance:+.2f}" if abs(found.covariance) > 5e-3 else "0"
            cells += [covariance] if len(cells) == len(CHAINS) else []
        told = ", ".join(f"{key} {value}" for key, value in options.items())
        lines.append(f"| `{name}` | {told} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=20_000, help="groups of eight for each cell")
    print(table(parser.parse_args().groups))


if __name__ == "__main__":
    main()
