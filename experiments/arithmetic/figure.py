"""The picture of the README: learning curves of several seeds, and information token by token.

    python experiments/arithmetic/figure.py --out experiments/arithmetic/quickstart.png RUN_DIR ...

Each RUN_DIR is the output_dir of one seed of experiments/quickstart.yaml.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from small_png import save_small

from iapo_jax import Rollout, answer_entropy, encode_prompts, load
from iapo_jax.runtime.files import read_jsonl

BLUE, ORANGE, GREY = "#2a6fbb", "#d9822b", "#666666"
POSTFIX = "</think><answer>"
WRAP = 62  # characters in a line of the token view


def curves(axes: plt.Axes, runs: list[Path]) -> None:
    """Mean length and accuracy of the sampled completions by step, a thin line for each seed."""
    tables = [read_jsonl(run / "metrics.jsonl") for run in runs]
    steps = [row["step"] for row in tables[0]]
    right = axes.twinx()
    for place, name, color, label in (
        (axes, "completions/mean_length", BLUE, "tokens"),
        (right, "accuracy", ORANGE, "accuracy"),
    ):
        values = np.asarray([[row[name] for row in table] for table in tables])
        place.plot(steps, values.T, color=color, alpha=0.25, linewidth=0.8)
        place.plot(steps, values.mean(0), color=color, linewidth=2)
        place.set_ylabel(label, color=color)
        place.tick_params(axis="y", colors=color)
    axes.set_ylim(0)
    right.set_ylim(0, 1.02)
    axes.set_xlabel("step")
    axes.set_title(f"iapo_priced, {len(runs)} seeds: mean length and accuracy", fontsize=10)


def informativeness(model_dir: Path, question: str, reasoning: str) -> tuple[list[str], np.ndarray]:
    """Tokens of a reasoning text and s_t of each, in nats."""
    model, params, tokenizer = load(model_dir)
    ids = tokenizer.encode(reasoning)
    length = jax.numpy.full((1, 1), len(ids))
    rollout = Rollout(
        prompts=encode_prompts(tokenizer, [question]),
        tokens=jax.numpy.asarray(ids)[None, None],
        length=length,
        log_prob=None,
        finished=length == 0,
    )
    u = answer_entropy(model, params, rollout, tokenizer.encode(POSTFIX))[0, 0]
    return [tokenizer.decode([i]) for i in ids], np.asarray(u[:-1] - u[1:])


def token_view(axes: plt.Axes, tokens: list[str], values: np.ndarray, title: str) -> None:
    """Text in a monospace font; the background of each token shows its information."""
    scale = np.abs(values).max()
    column, line = 0, 0
    for token, value in zip(tokens, values, strict=True):
        if column + len(token) > WRAP:
            column, line = 0, line + 1
        color = plt.get_cmap("RdBu")(0.5 + 0.45 * value / scale)
        axes.add_patch(Rectangle((column, -line - 0.75), len(token), 0.95, color=color))
        axes.text(column, -line - 0.55, token, family="monospace", fontsize=8.4)
        column += len(token)
    axes.set_xlim(0, WRAP)
    axes.set_ylim(-line - 1.2, 0.6)
    axes.axis("off")
    axes.set_title(title, fontsize=10)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    question = "52-19-20+45"
    reasoning = (
        "hmm we need 52-19-20+45. 52-19=33. check 33+19=52. ok 33-20=13. check 33-20=13. "
        "so 13+45=58. again 52-19=33. 33-20=13. 13+45=58. the answer is 58. "
    )
    tokens, values = informativeness(arguments.model, question, reasoning)
    plt.rcParams.update({"font.size": 9, "axes.edgecolor": GREY})
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 3.1), gridspec_kw={"width_ratios": [1, 1.25]}
    )
    curves(left, arguments.runs)
    title = f"information of each token about the answer to {question}\n"
    title += f"blue: information; red: doubt; darkest {np.abs(values).max():.1f} nats"
    token_view(right, tokens, values, title)
    figure.tight_layout()
    save_small(figure, arguments.out, dpi=130)


if __name__ == "__main__":
    main()
