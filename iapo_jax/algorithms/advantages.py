"""Credit rules: how much each token of a group's completions is to be reinforced.

Every rule is `(Group, key, *, hyper-parameters) -> Credit` for ONE prompt; `jax.vmap` does the
rest. All statistics are masked: padding changes nothing, and neither do completions that a filter
has left out. Symbols are those of `types`. What stands around a rule (reward shaping, filters,
token masks, the loss) is in `shaping`, `selection` and `losses`; `algorithms` puts them together.
"""

import jax
import jax.numpy as jnp

from iapo_jax.algorithms.statistics import (
    REWARD_EPSILON,
    check_at_least,
    completion_keys,
    group_advantage,
    is_kept,
    least_squares,
    leave_one_out,
    magnitude,
    normalize,
    root_mean_square,
    shuffle,
)
from iapo_jax.types import Array, Credit, Group

INFORMATION = ("answer", "next_token", "shuffled", "random")


EXPLORATIONS = ("probability", "entropy")


PRICED_NORMALIZERS = ("rms", "none")


UNITS = ("share", "probability", "nats")


KNOWN = 0.1


"""Nats: the least that "share" takes for what is not known at the start."""


GTPO_NORMALIZERS = ("completions", "tokens", "sides")


def _credit(group: Group, base: Array, bonus: Array | None = None) -> Credit:
    """A_t = base of the completion [G] + bonus of the token [G, T]."""
    bonus = jnp.zeros(group.mask.shape) if bonus is None else jnp.where(group.mask, bonus, 0.0)
    advantage = jnp.where(group.mask, base[:, None] + bonus, 0.0)
    return Credit(advantage, group.mask.astype(jnp.float32), bonus)


def check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")


# ------------------------------------------------------------------------- whole completions


def grpo(group: Group, key: Array | None = None, *, scale_rewards: str = "group") -> Credit:
    """A_t = z(r), the same for all tokens of a completion. Sec. 4.1 of arXiv:2402.03300.

    `scale_rewards="none"`: r - mean, as Dr. GRPO has it (arXiv:2503.20783).
    """
    del key
    return _credit(
        group, group_advantage(group.reward, is_kept(group), scale_rewards=scale_rewards)
    )


def rloo(group: Group, key: Array | None = None) -> Credit:
    """A_t = r_i - mean of the other completions' r. arXiv:2402.14740.

    Dr. GRPO's advantage times G / (G - 1), and with it the unbiased one.
    """
    del key
    return _credit(group, leave_one_out(group.reward, is_kept(group)))


# ----------------------------------------------------------------------------- tokens by IAPO


def iapo(
    group: Group,
    key: Array | None = None,
    *,
    information_weight: float = 1e-2,
    exploration_weight: float = 1e-2,
    exploration: str = "probability",
    normalizer: str = "completion",
    only_correct: bool = False,
    information: str = "answer",
    scale_rewards: str = "group",
) -> Credit:
    """A_t = z(r) + alpha z(s_t) + beta z(c_t), as arXiv:2602.19049 states it.

    alpha is `information_weight`, beta `exploration_weight`, s_t the informativeness in nats.
    c_t steers exploration: with "probability" it is +p(o_t) in
    a correct completion and -p(o_t) in a wrong one, p of the sampling policy (the paper); with
    "entropy" it is -H_t and +H_t, H_t of the next-token distribution (the authors' code). z over
    the group for r; over the completion's tokens for s and c, or as `statistics.normalize` has it.
    With `only_correct`, wrong completions get no information. The paper searches both weights
    in {1e-6, 1e-4, 1e-2, 1}.

    `information` names what stands for s_t on thinking tokens: "answer"; "next_token", the fall of
    next-token entropy (the ablation NE: H_t - H_{t+1}, 0 where no token follows); and two controls
    which know nothing: "shuffled", the completion's own s_t in random order, and "random", normal
    with their mean and variance.

    Raises:
      ValueError: for an unknown name.
    """
    check_one_of("exploration", exploration, EXPLORATIONS)
    base = group_advantage(group.reward, is_kept(group), scale_rewards=scale_rewards)
    right = group.correct[:, None]
    told = group.mask & right if only_correct else group.mask
    s = normalize(_information(group, key, information), told, normalizer)
    sure = jnp.exp(group.log_prob) if exploration == "probability" else -group.entropy
    c = normalize(jnp.where(right, sure, -sure), group.mask, normalizer)
    return _credit(group, base, information_weight * s + exploration_weight * c)


