"""docs/methods.md says what the code does: names, the table that is computed, the code in it."""

import importlib.util
import re
import sys

import jax
import numpy as np
import pytest
from groups import usual_group

from iapo_jax.algorithms.diagnostics import stop_margin
from iapo_jax.algorithms.methods import ALGORITHMS, make_algorithm

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "methods.md").read_text()


@pytest.fixture(scope="module")
def stopping(root):
    """experiments/stopping.py as a module."""
    spec = importlib.util.spec_from_file_location("stopping", root / "experiments" / "stopping.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["stopping"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["stopping"]


def rows_of(page, title):
    """Cells of the table whose head begins with `title`."""
    lines = page.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_method_is_on_the_page(page):
    named = [row[0].strip("`") for row in rows_of(page, "name")]
    assert sorted(named) == sorted(ALGORITHMS)
    for name in named:
        assert re.search(rf"\*\*`{name}`\*\*", page) or name in ("dapo", "gfpo", "s_grpo"), name


def test_the_table_says_what_a_method_is_made_of(page):
    losses = {"bnpo": "token mean", "dapo": "token mean", "grpo": "mean of means"}
    for name, shape, keep, _, token_mask, loss, probes, _ in rows_of(page, "name"):
        name = name.strip("`")
        algorithm = ALGORITHMS[name]

        def made(piece):
            return getattr(piece, "__name__", "")

        assert shape.strip("`") == made(algorithm.reward_shaping)
        expected = "dynamic sampling" if algorithm.dynamic_sampling else made(algorithm.filter)
        assert keep.strip("`") == expected
        assert token_mask.strip("`") == made(algorithm.token_mask)
        asks = "all" if algorithm.after_thinking else "thinking"
        asks += ", gold answer" if algorithm.estimator == "answer_log_prob" else ""
        assert probes == (asks if algorithm.needs_information else "")
        if loss.startswith("as "):
            assert algorithm.loss == ALGORITHMS[loss.removeprefix("as ").strip("`")].loss
            continue
        kind, clip, kl = loss.split(", ")
        assert kind == losses.get(algorithm.loss.loss_type, "sum / constant")
        low, _, high = clip.partition(" / ")
        found = (
            algorithm.loss.epsilon,
            algorithm.loss.epsilon_high,
            algorithm.loss.beta,
        )
        assert (float(low), float(high or low), float(kl)) == found


def test_a_chains_completions_are_as_it_says(stopping):
    chain = stopping.Chain(informative=2, check=3, stop=0.4, nats=2.0)
    completions = jax.jit(stopping.completions, static_argnames="chain")
    group = completions(chain, np.array([0, 1]))
    np.testing.assert_array_equal(group.mask.sum(-1), [5, 8])
    np.testing.assert_array_equal(group.thinking.sum(-1), [2, 5])
    np.testing.assert_allclose(group.informativeness[1, :6], [1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(group.uncertainty[0, :4], [2, 1, 0, 0])
    scores = jax.jit(stopping.scores, static_argnames="chain")(chain, np.array([0, 1]))
    # stops at the third token; goes on at the third and stops at the sixth
    np.testing.assert_allclose(scores[0, :6], [0, 0, 0.6, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(scores[1, :8], [0, 0, -0.4, 0, 0, 0.6, 0, 0], atol=1e-6)
    drawn = np.asarray(stopping.draw_checks(chain, jax.random.key(0), (20_000,)))
    np.testing.assert_allclose((drawn == 0).mean(), 0.4, atol=0.02)
    np.testing.assert_allclose((drawn == 1).mean(), 0.24, atol=0.02)
    told = completions(chain._replace(told_by_check=0.6), np.array([1]))
    np.testing.assert_allclose(told.informativeness[0, :6], [1, 1, 0.2, 0.2, 0.2, 0], atol=1e-6)


def test_the_published_rule_pushes_away_from_stopping_as_argued(stopping):
    # One completion at a time: z over its T tokens, of which n tell 1/n of the nats each, gives
    # the others -sqrt(n / (T - n)), but for the 1e-4 beside the std, that is
    # (nats / T) sqrt((T - n) / n). Summed over the number of checks, by hand.
    chain = stopping.Chain()
    n, p, expected = chain.informative, chain.stop, 0.0
    for checks in range(stopping.MOST + 1):
        chance = (1 - p) ** checks * (p if checks < stopping.MOST else 1.0)
        length = n + checks * chain.check + stopping.ANSWER
        mean = chain.nats / length
        others = -mean / (mean * np.sqrt((length - n) / n) + 1e-4)
        stops = 1 - p if checks < stopping.MOST else 0.0
        expected += chance * others * (stops - p * checks)
    algorithm = make_algorithm("iapo", {"information_weight": 1.0, "exploration_weight": 0.0})
    np.testing.assert_allclose(stopping.exact_push(algorithm, chain), expected, rtol=1e-4)
    assert expected < -0.1
    drawn = stopping.push(algorithm, chain, groups=2000)
    assert abs(drawn.push - expected) < 4 * drawn.error
    assert abs(drawn.covariance) < 1e-3  # what the theorem looks at does not see it
    # and what is logged does: less bonus for stopping than for going on
    group = jax.jit(stopping.completions, static_argnames="chain")(chain, np.arange(4))
    stop, rivals = jax.jit(lambda group: stop_margin(group, algorithm.credit(group)))(group)
    assert float(stop.value()) < float(rivals.value())


def test_the_price_pushes_towards_stopping(stopping):
    algorithm = make_algorithm("iapo_priced", {"information_weight": 1.0})
    drawn = stopping.push(algorithm, stopping.Chain(), groups=200)
    assert drawn.push > 10 * drawn.error


def written(cell):
    """A number of the page and its standard error."""
    value, _, error = cell.replace(" ", "").partition("±")
    return float(value), float(error or 0.0)


def test_the_pages_table_is_what_is_computed(page, stopping):
    """Exactly where one completion is all that counts, else drawn again with another seed."""
    rows = rows_of(page, "method | options")
    assert [row[0].strip("`") for row in rows] == [name for name, *_ in stopping.CASES]
    for row, (name, options, alone) in zip(rows, stopping.CASES, strict=True):
        assert row[1] == ", ".join(f"{key} {value}" for key, value in options.items())
        algorithm = make_algorithm(name, options, max_length=stopping.Chain().width)
        for cell, chain in zip(row[2:4], stopping.CHAINS.values(), strict=True):
            assert chain.width == stopping.Chain().width
            value, error = written(cell)
            if alone:
                assert abs(value - stopping.exact_push(algorithm, chain)) < 4 * error + 1e-3, row
            else:
                drawn = stopping.push(algorithm, chain, groups=400, seed=7)
                assert abs(value - drawn.push) < 4 * (error + drawn.error) + 1e-3, row
        if not alone or "normalizer" in options or name == "iapo_reference":
            drawn = stopping.push(algorithm, chain, groups=400, seed=8)
            assert drawn.covariance == pytest.approx(float(row[4]), rel=0.25, abs=0.05), row


def test_the_rule_on_the_page_works(page):
    code = re.search(r"```python\n(.*?)```", page, re.S).group(1)
    names = {}
    exec(code, names)  # noqa: S102
    group = usual_group()
    credit = make_algorithm(names["early"], {"discount": 0.5}).credit(group)
    np.testing.assert_allclose(credit.advantage[0, 1] / credit.advantage[0, 0], 0.5, rtol=1e-6)
    assert (np.asarray(credit.advantage)[~np.asarray(group.mask)] == 0).all()
