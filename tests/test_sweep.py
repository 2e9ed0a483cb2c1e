"""The experiment: its plan, what is chosen, what is left to do, its figures, and one real run."""

import argparse
import contextlib
import csv
import importlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iapo_jax import ALGORITHMS
from iapo_jax.algorithms.methods import make_algorithm
from iapo_jax.config.checks import check_config
from iapo_jax.config.loading import load_config
from iapo_jax.config.train import TrainConfig
from iapo_jax.errors import UserError
from iapo_jax.evaluation.metrics import Outcomes, pass_at_k
from iapo_jax.runtime.interruption import Stopped
from iapo_jax.runtime.plugins import load
from iapo_jax.types import Group

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "arithmetic"
SETTINGS = ("chain", "easy", "hard", "growing")
BONUSES = ("stop_bonus", "rival_bonus", "length_bonus_covariance")
MODULES = (
    "plan",
    "problems",
    "records",
    "archive",
    "store",
    "choose",
    "queue",
    "analysis",
    "tables",
    "findings",
    "pictures",
)


@pytest.fixture(scope="module")
def sweep():
    """The sweep's modules by name (`experiments` is no package)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {
            name: importlib.import_module(f"sweep.{name}")
            for name in (*MODULES, "measure", "execute", "pages")
        }
        for name in [n for n in sys.modules if n.partition(".")[0] in ("sweep", "testbed")]:
            del sys.modules[name]


def outcomes(seed=0, accuracy=0.8, length=40, problems=60, samples=4):
    rng = np.random.default_rng(seed)
    correct = rng.random((problems, samples)) < accuracy
    lengths = rng.integers(length - 9, length + 10, (problems, samples))
    return Outcomes(correct, lengths, rng.random(correct.shape) < 0.9, np.where(correct, 0, 1))


def result(sweep, job, split="select", **drawn):
    kinds = {name: 1.0 for name in importlib.import_module("testbed.categories").READ}
    curves = {name: [50.0, 40.0, 30.0] for name in ("length", "accuracy", "sampled_tokens")}
    nats = {"nats": kinds, "tokens": kinds, "profile": [0.1] * 10, "completions": 4}
    config = "" if job.method == "start" else sweep["records"].config_of(job)
    told = dict(config=config, updates=3, sampled_tokens=99, seconds=1.0)
    digest_of = sweep["problems"].digest_of
    splits = sweep["plan"].splits_of(job)
    told["problems"] = {name: digest_of(job.setting, name) for name in splits}
    return sweep["records"].Result(
        *job,
        **told,
        outcomes={split: outcomes(**drawn)},
        categories=kinds,
        information=nats,
        curves=curves,
    )


# ------------------------------------------------------------------------------------ plan


def test_the_core_runs_everywhere_and_everything_in_easy(sweep):
    plan = sweep["plan"]
    assert all(set(plan.CORE) <= set(plan.methods_of(name)) for name in SETTINGS)
    assert set(plan.methods_of("easy")) == {*ALGORITHMS, plan.SHUFFLED, plan.ZERO}
    assert "l1_max" in plan.methods_of("hard")
    assert set(plan.SCALES) == {*SETTINGS, "large"} and plan.methods_of("large") == plan.CORE


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_method_has_a_grid_of_four_configs(sweep, setting):
    plan = sweep["plan"]
    limit = importlib.import_module("testbed.settings").SETTINGS[setting].max_length
    for method in plan.methods_of(setting):
        seen = set()
        for chosen in plan.grid(setting, method):
            options = {name: value for name, value in chosen.items() if "." not in name}
            fields = {k.partition(".")[2]: v for k, v in chosen.items() if k.startswith("algo")}
            rule = plan.RULES.get(method, method)
            rule = rule if rule in ALGORITHMS else load(str(ROOT / rule), "rule")
            made = make_algorithm(rule, options, max_length=limit, **fields)
            rate = chosen.get("optimizer.learning_rate")
            seen.add((str(options), made.loss, made.dynamic_sampling, rate))
        assert len(seen) == 4
    for job in plan.final_jobs(setting, "gfpo", 1)[:1] + plan.grid_jobs(setting)[-1:]:
        config = load_config(TrainConfig, str(FOLDER / "testbed.yaml"), plan.overrides(job))
        check_config(config)
        assert config.algorithm.name == plan.RULES.get(job.method, job.method)
        chosen = plan.grid(setting, job.method)[job.choice]
        own = {name: value for name, value in chosen.items() if "." not in name}
        assert config.algorithm.options == own and config.seed == job.seed
        assert ROOT / config.data.dataset == sweep["problems"].file_of(setting, "train")


def test_the_same_start_prompts_and_budget(sweep):
    """Configs of a setting differ in the method and the seed alone; baselines also try twice the
    learning rate."""
    plan = sweep["plan"]
    fast = ("grpo", "dr_grpo", "rloo", plan.FAST)
    for setting in SETTINGS:
        rest = set()
        for job in plan.grid_jobs(setting) + plan.final_jobs(setting, "gfpo", 1):
            method = ("algorithm.", "information.", "optimizer.")
            rate = next(text for text in plan.overrides(job) if text.startswith("optimizer."))
            rate = float(rate.partition("=")[2]) / plan.SCALES[setting].learning_rate
            assert rate == 1 or (rate == 2 and job.method in fast)
            own = [text for text in plan.overrides(job) if not text.startswith(method)]
            rest.add(tuple(text for text in own if not text.startswith("seed=")))
        assert len(rest) == 1 and "max_sampled_tokens" in str(rest)


def test_the_large_setting_has_the_same_methods_and_more_of_everything(sweep):
    """Its data and initial model are made on a GPU, so its configs alone are looked at."""
    plan = sweep["plan"]
    for job in plan.grid_jobs("large"):
        config = load_config(TrainConfig, str(FOLDER / "testbed.yaml"), plan.overrides(job))
        check_config(config)
        assert config.model.dtype == "bfloat16" and config.sampling.max_completion_length == 384
        assert config.batch.prompts_per_step == 2 * plan.PROMPTS and config.data.max_prompt_length


def test_final_seeds_are_fresh(sweep):
    plan = sweep["plan"]
    jobs = plan.final_jobs("easy", "grpo", 2)
    assert [job.seed for job in jobs] == [0, 1, 2, 3, 4] and all(job.final for job in jobs)
    assert len(plan.final_jobs("easy", "gfpo", 0)) == 3
    assert not any(job.final for job in plan.grid_jobs("easy"))
    config = load_config(TrainConfig, str(FOLDER / "testbed.yaml"))
    shape = config.batch.prompts_per_step, config.batch.num_generations, config.max_steps
    assert shape == (plan.PROMPTS, plan.GENERATIONS, plan.STEPS)


# ---------------------------------------------------------------------------------- choice


def test_the_shortest_of_the_most_accurate_is_chosen(sweep):
    job = sweep["plan"].Job

    def grid(*points):
        made = []
        for choice, (right, length) in enumerate(points):
            correct = (np.arange(1000) < right)[:, None]
            o = Outcomes(correct, np.full((1000, 1), length), correct, np.where(correct, 0, 1))
            one = result(sweep, job("easy", "gfpo", choice, 100))
            made.append(one._replace(outcomes={"select": o}))
        return sweep["choose"].choose(made).choice

    assert grid((950, 40), (931, 30), (929, 10), (500, 3)) == 1  # 0.02 below the best, not more
    assert grid((950, 40), (900, 30), (800, 20), (700, 10)) == 0
    assert grid((950, 40), (950, 40), (940, 40), (700, 10)) == 0  # equally short: the more accurate
    assert grid((930, 20), (950, 30), (945, 20), (700, 10)) == 2


# --------------------------------------------------------------------------------- records


def test_a_result_is_written_and_read_back(sweep, tmp_path):
    job = sweep["plan"].Job("easy", "gfpo", 3, 1)
    one = result(sweep, job, "test", problems=37, samples=3)
    sweep["records"].write(tmp_path, one)
    path = tmp_path / "easy" / "gfpo-3-seed1.json"
    read = sweep["records"].read(path)
    assert read._replace(outcomes={}) == one._replace(outcomes={}) and read.job == job
    for mine, theirs in zip(read.outcomes["test"], one.outcomes["test"], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert list(sweep["store"].read_all(tmp_path, "easy"))[0].job == job


def test_results_in_one_file_are_read_back(sweep, tmp_path):
    plan, archive, store = sweep["plan"], sweep["archive"], sweep["store"]
    jobs = [plan.Job("easy", "gfpo", 3, seed) for seed in (2, 0, 1)]
    written = [result(sweep, job, "test", problems=37, samples=3, seed=job.seed) for job in jobs]
    stale = written[0]._replace(config="another", information={}, problems={}, seconds=7)
    path = tmp_path / "results.parquet"
    archive.save(path, [archive.Row(stale, withdrawn=True), *map(archive.Row, written)])
    read = list(store.read_all(path, "easy"))
    assert [one.seed for one in read] == [0, 1, 2]
    for one, other in zip(sorted(written, key=lambda one: one.seed), read, strict=True):
        assert other._replace(outcomes={}) == one._replace(outcomes={})
        for mine, theirs in zip(one.outcomes["test"], other.outcomes["test"], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert store.find(path, jobs[1]).seed == 0 and store.is_written(path, jobs[1])
    assert store.find(path, jobs[1]._replace(choice=2)) is None
    assert [row.result.seconds for row in archive.load(path) if row.withdrawn] == [7]


def test_a_replaced_result_is_withdrawn_unless_it_repeats_the_config_and_the_problems(sweep):
    archive, job = sweep["archive"], sweep["plan"].Job("easy", "gfpo", 3, 0)
    old = result(sweep, job, "test", seed=1)
    other = result(sweep, job._replace(seed=1), "test")

    def merge(new):
        return [
            (row.result.config, row.withdrawn)
            for row in archive.merge(map(archive.Row, (old, other)), [new])
        ]

    assert merge(old._replace(seconds=9.0)) == [(other.config, False), (old.config, False)]
    changed = [(old.config, True), (other.config, False), ("changed", False)]
    assert merge(old._replace(config="changed")) == changed
    moved = old._replace(problems={"test": "moved"})
    assert merge(moved) == [(old.config, True), (other.config, False), (old.config, False)]


def test_the_published_file_names_the_published_problems(sweep):
    """Each result that a table counts was measured on files that SHA256SUMS lists."""
    rows = sweep["archive"].load(FOLDER / "results.parquet")
    assert len(rows) == 426 and sum(row.withdrawn for row in rows) == 16
    published = {digest[:12] for digest in sweep["problems"].published().values()}
    counted = [row.result for row in rows if not row.withdrawn and row.result.setting != "large"]
    current = [one for one in counted if sweep["records"].is_current(one)]
    assert len(current) > 350
    assert all(set(one.problems.values()) <= published for one in current)


# ----------------------------------------------------------------------------------- queue


def finish_jobs(sweep, directory, jobs, split="select"):
    for n, job in enumerate(jobs):
        sweep["records"].write(directory, result(sweep, job, split, seed=n, length=40 + n))


def test_last_runs_wait_for_their_grid(sweep, tmp_path):
    queue, plan = sweep["queue"], sweep["plan"]

    def ready():
        return list(queue.ready(["chain"], tmp_path))

    assert ready() == [queue.start_job("chain"), *plan.grid_jobs("chain")]
    grpo = [job for job in plan.grid_jobs("chain") if job.method == "grpo"]
    finish_jobs(sweep, tmp_path, [queue.start_job("chain"), *grpo[:3]])
    assert ready()[0] == grpo[3] and not any(job.final for job in ready())
    finish_jobs(sweep, tmp_path, grpo)
    chosen = sweep["choose"].choose(
        [sweep["records"].read(p) for p in [sweep["records"].path_of(tmp_path, j) for j in grpo]]
    )
    assert ready()[:5] == plan.final_jobs("chain", "grpo", chosen.choice)
    finish_jobs(sweep, tmp_path, plan.final_jobs("chain", "grpo", chosen.choice)[:2], "test")
    assert [job.seed for job in ready()[:3]] == [2, 3, 4]
    assert queue.done(["chain"], tmp_path) == 7
    assert queue.total(["chain"]) == 1 + 8 * 4 + 6 * 3 + 2 * 5


def test_methods_can_be_named(sweep, tmp_path):
    queue, plan = sweep["queue"], sweep["plan"]
    asked = ["chain"], tmp_path, ["iapo_priced", "iapo_shuffled"]
    names = {job.method for job in queue.ready(*asked)}
    assert names == {"start", "iapo_priced", "iapo_shuffled"}
    assert queue.total(["chain"], asked[2]) == 1 + 4 + 5 + 4 + 3
    grid = [job for job in plan.grid_jobs("chain") if job.method in ("grpo", "iapo_priced")]
    finish_jobs(sweep, tmp_path, [queue.start_job("chain"), *grid])
    assert queue.done(*asked) == 5 and queue.done(*asked[:2]) == 9
    with queue.claimed(asked[0], tmp_path, tmp_path / "work", asked[2]) as job:
        assert job.method in asked[2]


def test_the_careful_one_runs_again_at_the_most_accurate_point_of_the_fast_one(sweep, tmp_path):
    queue, plan, records = sweep["queue"], sweep["plan"], sweep["records"]
    grid = [job for job in plan.grid_jobs("growing") if job.method == plan.FAST]
    assert len(grid) == 4 and all(job.method != plan.CAREFUL for job in plan.grid_jobs("growing"))
    for job, right, length in zip(grid, (990, 980, 975, 500), (40, 30, 20, 10), strict=True):
        correct = (np.arange(1000) < right)[:, None]
        drawn = Outcomes(correct, np.full((1000, 1), length), correct, np.where(correct, 0, 1))
        one = result(sweep, job)
        records.write(tmp_path, one._replace(outcomes={"select": drawn}))
    assert queue.chosen("growing", plan.FAST, tmp_path) == 2
    assert queue.chosen("growing", plan.CAREFUL, tmp_path) == 0
    ready = [job for job in queue.ready(["growing"], tmp_path) if job.method == plan.CAREFUL]
    assert ready == [plan.Job("growing", plan.CAREFUL, 0, seed) for seed in range(10)]
    new = [job for job in ready if job.seed >= 5]
    assert new == plan.confirming_jobs("growing", plan.CAREFUL, 0) and new[0].final
    assert plan.splits_of(new[0]) == ["test"]
    assert plan.overrides(ready[0]) == plan.overrides(grid[0]._replace(seed=0))
    assert queue.total(["growing"], [plan.FAST, plan.CAREFUL]) == 1 + 4 + 3 + 5 + 5


def test_a_control_runs_again_at_what_was_chosen_for_its_method(sweep, tmp_path):
    queue, plan = sweep["queue"], sweep["plan"]
    grid = [job for job in plan.grid_jobs("chain") if job.method == "iapo"]
    for job in grid:
        drawn = dict(accuracy=0.8, length=30 if job.choice == 2 else 50)
        sweep["records"].write(tmp_path, result(sweep, job, **drawn))
    control = [job for job in queue.ready(["chain"], tmp_path) if job.method == "iapo_shuffled"]
    assert {job.choice for job in control if job.final} == {2} and len(control) == 4 + 3


def test_a_result_of_another_config_is_not_done(sweep, tmp_path):
    queue, job = sweep["queue"], sweep["plan"].grid_jobs("chain")[1]
    one = result(sweep, job)
    sweep["records"].write(tmp_path, one)
    assert sweep["store"].is_written(tmp_path, job) and queue.done(["chain"], tmp_path) == 1
    sweep["records"].write(tmp_path, one._replace(problems={"select": "of before"}))
    assert not sweep["store"].is_written(tmp_path, job)
    sweep["records"].write(tmp_path, one._replace(config=one.config + " max_steps=3"))
    assert not sweep["store"].is_written(tmp_path, job) and queue.done(["chain"], tmp_path) == 0
    assert job in queue.ready(["chain"], tmp_path)


def test_a_disk_without_locks_is_refused(sweep, tmp_path, monkeypatch):
    queue = sweep["queue"]

    def unlocked(*_, **__):
        return contextlib.nullcontext(False)

    monkeypatch.setattr(queue, "file_lock", unlocked)
    with (
        pytest.raises(UserError, match="without locks, so two workers might"),
        queue.claimed(["chain"], tmp_path, tmp_path),
    ):
        pass


def test_two_workers_never_do_the_same(sweep, tmp_path):
    queue, settings = sweep["queue"], ["growing"]
    results, work = tmp_path / "results", tmp_path / "work"

    def claim():
        return queue.claimed(settings, results, work)

    with claim() as first, claim() as second:
        assert first == queue.start_job("growing") and second.method == "grpo"
    with claim() as again:  # what was given up is taken up
        assert again == first
        finish_jobs(sweep, results, [again])
    with claim() as following:
        assert following.method == "grpo"


# --------------------------------------------------------------------------------- figures


@pytest.fixture(scope="module")
def results(sweep, tmp_path_factory):
    """A whole invented sweep of *easy* and *hard*."""
    directory, plan = tmp_path_factory.mktemp("results"), sweep["plan"]
    write = sweep["records"].write
    for setting in ("easy", "hard"):
        begun = sweep["queue"].start_job(setting)
        one = result(sweep, begun, "test", length=70)
        more = {"select": outcomes(length=70), "longer": outcomes(9, 0.3, 70)}
        write(directory, one._replace(outcomes=more | one.outcomes))
        for number, method in enumerate(plan.methods_of(setting)):
            for job in (job for job in plan.grid_jobs(setting) if job.method == method):
                write(directory, result(sweep, job, length=60 - number - 5 * job.choice))
            last = plan.final_jobs(setting, method, 3)
            for job in last + plan.confirming_jobs(setting, method, 3):
                one = result(sweep, job, "test", seed=job.seed, length=50 - number)
                more = {"longer": outcomes(5, 0.2, 60)} if setting == "hard" else {}
                bonus = [1.0] * 10 + [-3.0] * 20
                curves = {} if job in last else dict.fromkeys(BONUSES, bonus)
                one = one._replace(outcomes=more | one.outcomes, curves=one.curves | curves)
                write(directory, one)
    return directory


def test_figures_are_the_librarys(sweep, results):
    analysis = sweep["analysis"]
    easy = analysis.load(results, "easy")
    assert set(easy.entries) == set(sweep["plan"].methods_of("easy")) and set(
        easy.chosen.values()
    ) == {3}
    ours, base = easy.entries["iapo_priced"], easy.entries["grpo"]
    assert len(ours.seeds) == len(base.seeds) == 5
    lengths = [o.length.mean() for o in ours.seeds]
    found = analysis.figure(ours, "length")
    assert found.value == pytest.approx(np.mean(lengths)) and found.low < found.value < found.high
    gap = analysis.difference(ours, base, "length")
    assert gap.value == pytest.approx(np.mean(lengths) - np.mean([o.length for o in base.seeds]))
    share = analysis.relative_length(ours, base)
    assert share.value == pytest.approx(100 * gap.value / np.mean([o.length for o in base.seeds]))
    assert share.low < share.value < share.high < 0
    assert analysis.relative_length(base, base).value == 0
    shifted = analysis.load(results, "shifted")
    assert shifted.name == "shifted" and set(shifted.entries) == set(
        sweep["plan"].methods_of("hard")
    )
    assert analysis.figure(shifted.start, "accuracy").value == pytest.approx(
        outcomes(9, 0.3, 70).correct.mean()
    )
    assert analysis.load(results, "growing") is None
    hard = analysis.load(results, "hard")
    assert list(hard.confirming) == ["grpo", "iapo_priced"] == list(shifted.confirming)
    assert [r.seed for r in hard.confirming["grpo"].results] == [5, 6, 7, 8, 9]
    assert [r.seed for r in hard.entries["grpo"].results] == [0, 1, 2, 3, 4]
    assert not easy.confirming and sweep["plan"].confirming_jobs("hard", "gfpo", 3) == []


def test_a_start_that_was_measured_on_other_problems_does_not_count(sweep, results, tmp_path):
    shutil.copytree(results / "easy", tmp_path / "easy")
    path = tmp_path / "easy" / "start.json"
    stale = sweep["records"].read(path)
    sweep["records"].write(tmp_path, stale._replace(problems={"select": "0", "test": "0"}))
    assert sweep["analysis"].load(tmp_path, "easy") is None


def test_a_ratio_to_a_length_that_may_be_0_has_no_interval(sweep):
    analysis, run = sweep["analysis"], result(sweep, sweep["plan"].Job("easy", "grpo", 0, 0))

    def entry(*lengths):
        return analysis.Entry(
            "grpo",
            tuple(outcomes(n, length=length) for n, length in enumerate(lengths)),
            (run,) * 3,
        )

    calm, torn = entry(50, 51, 52), entry(10, 12, 60)
    found = analysis.relative_length(torn, calm)
    assert math.isnan(found.low) and math.isnan(found.high)
    lengths = [np.mean([o.length for o in one.seeds]) for one in (torn, calm)]
    assert found.value == pytest.approx(100 * (lengths[0] / lengths[1] - 1))
    assert sweep["tables"].cell(found, "{:+.1f}") == f"{found.value:+.1f} (no interval)"
    assert math.isnan(analysis.relative_length(calm, torn).low)


def test_runs_of_another_choice_do_not_count(sweep, results, tmp_path):
    """Such runs remain when a grid is changed."""
    analysis, records = sweep["analysis"], sweep["records"]
    shutil.copytree(results / "easy", tmp_path / "easy")
    job = sweep["plan"].Job("easy", "gfpo", 1, 0)
    records.write(tmp_path, result(sweep, job, "test", accuracy=0.1))
    before, after = (analysis.load(place, "easy").entries["gfpo"] for place in (results, tmp_path))
    assert [r.choice for r in after.results] == [3] * 3
    assert analysis.figure(after, "accuracy") == analysis.figure(before, "accuracy")
    fourth = sweep["plan"].Job("easy", "gfpo", 3, 3)  # a seed that is not planned
    records.write(tmp_path, result(sweep, fourth, "test", accuracy=0.1))
    assert len(analysis.load(tmp_path, "easy").entries["gfpo"].results) == 3
    records.path_of(tmp_path, sweep["plan"].grid_jobs("easy")[0]).unlink()
    assert "grpo" not in analysis.load(tmp_path, "easy").entries  # its grid is not whole yet


def test_two_methods_where_both_fronts_reach(sweep):
    """By hand: points of a grid that another beats are no part of a front."""
    analysis, records, job = sweep["analysis"], sweep["records"], sweep["plan"].Job

    def point(length, right, problems=100):
        correct = (np.arange(problems) < right)[:, None]
        return Outcomes(correct, np.full((problems, 1), length), correct, np.where(correct, 0, 1))

    def at(method, choice, outcomes, seed=100):
        return records.Result(*job("hard", method, choice, seed), "", outcomes=outcomes)

    def setting(ours, rival, split="test"):
        start = point(60, 90)
        grids = {"iapo_priced": [], "gfpo": []}
        for method, points in (("iapo_priced", ours), ("gfpo", rival)):
            grids[method] = [
                at(method, n, {split: point(*p), "select": point(1, 100)})
                for n, p in enumerate(points)
            ]
        entries = {
            m: analysis.Entry(m, (results[0].outcomes[split],), tuple(results[:1]))
            for m, results in grids.items()
        }
        chosen = {"iapo_priced": 0, "gfpo": 0}
        begun = analysis.Entry("start", (start,), (at("start", 0, {}),))
        name = "hard" if split == "test" else "shifted"
        return analysis.Setting(name, begun, entries, grids, chosen)

    rival = [(50, 95), (40, 80), (45, 70), (30, 60)]

    def compare(one):
        return analysis.at_equal_length(one, "iapo_priced", "gfpo")

    for length, accuracy in ((50, 0.95), (40, 0.80), (45, 0.875), (30, 0.60), (70, 0.95)):
        found = compare(setting([(length, 90)], rival))
        assert (found.tokens, found.second) == pytest.approx((length, accuracy))
        assert found.first == pytest.approx(0.9)
        assert found.difference.value == pytest.approx(0.9 - accuracy)
        assert found.difference.low <= found.difference.value <= found.difference.high
    # The rival does not get so short: both are read off at its shortest point.
    found = compare(setting([(20, 70), (40, 90)], rival))
    assert (found.tokens, found.first, found.second) == pytest.approx((30, 0.8, 0.6))
    assert found.difference.low > 0.1
    # If the grid was not measured on the split, the front is the last runs and the initial model.
    one = setting([(50, 90)], rival, "longer")
    assert compare(one).second == pytest.approx(0.95)
    bare = {
        m: [r._replace(outcomes={"select": point(1, 100)}) for r in g] for m, g in one.grids.items()
    }
    assert len(analysis.front(one._replace(grids=bare), "gfpo")) == 2


@pytest.mark.parametrize(
    "length, accuracy, told",
    [
        (30, 0.8, "is at least 36% shorter than `grpo`; its accuracy is not significantly lower: "),
        (40, 0.8, "is not at least 36% shorter than `grpo`; its accuracy is not significantly "),
        (30, 0.5, "is at least 36% shorter than `grpo`; its accuracy is lower"),
    ],
)
def test_the_verdict(sweep, length, accuracy, told):
    analysis, job = sweep["analysis"], sweep["plan"].Job

    def entry(method, **drawn):
        found = [outcomes(seed, problems=300, **drawn) for seed in range(3)]
        runs = [result(sweep, job("easy", method, 0, seed), "test") for seed in range(3)]
        return analysis.Entry(method, tuple(found), tuple(runs))

    entries = {"grpo": entry("grpo", length=60), "gfpo": entry("gfpo", length=60, accuracy=0.3)}
    entries["iapo_priced"] = entry("iapo_priced", length=length, accuracy=accuracy)
    start = entry("grpo", length=70)
    setting = analysis.Setting("easy", start, entries, {m: [] for m in entries}, {})
    found = sweep["findings"].sentences(setting)
    assert len([line for line in found if line.startswith(f"`iapo_priced` {told}")]) == 1
    assert not any("at equal length" in line for line in found)  # no grid is measured there
    against = next(line for line in found if line.startswith("`iapo_priced` against `grpo`"))
    assert f"tokens {100 * (length / 60 - 1):+.0f}"[:9] in against


@pytest.mark.parametrize("setting", SETTINGS)
def test_lengths_of_the_grids_are_those_of_the_start_models(sweep, setting):
    """`length_cap` and `l1_max` would move with an initial model that is made again."""
    start = sweep["store"].find(FOLDER / "results.parquet", sweep["queue"].start_job(setting))
    found = start.outcomes["select"].length.mean()
    assert found == pytest.approx(sweep["plan"].SCALES[setting].length, abs=1.0)


def test_tables_and_pictures(sweep, results, tmp_path):
    load = sweep["analysis"].load
    settings = [load(results, name) for name in ("hard", "shifted")]
    rows = list(csv.DictReader(io.StringIO(sweep["tables"].results_csv(settings))))
    header = "setting,method,seed,accuracy,length,pass_at_4,updates,sampled_tokens,config"
    assert list(rows[0]) == header.split(",")
    counts = {name: sum(row["setting"] == name for row in rows) for name in ("hard", "shifted")}
    assert counts == {name: 1 + 11 * 3 + 2 * 5 + 2 * 5 for name in counts}
    first = next(row for row in rows if row["method"] == "gfpo" and row["seed"] == "1")
    drawn = settings[0].entries["gfpo"].seeds[1]
    assert float(first["accuracy"]) == pytest.approx(drawn.correct.mean(), abs=1e-4)
    passed = pass_at_k(drawn.correct.sum(1), 4, 4).mean()
    assert float(first["pass_at_4"]) == pytest.approx(passed, abs=1e-4)
    grid = list(csv.DictReader(io.StringIO(sweep["tables"].grid_csv(settings))))
    assert len(grid) == 4 * 11 and sum(int(row["chosen"]) for row in grid) == 11
    shares = {row["method"]: float(row["stability"]) for row in grid}
    assert math.isnan(shares.pop("iapo_shuffled")) and not any(map(math.isnan, shares.values()))
    begun = settings[0]._replace(grids={**settings[0].grids, "iapo_shuffled": []})
    assert sweep["tables"].grid_csv([begun]).count("\n") == 1 + 4 * 10
    some = {**settings[0].grids, "iapo_shuffled": settings[0].grids["iapo_shuffled"][2:3]}
    table = sweep["tables"].weights_table(begun._replace(grids=some), "iapo", "iapo_shuffled")
    assert len(table.splitlines()) == 3 and "information_weight: 0.1," in table
    text = sweep["findings"].render(settings)
    shown = "`iapo` against `iapo_shuffled`", "`iapo_priced` against `iapo_priced_zero`"
    for name in ("### hard", "### shifted", *shown, "initial model"):
        assert name in text
    assert text.startswith("### All settings\n\n| setting | `iapo_priced` - `grpo`: tokens, % | ")
    table = [line.split("|") for line in text.splitlines()[2:6]]
    assert [row[1].strip() for row in table[2:]] == ["*hard*", "*shifted*"]
    assert {len(row) for row in table} == {1 + 9 + 1}
    [told] = [x for x in sweep["findings"].sentences(settings[0]) if x.startswith(shown[0])]
    tokens, accuracy = table[2][6].strip(), table[2][7].strip()
    assert told == f"{shown[0]}: tokens {tokens} %, accuracy {accuracy}"
    counted = [one for one in sweep["store"].read_all(results, "hard") if one.method != "start"]
    hours = sum(one.seconds for one in counted) / 3600
    assert f"| *hard* | {len(counted)} |" in text and f"| total |  |  | {hours:.2f} |" in text
    again = settings[0].confirming
    assert text.count("- with new seeds, `iapo_priced` against `grpo`: tokens ") == 2
    lines = sweep["tables"].confirming_table(settings[0]).splitlines()
    tokens, accuracy = sweep["tables"].compared(again["iapo_priced"], again["grpo"])
    assert len(lines) == 4 and lines[3].endswith(f"| {tokens} | {accuracy} |")
    assert f"{again['grpo'].seeds[0].correct.mean():.3f}, " in lines[2] and lines[3] in text
    credit = sweep["tables"].credit_table(settings[0])
    assert credit.splitlines()[-1] == "| `iapo_priced` |" + " +1.00 | -3.00 |" * 3
    assert credit in text and text.count(credit) == 1
    chosen = sweep["tables"].choices_table(settings)
    assert "| `length_cap` | cap 40 |" in chosen.splitlines()
    assert "| `iapo_priced` | price 0.04 |" in chosen.splitlines() and chosen in text
    profile = sweep["tables"].profile_table(settings[0], ["grpo"]).splitlines()
    assert profile[-1] == "| `grpo` |" + " +0.10 |" * 10 + " +0.00 |"
    shown = ("grpo", "iapo", "iapo_priced")
    sweep["pictures"].pareto(settings, tmp_path / "pareto.png")
    sweep["pictures"].curves(settings, shown, tmp_path / "curves.png")
    sweep["pictures"].categories(settings, shown, tmp_path / "categories.png")
    sweep["pictures"].information(settings, shown, tmp_path / "information.png")
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 4


def test_curves_of_groups_that_were_chosen_are_not_drawn(sweep, results, tmp_path, monkeypatch):
    hard, pictures = sweep["analysis"].load(results, "hard"), sweep["pictures"]
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, *_, **__: drawn.append(figure))
    pictures.curves([hard], ("grpo", "dapo"), tmp_path / "curves.png")
    one = hard.entries["dapo"]
    told = tuple(r._replace(config="algorithm.dynamic_sampling=true") for r in one.results)
    hard.entries["dapo"] = one._replace(results=told)
    pictures.curves([hard], ("grpo", "dapo"), tmp_path / "curves.png")
    assert [len(figure.axes[0].lines) for figure in drawn] == [2, 1]


def test_the_frame_has_room_for_intervals_but_for_those_of_a_run_that_fell_apart(sweep):
    calm = [[(30 + n, 29 + n, 31 + n), (0.5, 0.48, 0.52)] for n in range(5)]
    torn = [(20.0, 0.0, 60.0), (0.4, 0.1, 0.6)]
    low, high = sweep["pictures"]._frame(np.asarray([*calm, torn]))
    assert low.tolist() == [20.0, 0.4] and high.tolist() == [35.0, 0.52]


def test_grids_without_last_runs_have_a_table_of_their_own(sweep, tmp_path):
    """For example *large*, which was run in part: compared with GRPO's most accurate point."""
    plan, queue = sweep["plan"], sweep["queue"]
    begun = result(sweep, queue.start_job("chain"), "test", accuracy=0.5, length=70)
    begun = begun._replace(outcomes={**begun.outcomes, "select": outcomes(length=80)})
    sweep["records"].write(tmp_path, begun)

    def load():
        return sweep["analysis"].load(tmp_path, "chain")

    assert sweep["findings"].render([load()]) == ""
    grids = plan.grid_jobs("chain")
    jobs = [job for job in grids if job.method == "grpo" and job.choice < 2]
    for n, job in enumerate([*jobs, grids[-1]]):
        drawn = dict(seed=n, accuracy=(0.6, 0.9, 0.9)[n], length=(50, 60, 30)[n])
        sweep["records"].write(tmp_path, result(sweep, job, **drawn))
    lines = sweep["findings"].render([load()]).splitlines()
    assert lines[0] == "### chain: grids so far (selection split)" and len(lines) == 2 + 2 + 4
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[4:]]
    first = rows.pop(0)
    assert first[1] == "initial model" and float(first[4].partition(" ")[0]) == pytest.approx(
        80, abs=1
    )
    assert rows[1][5:7] == ["", ""] and rows[1][2] == "algorithm.beta: 0.01"
    one, base = (
        sweep["records"].read(sweep["records"].path_of(tmp_path, job))
        for job in (grids[-1], jobs[1])
    )
    shorter = one.outcomes["select"].length.mean() / base.outcomes["select"].length.mean() - 1
    assert rows[2][5].startswith(f"{100 * shorter:+.1f} [") and rows[0][6].startswith("-0.")


