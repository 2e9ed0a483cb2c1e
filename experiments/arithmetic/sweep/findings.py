"""What the experiment was made to find out, answered from its results."""

from collections.abc import Sequence

from sweep import analysis, tables
from sweep.analysis import BASE, Setting

RIVALS = ("length_penalty", "length_cap", "l1_max", "gfpo", "dapo")
OURS = "iapo_priced"
CLAIMED = 36.0
"""Per cent by which the paper's best cell is shorter."""


def render(settings: Sequence[Setting]) -> str:
    """All tables and findings as Markdown."""
    parts = []
    for setting in settings:
        parts.append(f"### {setting.name}\n\n{tables.results_table(setting)}")
        if setting.name not in analysis.SHIFTED:  # categories are of the test split
            parts.append(
                f"Tokens of each kind in a right completion:\n\n{tables.categories_table(setting)}"
            )
        if OURS in setting.entries and any(name in setting.entries for name in RIVALS):
            table = tables.equal_length_table(setting, OURS, RIVALS)
            parts.append(f"`{OURS}` at equal length:\n\n{table}")
        parts.append("\n".join(f"- {line}" for line in sentences(setting)))
    return "\n\n".join(part for part in parts if part)


def sentences(setting: Setting) -> list[str]:
    """One sentence a question; none where its runs are missing."""
    have = setting.entries
    found = []
    pairs = [("iapo", BASE), ("iapo", "iapo_shuffled"), (OURS, BASE), (OURS, "iapo")]
    for one, other in pairs:
        if one in have and other in have:
            shorter = analysis.relative_length(have[one], have[other])
            accuracy = analysis.difference(have[one], have[other], "accuracy")
            found.append(
                f"`{one}` against `{other}`: tokens {tables.cell(shorter, '{:+.1f}')} %, accuracy "
                f"{tables.cell(accuracy, '{:+.3f}')}"
            )
    if OURS in have and BASE in have:
        shorter = analysis.relative_length(have[OURS], have[BASE])
        accuracy = analysis.difference(have[OURS], have[BASE], "accuracy")
        reached = shorter.value <= -CLAIMED and accuracy.high >= 0
        found.append(
            f"`{OURS}` is {'' if reached else 'not '}at least {CLAIMED:.0f}% shorter than `{BASE}` "
            "at no loss of accuracy"
        )
    return found