def _information(group: Group, key: Array | None, information: str) -> Array:
    check_one_of("information", information, INFORMATION)
    thinking, s = group.thinking & group.mask, group.informativeness
    if information == "next_token":
        following = jnp.pad(group.entropy[:, 1:], ((0, 0), (0, 1)))
        followed = jnp.pad(group.mask[:, 1:], ((0, 0), (0, 1)))
        return jnp.where(thinking & followed, group.entropy - following, 0.0)
    if information == "shuffled":
        return jax.vmap(shuffle)(completion_keys(key, group), s, thinking)
    if information == "random":
        count = jnp.maximum(thinking.sum(-1, keepdims=True), 1)
        mean = jnp.where(thinking, s, 0.0).sum(-1, keepdims=True) / count
        std = root_mean_square(jnp.where(thinking, s - mean, 0.0), count, -1)
        draw = lambda key: jax.random.normal(key, s.shape[-1:])  # noqa: E731
        noise = jax.vmap(draw)(completion_keys(key, group))
        return jnp.where(thinking, mean + std * noise, 0.0)
    return s


def iapo_reference(
    group: Group,
    key: Array | None = None,
    *,
    information_weight: float = 1e-2,
    exploration_weight: float = 1e-2,
) -> Credit:
    """IAPO as the authors' code computes it (github.com/YinhanHe123/IAPO, g2rpo_trainer.py).

    A_t = z(r) + alpha n(a_t) - beta sign(r) n(H_t), with alpha and beta as in `iapo` and
    a_t = (u_{t-1} + u_{t-2}) / 2 - u_t, where
    u before the first and after the last column of the PADDED width counts as 0: that is
    s_t + s_{t-1} / 2 inside. n(x) = x - mean / (std + 1e-8) (the parentheses that are missing
    there), over the padded width, then divided by its 2-norm. Not corrected on purpose: padding
    changes it. Same inputs, so that their runs can be repeated and the difference measured; their
    probes also read what follows the answer and padding, which `uncertainty` continues with its
    last value. They pad to the longest completion of the batch: sampling.length_bucket=1 does the
    same (and compiles for each width).
    """
    del key
    u_tm1 = group.uncertainty[:, :-1]
    u_tm2, u_t = jnp.pad(u_tm1, ((0, 0), (1, 1)))[:, :-2], jnp.pad(u_tm1, ((0, 0), (0, 1)))[:, 1:]
    surprise = (u_tm1 + u_tm2) / 2 - u_t
    base = group_advantage(group.reward, is_kept(group))
    sign = jnp.sign(group.reward)[:, None]
    bonus = information_weight * _authors_scale(
        surprise
    ) - exploration_weight * sign * _authors_scale(group.entropy)
    return _credit(group, base, bonus)


def _authors_scale(x: Array) -> Array:
    std = jnp.sqrt(((x - x.mean(-1, keepdims=True)) ** 2).sum(-1) / max(x.shape[-1] - 1, 1))
    x = x - x.mean(-1, keepdims=True) / (std[:, None] + 1e-8)
    return x / (jnp.sqrt((x**2).sum(-1, keepdims=True)) + 1e-8)


def iapo_priced(
    group: Group,
    key: Array | None = None,
    *,
    information_weight: float = 3.0,
    price: float = 0.002,
    unit: str = "share",
    only_correct: bool = False,
    normalizer: str = "rms",
    scale_rewards: str = "group",
) -> Credit:
    """A_t = z(r) + alpha (R_t - b(v_{t-1})) / rms: what is still to be learned, less its price.

    v_t is what is not known of the answer after t tokens, with the unit "share" as a share of what
    was not known at the start, v_t = u_t / max(u_0, 0.1 nats), u_0 the group's mean. On thinking
    tokens r_t = v_{t-1} - v_t - price and R_t = sum_{k >= t} r_k: what the completion still learns,
    less `price` for each token it takes. So n tokens that tell everything pay if n * price < 1.
    The token that ends thinking has R = 0: it competes with going on. The baseline b is the
    least-squares line of R on v_{t-1} over the group's thinking tokens, a free critic; rms is that
    of R - b over the same tokens and ends ("none": not divided). alpha is
    `information_weight`; 0 is GRPO. `adaptation` lets the price follow the run.
    Ours; see docs/methods.md.

    Args:
      unit: or "probability", v = 1 - exp(-u): the chance of a wrong answer where u = -log p(y*) of
        the gold one (the rule's own estimator); or "nats", v = u.
      only_correct: wrong completions get z(r) alone. With u an entropy this keeps confidence in a
        wrong answer from being paid.

    Raises:
      ValueError: for an unknown name, or a negative price.
    """
    del key
    check_at_least("price", price, 0)
    check_one_of("unit", unit, UNITS)
    check_one_of("normalizer", normalizer, PRICED_NORMALIZERS)
    base = group_advantage(group.reward, is_kept(group), scale_rewards=scale_rewards)
    gate = group.correct[:, None] if only_correct else jnp.ones_like(group.correct)[:, None]
    stop = group.mask & ~group.thinking
    stop = stop & (jnp.cumsum(stop, axis=-1) == 1)  # the token that ends thinking
    thinking = group.thinking & group.mask & gate

    unknown = _unknown(group, unit)
    told = unknown[:, :-1] - unknown[:, 1:]
    gain = jnp.where(group.thinking & group.mask, told - price, 0.0)
    to_go = jnp.cumsum(gain[:, ::-1], axis=-1)[:, ::-1]  # 0 on the stop token by itself
    critic = least_squares(unknown[:, :-1], to_go, thinking)
    surprise = jnp.where(thinking | (stop & gate), to_go - critic, 0.0)
    count = jnp.maximum((thinking | (stop & gate)).sum(), 1)
    if normalizer == "rms":
        surprise /= root_mean_square(surprise, count) + 1e-6
    return _credit(group, base, information_weight * surprise)