# ------------------------------------------------------------------------- what is committed


@pytest.fixture(scope="module")
def published(sweep):
    """The settings of the repository's results."""
    names = ("chain", "easy", "hard", "shifted", "growing", "large")
    loaded = [sweep["analysis"].load(FOLDER / "results.parquet", name) for name in names]
    return [setting for setting in loaded if setting is not None]


def test_the_pages_show_what_was_measured(sweep, published):
    """Their rows of results are those of tables.md, whose means are those of the results."""
    text = "".join((FOLDER / name).read_text() for name in ("README.md", "results.md"))
    told = (FOLDER / "tables.md").read_text().splitlines()
    rows = [
        line
        for line in text.splitlines()
        if re.search(r"\[[+-]?[0-9.]+, [+-]?[0-9.]+\].*\|$", line)
    ]
    assert len(rows) > 20 and not [line for line in rows if line not in told]
    flat = re.sub(r"\s+", " ", text)
    quoted = re.findall(r"tokens \S+ \[\S+ \S+\] %, accuracy \S+ \[\S+ \S+\]", flat)
    assert len(quoted) > 15 and not [x for x in quoted if not any(x in line for line in told)]
    for setting in published:
        for entry in setting.entries.values():
            accuracy = np.mean([seed.correct.mean() for seed in entry.seeds])
            length = np.mean([seed.length.mean() for seed in entry.seeds])
            row = rf"\| `{entry.name}` \| {len(entry.seeds)} \| (\S+) \[\S+ \S+\] \| (\S+) \["
            means = [re.match(row, line) for line in told]
            means = [(float(found[1]), float(found[2])) for found in means if found]
            want = (pytest.approx(accuracy, abs=6e-4), pytest.approx(length, abs=0.06))
            assert want in means, (setting.name, entry.name)
    names = set(re.findall(r"\(pictures/(\w+\.png)\)", text))
    assert names == {"pareto.png", "curves.png", "categories.png", "information.png"}
    assert all((FOLDER / "pictures" / name).is_file() for name in names)


