"""The schedule of the learning rate, by hand."""

import numpy as np
import pytest

from iapo_jax.config.sections import OptimizerSection
from iapo_jax.training.optimizer import make_schedule


@pytest.mark.parametrize(
    "kind, decayed",
    [
        ("constant", [8.0, 8.0, 8.0, 8.0]),
        ("linear", [8.0, 6.0, 4.0, 2.0]),  # it would be 0 at update 8, which does not run
        ("cosine", [8.0, 4 + 4 * np.cos(np.pi / 4), 4.0, 4 - 4 * np.cos(np.pi / 4)]),
    ],
)
def test_the_rate_rises_for_the_warmup_and_then_decays(kind, decayed):
    """Eight updates, four of them warm-up: 0 in the first, the peak in the fifth."""
    section = OptimizerSection(learning_rate=8.0, lr_scheduler_type=kind, warmup_steps=4)
    rates = [float(make_schedule(section, 8)(update)) for update in range(8)]
    np.testing.assert_allclose(rates, [0.0, 2.0, 4.0, 6.0, *decayed], rtol=1e-6)
    section = OptimizerSection(learning_rate=8.0, lr_scheduler_type=kind, warmup_steps=0)
    rates = [float(make_schedule(section, 4)(update)) for update in range(4)]
    np.testing.assert_allclose(rates, decayed, rtol=1e-6)
