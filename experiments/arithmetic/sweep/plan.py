"""The runs of the experiment: settings, methods, the grid of each method, seeds.

Every method has a grid of four points, which run with one seed and are judged on the selection
split; the chosen point runs again with fresh seeds and is judged on the test split.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from testbed.settings import SETTINGS

from iapo_jax import ALGORITHMS

CORE = (
    "grpo",
    "iapo",
    "iapo_shuffled",
    "iapo_priced",
    "length_penalty",
    "length_cap",
    "gfpo",
    "dapo",
)
OURS = "iapo_priced"
GATED, NATS, CHANCE = "iapo_priced_gated", "iapo_priced_nats", "iapo_priced_probability"
"""Earlier forms of `iapo_priced`: with the entropy of the answer, in correct completions only; with
the gold answer in nats; with its probability. The current form uses shares of the initial nats."""
FAST = "iapo_priced_fast"
"""`iapo_priced` at twice the learning rate, for settings where `grpo` was chosen at that rate."""
CAREFUL = "iapo_priced_careful"
"""`FAST` at the most accurate point of its grid, because the shorter one costs accuracy."""
SHUFFLED, ZERO = "iapo_priced_shuffled", "iapo_priced_zero"
"""Controls of `iapo_priced`: with its informativeness moved to random tokens, and with an
information weight of 0, which is GRPO's credit under the loss of `iapo_priced`."""
RULES = {
    **dict.fromkeys((GATED, NATS, CHANCE, FAST, CAREFUL, ZERO), OURS),
    SHUFFLED: "experiments/arithmetic/sweep/controls.py:iapo_priced_shuffled",
}
"""The `algorithm.name` of these methods, where it is not their own name."""
RIVALS = ("length_penalty", "length_cap", "l1_max", "gfpo", "dapo")
FRONTS = ("hard",)
"""Settings in which the grids of `OURS` and its `RIVALS` are also measured on the test problems, to
compare them at equal length; this decides nothing."""
CONTROLS = {"iapo_shuffled": "iapo", "iapo_random": "iapo"}
"""Controls, which run again at the point of the method they control, although they have grids."""
DECIDES = {**CONTROLS, CAREFUL: FAST, SHUFFLED: OURS, ZERO: OURS}
"""The method whose grid decides at which point a method runs again, if not its own."""
TOLERANCES = {CAREFUL: 0.0}
"""Tolerances other than that of the rule (`choose.TOLERANCE`)."""
START = "start"
"""The initial model, which is measured like a run."""
GRID_SEED = 100
FINAL_SEEDS = {"grpo": 5, OURS: 5, CAREFUL: 5}
SEEDS = 3
CONFIRMED = {"hard": ("grpo", OURS), "growing": ("grpo", OURS, CAREFUL)}
"""Methods that ran once more with the seeds of `CONFIRMING`, after everything was decided: the
earlier seeds had been seen, on different problems, before all methods were fixed."""
CONFIRMING = range(5, 10)


class Scale(NamedTuple):
    """The scales of a setting's runs, which all methods share."""

    length: float  # mean tokens of the initial model on the selection split
    budget: int  # completion tokens that a run may sample
    learning_rate: float  # GRPO is stable at it; its own grid also has twice that rate
    more: dict[str, Any] = {}  # config fields in addition to testbed.yaml


PROMPTS, GENERATIONS, STEPS = 8, 8, 60
"""As in testbed.yaml."""

SCALES = {
    "chain": Scale(53.0, 250_000, 1e-4),
    "easy": Scale(63.0, 300_000, 5e-5),
    "hard": Scale(73.5, 350_000, 5e-5),
    "growing": Scale(24.0, 190_000, 1e-4),
    "large": Scale(
        235.0,
        1_650_000,
        2e-5,
        {
            "model.dtype": SETTINGS["large"].dtype,
            "data.max_prompt_length": SETTINGS["large"].max_prompt,
            "batch.prompts_per_step": 2 * PROMPTS,
            # A single length, because each one is compiled, which takes a minute on a GPU.
            "sampling.length_bucket": SETTINGS["large"].max_length,
        },
    ),
}


class Job(NamedTuple):
    """One run: a point of a method's grid, and a seed."""

    setting: str
    method: str
    choice: int  # index in the grid
    seed: int

    @property
    def final(self) -> bool:
        """Whether the run is judged on the test split."""
        return self.seed != GRID_SEED

    @property
    def on_a_front(self) -> bool:
        """Whether the run is a grid point that is also measured on the test problems."""
        return not self.final and self.setting in FRONTS and self.method in (OURS, *RIVALS)

    @property
    def name(self) -> str:
        """Unique within the setting."""
        return f"{self.method}-{self.choice}-seed{self.seed}"


def methods_of(setting: str) -> tuple[str, ...]:
    """The methods that run in a setting: the core, in some a few more, in *easy* all named ones."""
    if setting == "easy":
        return (*CORE, SHUFFLED, ZERO, *(name for name in ALGORITHMS if name not in CORE))
    more = {
        "hard": ("l1_max", SHUFFLED, ZERO, NATS, CHANCE),
        "growing": (SHUFFLED, ZERO, FAST, CAREFUL, NATS, CHANCE, GATED),
    }
    return CORE + more.get(setting, ())


def grid_jobs(setting: str) -> list[Job]:
    """The runs of the grids."""
    methods = [name for name in methods_of(setting) if name in CONTROLS or name not in DECIDES]
    return [Job(setting, method, i, GRID_SEED) for method in methods for i in range(4)]