def test_the_published_tables_are_those_of_the_results(sweep, published):
    assert sweep["findings"].render(published) + "\n" == (FOLDER / "tables.md").read_text()


# ------------------------------------------------------------------------------ a real run


@pytest.fixture
def made(sweep, tmp_path, monkeypatch):
    """The working directory: another root, where make_testbed.py made *growing* in few updates."""
    folder = tmp_path / "root" / "experiments" / "arithmetic"
    folder.mkdir(parents=True)
    for name in ("testbed.yaml", "sft.yaml", "config.json", "SHA256SUMS", "sweep"):
        (folder / name).symlink_to(FOLDER / name)
    monkeypatch.chdir(tmp_path / "root")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the tests' virtual devices slow training down
    make_testbed, settings = (
        importlib.import_module(n) for n in ("make_testbed", "testbed.settings")
    )
    for module in (make_testbed, sweep["problems"], sweep["execute"]):
        monkeypatch.setattr(module, "HERE", folder)
    sweep["problems"].digest_of.cache_clear()
    short = settings.SETTINGS["growing"]._replace(sft_steps=400)
    monkeypatch.setitem(settings.SETTINGS, "growing", short)
    make_testbed.make("growing", tmp_path / "testbed", folder / "models")
    yield make_testbed.compare_with_published("growing", folder / "models")
    sweep["problems"].digest_of.cache_clear()


