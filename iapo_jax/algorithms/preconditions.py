"""What a piece of a method checks of its hyper-parameters and of its group."""

from iapo_jax.types import Array, Group


def check_at_least(name: str, value: float | Array, low: float) -> None:
    """Refuses a smaller hyper-parameter; one that follows the run is an array and passes."""
    if isinstance(value, int | float) and value < low:
        raise ValueError(f"{name} is {value}; expected at least {low}")


def check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a hyper-parameter that is not among the known names."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def check_fields(group: Group, rule: str, *fields: str) -> None:
    """Refuses a group without a field that the rule of this name needs."""
    for field in fields:
        if getattr(group, field) is None:
            raise ValueError(f"{rule} needs Group.{field}, which is None")
