"""The picture of docs/methods.md: one group of eight completions under every rule.

    python experiments/draw_methods.py --out docs/methods.png

The group is real: it comes from the first step of experiments/quickstart.yaml (seed 0), and has
some incorrect completions and the widest spread of lengths.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from arithmetic.small_png import save_small
from matplotlib.colors import TwoSlopeNorm

from iapo_jax import ALGORITHMS, Group, make_algorithm
from iapo_jax.config.loading import load_config
from iapo_jax.config.train import TrainConfig
from iapo_jax.pretrained.loaded_model import initial_params
from iapo_jax.rollout.dynamic_sampling import is_mixed
from iapo_jax.sharding import fetch
from iapo_jax.training.setup import Setup, set_up
from iapo_jax.training.step import generate, score_rollout

ROOT = Path(__file__).resolve().parents[1]
# Weights large enough to be visible; all other options have their defaults.
OPTIONS = {
    "iapo": {"information_weight": 0.3, "exploration_weight": 0.1},
    "iapo_reference": {"information_weight": 2.0, "exploration_weight": 1.0},
    "iapo_ni": {"exploration_weight": 0.1},
    "iapo_ne": {"information_weight": 0.3, "exploration_weight": 0.1},
    "iapo_shuffled": {"information_weight": 0.3, "exploration_weight": 0.1},
    "iapo_random": {"information_weight": 0.3, "exploration_weight": 0.1},
    "s_grpo": {"first": 10, "until": 50},
    "length_cap": {"cap": 62},
    "l1_max": {"target_length": 60, "slope": 0.02},
}


# A method for each estimator; the first one also probes after the end of thinking.
METHODS = {"answer_entropy": "iapo_reference", "answer_log_prob": "iapo_priced"}


def first_group() -> tuple[dict[str, Group], str, int]:
    """The group under each estimator, its question, and T of the configuration."""
    seen = {name: _first_groups(name, method) for name, method in METHODS.items()}
    groups, setup, indices = seen["answer_entropy"]
    length = groups.mask.sum(-1)
    incorrect = (~groups.correct).sum(-1)
    # Up to three incorrect completions matter most, then the spread of lengths.
    preference = np.minimum(incorrect, 3) + length.std(-1) / 100
    chosen = int(np.where(is_mixed(groups.correct), preference, -1.0).argmax())
    text = setup.problems.texts[int(indices[chosen])]
    text = text.removeprefix("<user>").partition("<assistant>")[0]
    # Correct completions first, then short ones.
    order = np.lexsort((groups.mask[chosen].sum(-1), ~groups.correct[chosen]))

    def pick(groups: Group) -> Group:
        return jax.tree.map(lambda x: jax.numpy.asarray(x[chosen][order]), groups)

    picked = {name: pick(groups) for name, (groups, *_) in seen.items()}
    return picked, text, setup.config.sampling.max_completion_length


def _first_groups(estimator: str, method: str) -> tuple[Group, Setup, np.ndarray]:
    overrides = [
        *("information.always=true", "log.compilation_cache=''", "log.progress=false"),
        *(f"information.estimator={estimator}", f"algorithm.name={method}"),
        f"model.path={ROOT / 'experiments/arithmetic/model'}",
    ]
    path = ROOT / "experiments" / "quickstart.yaml"
    setup = set_up(load_config(TrainConfig, str(path), overrides))
    params = initial_params(setup.loaded, setup.config.seed)
    rewarded, _ = generate(setup, params, 0)
    return fetch(score_rollout(setup, params, None, rewarded).groups), setup, rewarded.indices


def panel(axes: plt.Axes, group: Group, values: np.ndarray, weight: np.ndarray, title: str) -> None:
    """Completions as rows, tokens as cells; tokens without weight are gray."""
    mask = np.asarray(group.mask)
    shown = np.where(mask & (weight > 0), values, np.nan)
    largest = np.nanmax(np.abs(shown)) if np.isfinite(shown).any() else 0.0
    bound = max(float(largest), 1e-6)
    axes.imshow(np.where(mask, 1.0, np.nan), cmap="Greys", vmin=0, vmax=4, aspect="auto")
    norm = TwoSlopeNorm(0.0, -bound, bound)
    axes.imshow(shown, cmap="RdBu", norm=norm, aspect="auto", interpolation="nearest")
    ends = np.asarray(group.thinking).sum(-1)
    for row, end in enumerate(ends):
        axes.plot([end - 0.5] * 2, [row - 0.5, row + 0.5], color="black", linewidth=1.1)
    incorrect = int((~np.asarray(group.correct)).sum())
    axes.axhline(len(mask) - incorrect - 0.5, color="black", linewidth=0.6, linestyle=":")
    axes.set_xlim(-0.5, mask.any(0).sum() - 0.5)
    axes.set_yticks([])
    axes.tick_params(labelsize=6, length=2)
    axes.set_title(f"{title}   (darkest {largest:.2f})", fontsize=7.5, loc="left", pad=3)


def draw(groups: dict[str, Group], question: str, max_length: int) -> plt.Figure:
    """All panels: the informativeness of each token, then the advantage under every method.

    Args:
      groups: the same completions by estimator.
    """
    group = groups["answer_entropy"]
    figure, grid = plt.subplots(6, 3, figsize=(11, 9.6), sharex=True)
    places = iter(grid.flat)
    everywhere = np.ones(group.mask.shape)
    informativeness = np.asarray(group.informativeness)
    panel(next(places), group, informativeness, everywhere, "informativeness (entropy), nats")
    for name in ALGORITHMS:
        options = OPTIONS.get(name, {})
        algorithm = make_algorithm(name, options, max_length=max_length)
        credit = algorithm.credit(groups[algorithm.estimator], jax.random.key(0))
        listed = ", ".join(
            f"{key.removesuffix('_weight')} {value}" for key, value in options.items()
        )
        title = f"{name}: {listed}" if listed else name
        panel(next(places), group, np.asarray(credit.advantage), np.asarray(credit.weight), title)
    figure.suptitle(
        f"Eight completions for {question}, correct ones above the dotted line. Blue: reinforced, "
        "red: suppressed, gray: left out. The bar marks the end of thinking.",
        fontsize=9,
    )
    figure.supxlabel("token", fontsize=8)
    figure.tight_layout()
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    save_small(draw(*first_group()), arguments.out, dpi=120)


if __name__ == "__main__":
    main()