def final_jobs(setting: str, method: str, choice: int) -> list[Job]:
    """The final runs, once the choice is known."""
    return [Job(setting, method, choice, seed) for seed in range(FINAL_SEEDS.get(method, SEEDS))]


def confirming_jobs(setting: str, method: str, choice: int) -> list[Job]:
    """The runs with new seeds; none for most methods."""
    seeds = CONFIRMING if method in CONFIRMED.get(setting, ()) else ()
    return [Job(setting, method, choice, seed) for seed in seeds]


def grid(setting: str, method: str) -> list[dict[str, Any]]:
    """Four points: config fields, and hyper-parameters of `algorithm.options` by their bare names.

    The points are what a paper searches or recommends, as far as four points can cover it; lengths
    are relative to the initial model's. All else is the method's default (`iapo_jax.ALGORITHMS`).
    """
    length, limit = SCALES[setting].length, SETTINGS[setting].max_length

    def tokens(share: float) -> int:
        return round(share * length)

    fast = {"optimizer.learning_rate": 2 * SCALES[setting].learning_rate}
    kl = [{"algorithm.beta": beta, **more} for more in ({}, fast) for beta in (0.04, 0.01)]
    # The paper searches 1e-6, 1e-4, 1e-2 and 1 for both; the first two have no effect here, and a
    # beta of 1 is unstable (`iapo_ni`), so the four points are spent on information.
    terms = [
        {"information_weight": weight, "exploration_weight": 0.01}
        for weight in (0.01, 1.0, 0.1, 0.3)
    ]
    corners = [
        {"information_weight": information, "exploration_weight": exploration}
        for exploration in (0.01, 1.0)
        for information in (0.01, 1.0)
    ]

    def priced(weight: float, prices: Sequence[float], **options: Any) -> list[dict[str, Any]]:
        return [{"information_weight": weight, "price": price, **options} for price in prices]

    gold = {"only_correct": False, "information.estimator": "answer_log_prob"}
    entropy = {"only_correct": True, "information.estimator": "answer_entropy"}
    nats = (0.02, 0.05, 0.1, 0.2)
    grids: dict[str, list[dict[str, Any]]] = {
        "grpo": kl,
        "dr_grpo": kl,
        "rloo": kl,
        "iapo": terms,
        "iapo_shuffled": terms,
        "iapo_random": terms,
        "iapo_ne": terms,
        "iapo_reference": corners,  # its terms have a norm of 1 over the completion
        "iapo_ni": [{"exploration_weight": weight} for weight in (0.01, 0.1, 0.3, 1.0)],
        OURS: priced(3.0, (0.005, 0.01, 0.02, 0.04), unit="share", **gold),
        FAST: priced(3.0, (0.005, 0.01, 0.02, 0.04), unit="share", **gold, **fast),
        NATS: priced(1.0, nats, unit="nats", **gold),
        CHANCE: priced(3.0, (0.001, 0.002, 0.005, 0.01), unit="probability", **gold),
        GATED: priced(1.0, nats, unit="nats", **entropy),
        "length_penalty": [{"penalty": penalty} for penalty in (0.8, 0.1, 0.2, 0.4)],
        "length_cap": [{"cap": tokens(share)} for share in (1.0, 0.85, 0.7, 0.55)],
        "l1_max": [
            {"target_length": tokens(share), "slope": round(1 / length, 4)}
            for share in (1.0, 0.8, 0.6, 0.4)
        ],
        "gfpo": [{"keep": k, "metric": m} for k in (2, 4) for m in ("shortest", "efficiency")],
        "dapo": [
            {"algorithm.dynamic_sampling": dynamic, "overlong_cache": round(share * limit)}
            for dynamic, share in ((True, 0.2), (True, 0.5), (False, 0.5), (False, 0.75))
        ],
        "gtpo": [{"entropy_weight": weight} for weight in (0.01, 0.1, 0.3, 1.0)],
        "s_grpo": [
            {"first": tokens(share), "until": 0, "probability": probability}
            for share in (0.25, 0.5)
            for probability in (0.25, 0.5)
        ],
    }
    borrowed = method in DECIDES and method not in grids
    found = grids[DECIDES[method] if borrowed else method]
    return [{**point, "information_weight": 0.0} for point in found] if method == ZERO else found


def test_splits(setting: str) -> list[str]:
    """The test splits, on which nothing is chosen."""
    return ["longer", "test"] if SETTINGS[setting].longer else ["test"]


def splits_of(job: Job) -> list[str]:
    """The splits on which a run is measured: selection for the grids, test for the final runs."""
    if job.method == START:
        return ["select", *test_splits(job.setting)]
    if job.final:
        return test_splits(job.setting)
    return ["select", *(test_splits(job.setting) if job.on_a_front else [])]


def overrides(job: Job) -> list[str]:
    """The overrides of testbed.yaml that make the run's config."""
    chosen = grid(job.setting, job.method)[job.choice]
    fields = {name: value for name, value in chosen.items() if "." in name}
    options = {name: value for name, value in chosen.items() if "." not in name}
    if options:
        fields["algorithm.options"] = options
    place = "experiments/arithmetic"
    fields = {
        "seed": job.seed,
        "max_sampled_tokens": SCALES[job.setting].budget,
        "optimizer.learning_rate": SCALES[job.setting].learning_rate,
        "model.path": f"{place}/models/{job.setting}",
        "data.dataset": f"{place}/data/{job.setting}/train.jsonl",
        "sampling.max_completion_length": SETTINGS[job.setting].max_length,
        "algorithm.name": RULES.get(job.method, job.method),
        **SCALES[job.setting].more,
    } | fields
    return [f"{name}={_text(value)}" for name, value in fields.items()]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