def test_a_run_is_trained_measured_and_skipped_afterwards(sweep, made, tmp_path, monkeypatch):
    """One real job on a few problems; the result repeats the run directory's own figures."""
    assert [text.removeprefix("note: ").partition(" ")[0].rpartition("/")[2] for text in made] == [
        "test.jsonl",  # of fewer supervised rows
        "model.safetensors",
    ]
    measure, plan, execute = sweep["measure"], sweep["plan"], sweep["execute"]
    monkeypatch.setattr(measure, "PROBLEMS", 64)
    monkeypatch.setattr(measure, "INSPECTED", 8)
    own = plan.overrides
    for module in (execute, sweep["records"]):
        monkeypatch.setattr(module, "overrides", lambda job: [*own(job), "max_steps=1"])
    monkeypatch.setattr(sweep["queue"], "chosen", lambda *_: 0)  # without its grid
    job = plan.Job("growing", "grpo", 0, 0)
    work, results = tmp_path / "work", tmp_path / "results"
    found = execute.execute(job, work, results)
    read = sweep["records"].read(sweep["records"].path_of(results, job))
    assert read.job == job and read.updates == 1 and list(read.outcomes) == ["test"]
    assert read.outcomes["test"].correct.shape == (64, 4)
    rows = [
        json.loads(line)
        for line in (work / "growing" / job.name / "metrics.jsonl").read_text().splitlines()
    ]
    assert read.curves["length"] == [round(rows[0]["completions/mean_length"], 4)]
    assert read.sampled_tokens == rows[0]["sampled_tokens"] == found.sampled_tokens
    measured = measure.folder_of(work / "growing" / job.name / "measured", "growing", "test")
    texts = next(measured.glob("*.completions.jsonl"))
    told = [json.loads(line) for line in texts.read_text().splitlines()]
    assert np.mean([one["correct"] for one in told]) == read.outcomes["test"].correct.mean()
    thinking = [one["thinking_length"] for one in told if one["correct"]]
    assert sum(read.categories.values()) == pytest.approx(np.mean(thinking))
    right = sum(one["correct"] for one in told if one["sample"] == 0)
    assert 0 < read.information["completions"] <= min(8, right)
    nats = sum(read.information["nats"].values())
    assert 0 < nats < 2 and sum(read.information["profile"]) == pytest.approx(nats, abs=0.5)
    left = list(sweep["queue"].ready(["growing"], results))
    assert job not in left

    # A different config in the same place: the run is not resumed.
    there = work / "growing" / job.name
    untouched = (there / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            plan, "_text", lambda value, own=plan._text: own(value).replace("0.04", "0.02")
        )
        begun = []

        def begin(config):
            begun.append((config, there.exists()))
            raise Stopped("begun")

        patch.setattr(execute, "train", begin)
        with pytest.raises(Stopped, match="begun"):
            execute.execute(job, work, results)
    [(config, existed)] = begun
    assert config.algorithm.beta == 0.02 and config.output_dir == str(there) and not existed
    aside = there.with_name(f"{job.name}.before_1")
    assert (aside / "metrics.jsonl").read_bytes() == untouched
    aside.rename(there)

    # The page: before and after on the test problems, and another split as an evaluation.
    pages = sweep["pages"]

    def setting():
        return sweep["analysis"].load(results, "growing")

    execute.measure_start("growing", work, results)
    monkeypatch.setattr(pages, "SHIFTED", {"again": ("growing", "test")})
    pages.write(setting(), work, tmp_path / "page")
    assert (tmp_path / "page" / "report.html").stat().st_size > 100_000
    rows = (tmp_path / "page" / "methods.md").read_text().splitlines()
    cells = [row.split(" | ") for row in rows if row.startswith(("| grpo", "| start"))]
    both = [f"{o.correct.mean():.3f}" for o in (setting().start.seeds[0], read.outcomes["test"])]
    accuracies = [row[2].partition(" ")[0] for row in cells]
    assert accuracies == [*both, *both]
    assert all(row[-1].startswith("start") for row in cells[1::2])
    with pytest.raises(UserError, match="is missing; the report page is made from run directories"):
        pages.write(setting(), tmp_path / "elsewhere", tmp_path / "page")