def _unknown(group: Group, unit: str) -> Array:
    u = group.uncertainty
    if unit == "probability":
        return -jnp.expm1(-u)
    if unit == "share":
        there = is_kept(group)
        start = jnp.where(there, u[:, 0], 0.0).sum() / jnp.maximum(there.sum(), 1)
        return u / jnp.maximum(start, KNOWN)
    return u


# -------------------------------------------------------------------------- tokens by entropy


def gtpo(
    group: Group,
    key: Array | None = None,
    *,
    entropy_weight: float = 0.1,
    normalizer: str = "completions",
) -> Credit:
    """A_t = (r_t - mean) / (std + 1e-4) with r_t = r + alpha n_t H_t / sum_k H_kt where correct,
    and r_t = r - alpha n_t (1/H_t) / sum_k (1/H_kt) where wrong. Eq. 3 and 5 of arXiv:2508.04349.

    alpha is `entropy_weight`, H next-token entropy; the sums run over the n_t
    completions on the same side (correct or
    wrong) that have a token t. Sources disagree on mean and std: over all tokens of the group
    ("tokens"); over those of the correct and of the wrong completions apart ("sides": readers of
    its version 6; each side then has mean 0, and being right earns nothing); the IAPO authors add
    the entropy term to z(r), and multiply it by the completion's own length instead of n_t. The
    default "completions" counts each completion once, by the mean of its tokens: then alpha = 0 is
    GRPO exactly, and a comparison shows the entropy term alone.

    Raises:
      ValueError: for an unknown normalizer.
    """
    del key
    check_one_of("normalizer", normalizer, GTPO_NORMALIZERS)
    right, mask = group.correct[:, None], group.mask
    side = jnp.where(right == right[:, 0], 1.0, 0.0)  # [G, G]: the same side
    entropy = jnp.maximum(group.entropy, 0.0)  # a sum that cancels may end just below 0
    weight = jnp.where(mask, jnp.where(right, entropy, 1 / (entropy + 1e-8)), 0.0)
    over_side = lambda x: jnp.matmul(side, x, precision="highest")  # noqa: E731
    share = weight * over_side(mask.astype(jnp.float32)) / (over_side(weight) + 1e-8)
    shaped = entropy_weight * jnp.where(mask, jnp.where(right, share, -share), 0.0)
    base = group_advantage(group.reward, is_kept(group))
    if normalizer == "completions":
        advantage = _by_completions(group, shaped)
    else:
        # Only differences count; beside a large common reward a share would be rounded away.
        centered = group_advantage(group.reward, is_kept(group), scale_rewards="none")
        total = jnp.where(mask, centered[:, None] + shaped, 0.0)
        apart = mask & right if normalizer == "sides" else mask
        advantage = _by_tokens(total, apart) + _by_tokens(total, mask & ~apart)
    return _credit(group, base, advantage - base[:, None])


def _by_completions(group: Group, shaped: Array) -> Array:
    length = jnp.maximum(group.mask.sum(-1), 1)
    count = is_kept(group).sum()
    level = shaped.sum(-1) / length  # [G]
    centered = group_advantage(group.reward, is_kept(group), scale_rewards="none")
    apart = jnp.where(group.mask, shaped - level.sum() / jnp.maximum(count, 1), 0.0)
    total = centered[:, None] + apart
    unit = magnitude(total).squeeze()
    once, more = centered / unit, apart / unit
    square = once**2 + (2 * once * more.sum(-1) + (more**2).sum(-1)) / length
    std = unit * jnp.sqrt(jnp.maximum(square.sum(), 0.0) / jnp.maximum(count - 1, 1))
    return total / (std + REWARD_EPSILON)


def _by_tokens(x: Array, mask: Array) -> Array:
    count = jnp.maximum(mask.sum(), 1)
    centered = jnp.where(mask, x - jnp.where(mask, x, 0.0).sum() / count, 0.0)
    return centered / (root_mean_square(centered, count) + REWARD_EPSILON)
