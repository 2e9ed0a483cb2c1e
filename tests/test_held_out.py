"""The table before and after a run."""

import numpy as np
from test_summary import record

from iapo_jax.evaluation.summary import before_and_after


def test_the_table_says_what_was_measured():
    cut = np.ones((4, 1), bool)
    cut[3] = False
    fields = dict(rows=range(4), settings={"num_samples": 1}, answers=list("1234"))

    def one(x):
        return [[v] for v in x]

    before = record(
        **fields,
        correct=one([True, False, True, False]),
        length=one([20] * 4),
        finished=cut.tolist(),
        votes=one([0, 1, 0, 1]),
    )
    after = record(
        **fields,
        correct=one([True] * 4),
        length=one([10] * 4),
        finished=one([True] * 4),
        votes=one([0] * 4),
    )
    lines = before_and_after(before, after).splitlines()
    assert lines[0].split() == ["before", "after", "difference"]
    accuracy, length, ratio, limit, count = lines[1:]
    assert accuracy.startswith("accuracy ") and "0.500 [" in accuracy and "+0.500 [" in accuracy
    assert "1.000 [0.398, 1.000]" in accuracy  # 0.025^(1/4): four of four prove little
    assert "20.0 [20.0, 20.0]" in length and "-10.0 [-10.0, -10.0]" in length
    assert "10.00 [10.00, 10.00]" in ratio  # 1.0 / 10 tokens
    assert limit.split()[-2:] == ["25.0%", "0.0%"]
    assert count.startswith("4 held-out problems, 1 sample each")
