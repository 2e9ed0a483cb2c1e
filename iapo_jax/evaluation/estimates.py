"""Every metric of a model, and its differences to a baseline, with intervals. No JAX."""

from collections.abc import Sequence
from typing import NamedTuple

from iapo_jax.evaluation import intervals
from iapo_jax.evaluation.intervals import Estimate, Resample
from iapo_jax.evaluation.matched_length import Matched, accuracy_at_matched_length
from iapo_jax.evaluation.metrics import Outcomes, Terms, metric_terms


class Measured(NamedTuple):
    """One model on one set of problems: all that its estimates are computed from."""

    outcomes: list[Outcomes]  # of each training seed
    terms: dict[str, list[Terms]]  # by metric, of each seed
    resamples: Resample


def measure(
    outcomes: Sequence[Outcomes],
    ks: Sequence[int] = (1,),
    budgets: Sequence[int] = (),
    *,
    stream: int = 0,
) -> Measured:
    """The seeds of one model on the same problems, ready for `estimates`.

    Args:
      ks, budgets: as for `metrics.metric_terms`.
      stream: of the draw of seeds (`intervals.resample`); each compared model has its own.
    """
    terms = [metric_terms(one, ks, budgets) for one in outcomes]
    return Measured(
        outcomes=list(outcomes),
        terms={name: [one[name] for one in terms] for name in terms[0]},
        resamples=intervals.resample(len(outcomes[0].correct), len(outcomes), stream=stream),
    )


def estimates(model: Measured) -> dict[str, Estimate]:
    """Every metric of the model."""
    return {name: intervals.estimate(terms, model.resamples) for name, terms in model.terms.items()}


def differences(model: Measured, base: Measured) -> dict[str, Estimate]:
    """Every metric of the model minus that of the baseline, paired by problem."""
    return {
        name: intervals.difference(terms, model.resamples, base.terms[name], base.resamples)
        for name, terms in model.terms.items()
    }


def at_matched_length(model: Measured, base: Measured) -> Matched:
    """`matched_length.accuracy_at_matched_length` of the two models."""
    return accuracy_at_matched_length(
        model.outcomes, model.resamples, base.outcomes, base.resamples
    )
