"""Named methods: a credit rule, its options, and the loss that its paper uses."""

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from iapo_jax import advantages
from iapo_jax.losses import LOSS_TYPES, LossOptions
from iapo_jax.types import Credit


class Algorithm(NamedTuple):
    """What makes a method; all pure values."""

    advantage: Callable[..., Credit]  # (Group of one prompt, key) -> Credit
    loss: LossOptions
    needs_information: bool = False  # whether `Group.uncertainty` must be computed


ALGORITHMS: dict[str, Algorithm] = {
    # DeepSeekMath, arXiv:2402.03300; KL weight 0.04 as there.
    "grpo": Algorithm(advantages.grpo, LossOptions("grpo", 0.2, 0.2, 0.04)),
    # arXiv:2602.19049: token mean, clip-higher, KL 0.001.
    "iapo": Algorithm(advantages.iapo, LossOptions("bnpo", 0.2, 0.28, 0.001), True),
    # Ours: IAPO's information as a return, with a price for each token.
    "iapo_priced": Algorithm(advantages.iapo_priced, LossOptions("bnpo", 0.2, 0.28, 0.001), True),
}


def make_algorithm(name: str, options: dict[str, Any], **loss: Any) -> Algorithm:
    """The named algorithm with the rule's `options` bound and `loss` fields (not None) replaced.

    Raises:
      ValueError: one sentence that names the nearest known name.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm.name is {name!r}; {_nearest(name, list(ALGORITHMS))}")
    algorithm = ALGORITHMS[name]
    parameters = inspect.signature(algorithm.advantage).parameters
    defaults = {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    for key, value in options.items():
        if key not in defaults:
            raise ValueError(f"algorithm.options.{key} is unknown; {_nearest(key, list(defaults))}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        expected = float if isinstance(defaults[key], float) else type(defaults[key])
        if not (number if expected is float else isinstance(value, expected)):
            raise ValueError(
                f"algorithm.options.{key} is {value!r}; expected {expected.__name__}, "
                f"such as {defaults[key]!r}"
            )
    chosen = {field: value for field, value in loss.items() if value is not None}
    if chosen.get("loss_type", "grpo") not in LOSS_TYPES:
        found = chosen["loss_type"]
        raise ValueError(f"algorithm.loss_type is {found!r}; {_nearest(found, LOSS_TYPES)}")
    return algorithm._replace(
        advantage=partial(algorithm.advantage, **options) if options else algorithm.advantage,
        loss=algorithm.loss._replace(**chosen),
    )


def _nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