@pytest.mark.parametrize("codes, want", [((76, 0), 0), ((76, 76, 0), 0), ((76, 1), 1)])
def test_a_worker_that_did_its_share_is_followed_by_another(
    sweep, codes, want, tmp_path, monkeypatch
):
    """A process keeps what it has compiled; after so many jobs it would have no room for more."""
    module, left = importlib.import_module("run_sweep"), list(codes)

    def start(worker, arguments):
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({left.pop(0)})"])

    monkeypatch.setattr(module, "_start", start)
    monkeypatch.setattr(module, "_WAIT", 0.01)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    asked = dict(settings=["chain"], methods=[], results=tmp_path / "results", workers=1)
    assert module.oversee(argparse.Namespace(**asked, work=tmp_path / "work")) == want
    assert not left


@pytest.mark.parametrize(
    "script, words, told",
    [
        ("run_sweep", ["medium"], "unknown setting 'medium'; expected one of chain, easy"),
        ("run_sweep", ["--workers", "0"], "--workers is 0; expected at least 1"),
        ("run_sweep", ["hard", "--methods", "grop"], "unknown method 'grop'; expected one of dapo"),
        (
            "run_sweep",
            ["hard", "--methods", "iapo_shuffled"],
            "which runs at the point chosen for iapo;",
        ),
        ("run_sweep", ["--work", __file__], "test_sweep.py; expected a directory"),
        ("summarise_sweep", ["--results", "/nowhere"], "/nowhere holds no results"),
        ("summarise_sweep", ["--out", __file__], "test_sweep.py; expected a directory"),
    ],
)
def test_wrong_words_are_one_sentence(sweep, script, words, told, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(script).main()
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def test_a_damaged_result_and_another_directory_are_one_sentence(
    sweep, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    job = sweep["plan"].grid_jobs("chain")[0]
    path = sweep["records"].path_of(tmp_path, job)
    sweep["records"].write(tmp_path, result(sweep, job))
    path.write_text(path.read_text()[:500])
    monkeypatch.setattr(importlib.import_module("run_sweep"), "check_made", lambda _: None)
    for script, words in (("run_sweep", ["chain"]), ("summarise_sweep", [])):
        asked = [script, *words, "--results", str(tmp_path), "--work", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", asked)
        try:
            code = importlib.import_module(script).main()
        except SystemExit as stopped:
            code = stopped.code
        told = capsys.readouterr().err.splitlines()[-1]
        assert code == 2 and f"{path} is not a complete result" in told
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_sweep", "chain"])
    with pytest.raises(SystemExit):
        importlib.import_module("run_sweep").main()
    assert "is not the project's root" in capsys.readouterr().err


def test_absent_start_models_are_one_sentence_with_their_command(
    sweep, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    module = importlib.import_module("run_sweep")
    monkeypatch.setattr(module, "HERE", tmp_path)
    words = ["run_sweep", "hard", "--results", str(tmp_path), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", words)
    assert module.main() == 2
    told = capsys.readouterr().err
    assert "models/hard/model.safetensors is missing; make it with: python experiments/" in told
    assert told.endswith("arithmetic/make_testbed.py hard\n") and told.count("\n") == 1


def test_the_default_results_begin_with_the_published_ones(sweep, tmp_path):
    module, place = importlib.import_module("run_sweep"), tmp_path / "results"
    module.begin_with_published(place)
    assert len(list(place.glob("*/*.json"))) == 410
    job = sweep["plan"].final_jobs("chain", "grpo", 3)[0]
    assert sweep["store"].is_written(place, job)
    sweep["records"].path_of(place, job).unlink()
    module.begin_with_published(place)  # nothing, since it is there
    assert sweep["store"].find(place, job) is None


def test_the_shuffled_control_tells_as_much_elsewhere(sweep):
    """By hand: prices and ends are those of the rule, and one token's information moves."""
    rule = load(str(ROOT / sweep["plan"].RULES["iapo_priced_shuffled"]), "rule")
    told = np.zeros((2, 8), np.float32)
    told[0, 1], told[1, 5] = 2.0, 1.0
    u = 3.0 - np.concatenate([np.zeros((2, 1)), told.cumsum(1)], 1)
    mask = np.ones((2, 8), bool)
    ones, right = np.ones((2, 8), np.float32), np.asarray([1.0, 0.0], np.float32)
    group = Group(
        tokens=np.arange(16).reshape(2, 8),
        mask=mask,
        reward=right,
        correct=right > 0,
        log_prob=-ones,
        entropy=ones,
        uncertainty=u.astype(np.float32),
        thinking=mask & (np.arange(8) < 7),
    )
    group = jax.tree.map(jnp.asarray, group)
    options = dict(information_weight=3.0, price=0.01, unit="nats")
    plain = ALGORITHMS["iapo_priced"].advantage(group, **options).advantage
    draws = [rule.advantage(group, jax.random.key(n), **options).advantage for n in range(30)]
    assert np.std([np.asarray(one) for one in draws], 0)[:, :7].min() > 0.1
    # Without information in any token there is nothing to shuffle.
    silent = group._replace(uncertainty=0 * group.uncertainty + 3)
    same = [
        ALGORITHMS["iapo_priced"].advantage(silent, **options).advantage,
        rule.advantage(silent, jax.random.key(0), **options).advantage,
    ]
    np.testing.assert_allclose(*same, rtol=1e-6)
    # R of the first token is the sum, whatever the order; the baseline depends only on the start.
    assert np.isfinite(plain).all() and all(np.isfinite(one).all() for one in draws)
