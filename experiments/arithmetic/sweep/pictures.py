"""The experiment's pictures; each is a function of the results, with its own figure."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from small_png import save_small
from testbed.categories import READ

from sweep import analysis
from sweep.analysis import Setting

_COLORS = {
    "start": "#111111",
    "grpo": "#666666",
    "iapo": "#2a6fbb",
    "iapo_shuffled": "#8db8e0",
    "iapo_priced": "#c8372d",
    "iapo_priced_shuffled": "#eda7a1",
    "length_penalty": "#3a923a",
    "length_cap": "#8c6d1f",
    "gfpo": "#7b4fa3",
    "dapo": "#d9822b",
    "l1_max": "#12908e",
}
_OTHER = "#bbbbbb"
_OTHERS = "others"
_DYNAMIC = "algorithm.dynamic_sampling=true"
_KINDS = {
    "needed": "#2a6fbb",
    "restate": "#f0c987",
    "filler": "#cccccc",
    "recheck": "#d9822b",
    "second": "#b55d9c",
    "hesitate": "#9c8b6e",
    "wrong": "#c8372d",
}


def color(method: str) -> str:
    """A method's color, the same in every picture."""
    return _COLORS.get(method, _OTHER)


def _save(figure: plt.Figure, path: Path, bottom: float = 0.0) -> None:
    """Writes a figure; `bottom` is the share of its height that stays free below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout(rect=(0, bottom, 1, 1))
    save_small(figure, path, dpi=120, colors=32)
    plt.close(figure)


def _panels(count: int, height: float = 3.4) -> tuple[plt.Figure, list[plt.Axes]]:
    plt.rcParams.update({"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, count, figsize=(3.6 * count, height), squeeze=False)
    return figure, list(axes[0])


def pareto(settings: Sequence[Setting], path: Path) -> None:
    """Accuracy against length: final runs with their intervals, grids as small dots.

    The frame shows the means of the final runs, and their intervals unless these are very wide.
    """
    figure, axes = _panels(len(settings), 3.9)
    for place, setting in zip(axes, settings, strict=True):
        for method, results in setting.grids.items():
            if setting.name in analysis.SHIFTED:
                break  # their selection split has different problems
            found = [r.outcomes["select"] for r in results]
            x, y = ([float(getattr(o, n).mean()) for o in found] for n in ("length", "correct"))
            place.scatter(x, y, s=9, color=color(method), alpha=0.35, linewidths=0)
        ends = []
        for entry in (setting.start, *setting.entries.values()):
            length, accuracy = (analysis.figure(entry, n) for n in ("length", "accuracy"))
            place.errorbar(
                length.value,
                accuracy.value,
                xerr=[[length.value - length.low], [length.high - length.value]],
                yerr=[[accuracy.value - accuracy.low], [accuracy.high - accuracy.value]],
                fmt="*" if entry is setting.start else "o",
                markersize=9 if entry is setting.start else 6,
                color=color(entry.name),
                elinewidth=0.8,
                label=entry.name if entry.name in _COLORS else _OTHERS,
            )
            ends.append([(x.value, x.low, x.high) for x in (length, accuracy)])
        low, high = _frame(np.asarray(ends))
        margin = np.maximum(0.05 * (high - low), (1.0, 0.004))
        place.set_xlim(low[0] - margin[0], high[0] + margin[0])
        place.set_ylim(low[1] - margin[1], high[1] + margin[1])
        place.set_title(setting.name)
        place.set_xlabel("tokens")
    axes[0].set_ylabel("accuracy")
    _legend_below(figure, axes)
    _save(figure, path, bottom=0.07)


def _frame(found: np.ndarray, most: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Ends [2] of the axes for estimates [N, 2, 3] (value, low, high).

    Intervals more than `most` times as wide as the median one do not extend the frame.
    """
    values, low, high = np.moveaxis(found, -1, 0)
    width = high - low
    wide = width > most * np.median(width, axis=0)
    return np.where(wide, values, low).min(0), np.where(wide, values, high).max(0)


def _legend_below(figure: plt.Figure, axes: Sequence[plt.Axes]) -> None:
    """One legend for all panels, below them."""
    handles = {}
    for place in axes:
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if _OTHERS in handles:
        handles[_OTHERS] = handles.pop(_OTHERS)  # to the end
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncol=len(handles), frameon=False
    )


def curves(
    settings: Sequence[Setting], methods: Sequence[str], path: Path, smooth: int = 5
) -> None:
    """Length and accuracy of the sampled completions by sampled tokens; means over seeds.

    Methods that select groups by their rewards are left out, because they log only these groups.
    """
    figure, axes = plt.subplots(2, len(settings), figsize=(3.6 * len(settings), 5.2), squeeze=False)
    for column, setting in enumerate(settings):
        for method in methods:
            entry = setting.entries.get(method)
            if entry is None or any(_DYNAMIC in r.config for r in entry.results):
                continue
            for row, name in enumerate(("length", "accuracy")):
                size = min(len(r.curves[name]) for r in entry.results)
                values = np.mean([r.curves[name][:size] for r in entry.results], 0)
                tokens = np.mean([r.curves["sampled_tokens"][:size] for r in entry.results], 0)
                kernel = np.ones(min(smooth, size)) / min(smooth, size)
                axes[row][column].plot(
                    np.convolve(tokens, kernel, "valid") / 1000,
                    np.convolve(values, kernel, "valid"),
                    color=color(method),
                    linewidth=1.4,
                    label=method,
                )
        axes[0][column].set_title(setting.name)
        axes[-1][column].set_xlabel("sampled tokens (thousands)")
    axes[0][0].set_ylabel("mean length (tokens)")
    axes[1][0].set_ylabel("accuracy")
    _legend_below(figure, axes[0])
    _save(figure, path, bottom=0.05)


def categories(settings: Sequence[Setting], methods: Sequence[str], path: Path) -> None:
    """Tokens of each category in a correct completion, as stacked bars."""
    figure, axes = _panels(len(settings), 3.2)
    for place, setting in zip(axes, settings, strict=True):
        entries = [setting.start, *(setting.entries[m] for m in methods if m in setting.entries)]
        bottom = np.zeros(len(entries))
        names = [entry.name for entry in entries]
        found = [analysis.mean_categories(entry) for entry in entries]
        for kind in READ:
            values = np.asarray([one[kind] for one in found])
            place.barh(names, values, left=bottom, color=_KINDS[kind], label=kind, height=0.7)
            bottom += values
        place.invert_yaxis()
        place.set_title(setting.name)
        place.set_xlabel("tokens per correct completion")
    _legend_below(figure, axes)
    _save(figure, path, bottom=0.08)


def information(settings: Sequence[Setting], methods: Sequence[str], path: Path) -> None:
    """Where the information is: nats in each tenth of the reasoning, before and after."""
    figure, axes = _panels(len(settings), 2.9)
    for place, setting in zip(axes, settings, strict=True):
        entries = [setting.start, *(setting.entries[m] for m in methods if m in setting.entries)]
        for entry in entries:
            found = analysis.mean_information(entry)
            if found and found["profile"]:
                y = list(found["profile"].values())
                x = (np.arange(len(y)) + 0.5) / len(y)
                place.plot(x, y, color=color(entry.name), marker=".", label=entry.name)
        place.axhline(0, color="#999999", linewidth=0.6)
        place.set_title(setting.name)
        place.set_xlabel("position in the reasoning")
    axes[0].set_ylabel("nats about the answer")
    axes[-1].legend(fontsize=7, frameon=False)
    _save(figure, path)
