"""Checks of the hyper-parameters and the group of a method's piece."""

from iapo_jax.types import Array, Group


def check_at_least(name: str, value: float | Array, low: float) -> None:
    """Raises if a hyper-parameter is below `low`; an adaptive one is an array and passes."""
    if isinstance(value, int | float) and value < low:
        raise ValueError(f"{name} is {value}; expected at least {low}")


def check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises if a hyper-parameter is not one of the known names."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def check_fields(group: Group, rule: str, *fields: str) -> None:
    """Raises if the group lacks a field that the rule of this name needs."""
    for field in fields:
        if getattr(group, field) is None:
            raise ValueError(f"{rule} needs Group.{field}, which is None")
