"""The table of breaks follows the code: `faults/breaks.py` runs it, at night."""

import pytest
from breaks import BREAKS


@pytest.mark.parametrize("broken", BREAKS, ids=lambda one: one.what)
def test_each_break_applies_and_names_a_test(root, broken):
    assert (root / "iapo_jax" / broken.file).read_text().count(broken.old) == 1
    file, _, name = broken.test.partition("::")
    assert f"def {name}(" in (root / "tests" / file).read_text()
    assert f"| {broken.what} | `{broken.file}` |" in (root / "CONTRIBUTING.md").read_text()
