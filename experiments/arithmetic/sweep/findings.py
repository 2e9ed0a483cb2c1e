"""The findings of the experiment, computed from its results."""

from collections.abc import Sequence

from sweep import analysis, tables
from sweep.analysis import BASE, SHIFTED, Setting
from sweep.choose import TOLERANCE
from sweep.plan import CONTROLS, FRONTS, OURS, RIVALS, SHUFFLED, ZERO

CLAIMED = 36.0
"""The reduction of length in the paper's best cell, in percent."""
PUBLISHED = "iapo"
CONTROL = next(control for control, of in CONTROLS.items() if of == PUBLISHED)


def render(settings: Sequence[Setting]) -> str:
    """All tables and findings as Markdown."""
    together = [one for one in settings if one.entries]
    pairs = [(OURS, BASE), (PUBLISHED, BASE), (PUBLISHED, CONTROL), (OURS, SHUFFLED)]
    table = tables.overview_table(together, pairs)
    parts = [f"### All settings\n\n{table}"] if len(together) > 1 else []
    if together:
        table = tables.choices_table(together)
        parts.append(
            f"The chosen points, without the options that all points of a grid share:\n\n{table}"
        )
    for setting in settings:
        if not setting.entries:
            if setting.name not in SHIFTED and any(setting.grids.values()):
                table = tables.grids_table(setting)
                parts.append(f"### {setting.name}: grids so far (selection split)\n\n{table}")
            continue
        parts.append(f"### {setting.name}\n\n{tables.results_table(setting)}")
        if setting.name not in SHIFTED:  # these tables are about the test or the selection split
            shown = (BASE, PUBLISHED, OURS)
            for title, table in (
                (
                    "Tokens of each category in a correct completion",
                    tables.categories_table(setting),
                ),
                (
                    "Informativeness of the tokens of each category in a completion, nats",
                    tables.information_table(setting, shown),
                ),
                (
                    "Informativeness of each tenth of the reasoning, nats",
                    tables.profile_table(setting, shown),
                ),
            ):
                parts.append(f"{title}:\n\n{table}")
            if PUBLISHED in setting.chosen and CONTROL in setting.chosen:
                table = tables.weights_table(setting, PUBLISHED, CONTROL)
                title = "Information against the same information shuffled (selection split)"
                parts.append(f"{title}:\n\n{table}")
        if setting.confirming:
            table = tables.confirming_table(setting)
            parts.append(f"With new seeds:\n\n{table}")
            if setting.name not in SHIFTED and (table := tables.credit_table(setting)):
                parts.append(f"Effect of the credit of these runs on length:\n\n{table}")
        if _has_fronts(setting) and any(name in setting.entries for name in RIVALS):
            table = tables.equal_length_table(setting, OURS, RIVALS)
            parts.append(f"`{OURS}` at equal length:\n\n{table}")
        parts.append("\n".join(f"- {line}" for line in sentences(setting)))
    if together:
        own = [one for one in together if one.name not in SHIFTED]
        parts.append(f"### Time\n\n{tables.times_table(own)}")
    return "\n\n".join(part for part in parts if part)


def sentences(setting: Setting) -> list[str]:
    """One sentence for each question whose runs are present."""
    have = setting.entries
    found = []
    pairs = [(PUBLISHED, BASE), (PUBLISHED, CONTROL), (OURS, BASE), (OURS, PUBLISHED)]
    pairs += [(OURS, SHUFFLED), (OURS, ZERO), (ZERO, BASE)]
    for one, other in [*pairs, *((name, None) for name in (BASE, OURS))]:
        if one not in have or other not in (None, *have):
            continue
        base = setting.start if other is None else have[other]
        shorter, accuracy = tables.compared(have[one], base)
        against = "the initial model" if other is None else f"`{other}`"
        found.append(f"`{one}` against {against}: tokens {shorter} %, accuracy {accuracy}")
    again = setting.confirming
    for one in (name for name in again if BASE in again and name != BASE):
        shorter, accuracy = tables.compared(again[one], again[BASE])
        found.append(
            f"with new seeds, `{one}` against `{BASE}`: tokens {shorter} %, accuracy {accuracy}"
        )
    if OURS in have and BASE in have:
        found.append(_verdict(setting))
    if _has_fronts(setting):
        rivals = [name for name in RIVALS if name in have]
        gaps = {name: analysis.at_equal_length(setting, OURS, name).difference for name in rivals}
        for word, among in (
            ("better than", [name for name, gap in gaps.items() if gap.low > 0]),
            ("worse than", [name for name, gap in gaps.items() if gap.high < 0]),
            (
                "not distinguishable from",
                [n for n, gap in gaps.items() if gap.low <= 0 <= gap.high],
            ),
        ):
            if among:
                names = ", ".join(f"`{name}`" for name in among)
                found.append(f"at equal length `{OURS}` is {word} {names}")
    return found


def _has_fronts(setting: Setting) -> bool:
    """Whether the grids were measured on the test problems, so that fronts can be compared."""
    of = SHIFTED.get(setting.name, (setting.name,))[0]
    return of in FRONTS and OURS in setting.entries


def _verdict(setting: Setting) -> str:
    ours, base = setting.entries[OURS], setting.entries[BASE]
    shorter = analysis.relative_length(ours, base)
    accuracy = analysis.difference(ours, base, "accuracy")
    short = f"is {'' if shorter.value <= -CLAIMED else 'not '}at least {CLAIMED:.0f}% shorter"
    if accuracy.high < 0:
        return f"`{OURS}` {short} than `{BASE}`; its accuracy is lower"
    within = "within" if -accuracy.low <= TOLERANCE else "beyond"
    return (
        f"`{OURS}` {short} than `{BASE}`; its accuracy is not significantly lower: the lower end "
        f"of the interval, {accuracy.low:+.3f}, is {within} the tolerance of {TOLERANCE}"
    )
