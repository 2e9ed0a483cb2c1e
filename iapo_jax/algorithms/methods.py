"""Named methods: a credit rule and the pieces around it, each a pure function.

    reward -> reward_shaping -> filter -> advantage (the rule) -> token_mask -> loss

To add a method, write a rule `(Group, key, *, options) -> Credit`, or build an `Algorithm`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from iapo_jax.algorithms import (
    advantages,
    filters,
    information_advantages,
    reward_shaping,
    token_price,
)
from iapo_jax.algorithms.adaptation import ADAPTATIONS, Adaptation
from iapo_jax.algorithms.options import (
    accepted_by,
    bind_options,
    cached,
    check_complete,
    check_options,
    nearest,
    parameters_of,
)
from iapo_jax.algorithms.policy_loss import LOSS_TYPES, LossOptions
from iapo_jax.types import Array, Credit, Group


class Algorithm(NamedTuple):
    """The pieces of a method, all pure values. Only `advantage` and `loss` are required."""

    advantage: Callable[..., Credit]  # (Group of one prompt, key) -> Credit
    loss: LossOptions
    reward_shaping: Callable[..., Array] | None = None  # Group -> reward [G]
    filter: Callable[..., Array] | None = None  # Group -> [G] bool; others get no advantage
    token_mask: Callable[..., Array] | None = None  # (Group, key) -> [G, T] bool
    adapt: Adaptation | None = None  # of hyper-parameters that adapt during the run
    needs_information: bool = False  # whether `Group.uncertainty` must be computed
    estimator: str = "answer_entropy"  # computes it, unless the config names another
    after_thinking: bool = False  # whether it is also computed after the end of thinking
    dynamic_sampling: bool = False  # whether groups all correct or all incorrect are replaced
    source: str = ""

    def credit(self, group: Group, key: Array | None = None, **settings: Array) -> Credit:
        """Applies the entire method to one group; it has the signature of a rule.

        Args:
          settings: those of `adapt`; each piece gets the ones that it accepts.
        """

        def call(piece: Callable, *arguments: Any) -> Any:
            return piece(*arguments, **accepted_by(piece, settings))

        if self.reward_shaping is not None:
            group = group._replace(reward=call(self.reward_shaping, group))
        chosen = group
        if self.filter is not None:
            chosen = filters.select(group, call(self.filter, group))
        credit = call(self.advantage, chosen, key)
        if not isinstance(credit, Credit):
            return credit  # from a user's rule; the trainer reports the error
        credit = _inside(credit, chosen.mask)
        if self.filter is not None:  # others stay in the loss and the KL with advantage 0
            left_out = group.mask & ~chosen.mask
            credit = credit._replace(weight=jnp.where(left_out, 1.0, credit.weight))
        if self.token_mask is not None:
            mask = call(self.token_mask, group, key)
            credit = credit._replace(weight=credit.weight * mask)
        return credit

    def pieces(self) -> dict[str, Callable]:
        """The pieces of this method, by field."""
        named = {
            name: getattr(self, name)
            for name in ("reward_shaping", "filter", "advantage", "token_mask")
        }
        return {name: piece for name, piece in named.items() if piece is not None}


def _inside(credit: Credit, mask: Array) -> Credit:
    """The credit, set to 0 on padding and in completions that a filter has left out."""

    def hide(x: Array) -> Array:
        return jnp.where(mask, x, jnp.zeros_like(x)) if x.shape == mask.shape else x

    return jax.tree.map(hide, credit)


# The paper's loss: token mean, clip-higher, KL 0.001.
_IAPO_LOSS = LossOptions("bnpo", 0.2, 0.28, 0.001)
_GRPO_LOSS = LossOptions("grpo", 0.2, 0.2, 0.04)

ALGORITHMS: dict[str, Algorithm] = {
    # z(r) + information + exploration, z-scored over the completion.
    "iapo": Algorithm(
        information_advantages.iapo, _IAPO_LOSS, needs_information=True, source="arXiv:2602.19049"
    ),
    # As the authors' code computes it, mistakes included; probes the entire completion.
    "iapo_reference": Algorithm(
        information_advantages.iapo_reference,
        _IAPO_LOSS,
        needs_information=True,
        after_thinking=True,
        source="github.com/YinhanHe123/IAPO, g2rpo_trainer.py",
    ),
    # Ablation: no information, exploration alone.
    "iapo_ni": Algorithm(
        partial(information_advantages.iapo, information_weight=0.0, information="answer"),
        _IAPO_LOSS,
        source="arXiv:2602.19049, ablation NI",
    ),
    # Ablation: the decrease of next-token entropy instead of information.
    "iapo_ne": Algorithm(
        partial(information_advantages.iapo, information="next_token"),
        _IAPO_LOSS,
        source="arXiv:2602.19049, ablation NE",
    ),
    # Control: the information values of a completion in random order.
    "iapo_shuffled": Algorithm(
        partial(information_advantages.iapo, information="shuffled"),
        _IAPO_LOSS,
        needs_information=True,
        source="ours: a control",
    ),
    # Control: noise with the mean and variance of the information.
    "iapo_random": Algorithm(
        partial(information_advantages.iapo, information="random"),
        _IAPO_LOSS,
        needs_information=True,
        source="ours: a control",
    ),
    # Information as a return, with a price for each token; `algorithm.adapt` can adapt the price.
    "iapo_priced": Algorithm(
        token_price.iapo_priced,
        _IAPO_LOSS,
        needs_information=True,
        estimator="answer_log_prob",
        source="ours",
    ),
    # z(r); mean over tokens, then completions; KL 0.04.
    "grpo": Algorithm(advantages.grpo, _GRPO_LOSS, source="arXiv:2402.03300"),
    # r - mean; sum over tokens divided by a constant; no KL.
    "dr_grpo": Algorithm(
        partial(advantages.grpo, scale_rewards="none"),
        LossOptions("dr_grpo", 0.2, 0.2, 0.0),
        source="arXiv:2503.20783",
    ),
    # Leave-one-out; a completion is one action, so tokens are summed (the constant only scales).
    # The paper puts the KL into the reward; here it is in the loss, with TRL's weight.
    "rloo": Algorithm(
        advantages.rloo, LossOptions("dr_grpo", 0.2, 0.2, 0.05), source="arXiv:2402.14740"
    ),
    # z(r), soft overlong penalty, dynamic sampling, clip-higher, token mean, no KL.
    "dapo": Algorithm(
        advantages.grpo,
        LossOptions("dapo", 0.2, 0.28, 0.0),
        reward_shaping=reward_shaping.overlong,
        dynamic_sampling=True,
        source="arXiv:2503.14476",
    ),
    # z(r) over the shortest (or most efficient) part of the group; token mean, KL 0.001.
    "gfpo": Algorithm(
        advantages.grpo,
        LossOptions("dapo", 0.2, 0.2, 0.001),
        filter=filters.keep_best,
        source="arXiv:2508.09726",
    ),
    # z(r +- entropy shares); DAPO's clip and token mean.
    "gtpo": Algorithm(
        advantages.gtpo, LossOptions("dapo", 0.2, 0.28, 0.0), source="arXiv:2508.04349"
    ),
    # GRPO on a random part of the tokens.
    "s_grpo": Algorithm(
        advantages.grpo,
        _GRPO_LOSS,
        token_mask=filters.stochastic_tokens,
        source="arXiv:2504.20834",
    ),
    # RLOO on a reward that falls with relative length; the paper warns against dividing by the std.
    "length_penalty": Algorithm(
        advantages.rloo,
        LossOptions("dr_grpo", 0.2, 0.2, 0.001),
        reward_shaping=reward_shaping.length_penalty,
        source="arXiv:2502.04463",
    ),
    # z(r), where a correct answer must come within the cap; DAPO's loss.
    "length_cap": Algorithm(
        advantages.grpo,
        LossOptions("dapo", 0.2, 0.28, 0.0),
        reward_shaping=reward_shaping.length_cap,
        source="arXiv:2504.01296, arXiv:2510.15110",
    ),
    # z(r), where a correct answer is rewarded for what is left of its budget; GRPO's loss.
    "l1_max": Algorithm(
        advantages.grpo, _GRPO_LOSS, reward_shaping=reward_shaping.l1_max, source="arXiv:2503.04697"
    ),
}

OWN = Algorithm(advantages.grpo, _IAPO_LOSS, needs_information=True, source="your own")
# A user's rule gets IAPO's loss, so that a comparison with `iapo` compares only the rules.


def make_algorithm(
    method: str | Callable[..., Credit] | Algorithm,
    options: dict[str, Any] | None = None,
    *,
    adapt: str | None = None,
    max_length: int | None = None,
    dynamic_sampling: bool | None = None,
    **loss: Any,
) -> Algorithm:
    """A method with its `options` bound to the pieces that accept them.

    Args:
      method: a name of ALGORITHMS, a rule `(group, key, *, options) -> Credit`, or an Algorithm.
      options: hyper-parameters of the pieces, and of the adaptation.
      adapt: a name of ADAPTATIONS.
      max_length: longest completion in tokens, for the pieces that need it.
      dynamic_sampling, loss: fields of the Algorithm and of its LossOptions to replace, where they
        are not None.

    Returns:
      An Algorithm; equal arguments give equal ones, so that `jax.jit` reuses its programs.

    Raises:
      ValueError: one sentence that names the field and, for a misspelled name, the nearest.

    >>> algorithm = make_algorithm("iapo", {"information_weight": 0.1}, beta=0.0)
    >>> algorithm.loss.beta, algorithm.advantage.keywords
    (0.0, {'information_weight': 0.1})
    """
    algorithm, name = _find(method)
    options = dict(options or {})
    pieces: dict[str, Callable] = algorithm.pieces()
    makers = {"adapt": _adaptation_maker(adapt)} if adapt is not None else {}
    check_options(name, options, {**pieces, **makers})
    if max_length is not None:
        options |= {"max_length": max_length}
    bound = {field: bind_options(piece, options) for field, piece in pieces.items()}
    for field, piece in bound.items():
        check_complete(name, pieces[field], options, needs_length=max_length is None)
        algorithm = algorithm._replace(**{field: piece})
    if adapt is not None:
        check_complete(f"algorithm.adapt={adapt}", makers["adapt"], options)
        try:
            made = cached(makers["adapt"], **accepted_by(makers["adapt"], options))
        except ValueError as error:
            raise ValueError(f"algorithm.options.{error}") from None
        _check_fit(name, adapt, made, pieces)
        algorithm = algorithm._replace(adapt=made)
    if dynamic_sampling is not None:
        algorithm = algorithm._replace(dynamic_sampling=dynamic_sampling)
    if algorithm.adapt is not None and algorithm.dynamic_sampling:
        raise ValueError(
            f"algorithm.adapt ({adapt or 'set by the algorithm'}) needs unfiltered samples of the "
            "policy, but algorithm.dynamic_sampling discards groups that are all correct or all "
            "incorrect; expected only one of the two"
        )
    if not isinstance(algorithm.loss, LossOptions):
        raise ValueError(f"{name}: loss is {algorithm.loss!r}; expected LossOptions")
    chosen = {field: value for field, value in loss.items() if value is not None}
    made_loss = algorithm.loss._replace(**chosen)
    if made_loss.loss_type not in LOSS_TYPES:
        found = made_loss.loss_type
        raise ValueError(f"algorithm.loss_type is {found!r}; {nearest(str(found), LOSS_TYPES)}")
    return algorithm._replace(loss=made_loss)


def _find(method: str | Callable[..., Credit] | Algorithm) -> tuple[Algorithm, str]:
    if isinstance(method, Algorithm):
        return method, "the algorithm"
    if callable(method):
        name = getattr(method, "__name__", type(method).__name__)
        if getattr(type(method), "__hash__", None) is None:
            method = partial(method)  # jit needs a hash
        return OWN._replace(advantage=method), name
    if method not in ALGORITHMS:
        raise ValueError(f"algorithm.name is {method!r}; {nearest(method, list(ALGORITHMS))}")
    return ALGORITHMS[method], method


def _adaptation_maker(name: str) -> Callable[..., Adaptation]:
    if name not in ADAPTATIONS:
        raise ValueError(f"algorithm.adapt is {name!r}; {nearest(name, list(ADAPTATIONS))}")
    return ADAPTATIONS[name]


def _check_fit(name: str, adapt: str, made: Adaptation, pieces: dict[str, Callable]) -> None:
    known = {key for piece in pieces.values() for key in parameters_of(piece)}
    # Shapes alone: nothing may be computed before jax.distributed has begun.
    for setting in jax.eval_shape(lambda: made.settings(made.init())):
        if setting not in known:
            raise ValueError(f"algorithm.adapt is {adapt!r}, but {name} has no {setting} to adapt")
