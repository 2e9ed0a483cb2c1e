"""A run that is killed at critical moments ends like an undisturbed run: the short form.

The long form is `python tests/faults/torture.py`.
"""

import pytest
import torture
import victims


@pytest.mark.nightly
def test_killed_in_a_checkpoint_in_an_update_and_in_the_export(tmp_path):
    told = []
    places = ("checkpoint", "update", "export")
    out = tmp_path / "out"
    found = torture.torture(3, 0, out, places=places, options=victims.QUICK, say=told.append)
    assert found == []
    assert told[-1].endswith("run 1: checkpoint, update, export: bit for bit the same")


def test_the_comparison_can_fail():
    whole = {"metrics": [{"step": 1, "loss": 0.5}], "model": {"hf/x": b"1"}, "checkpoints": ["1"]}
    assert victims.differences(whole, whole) == []
    other = {"metrics": [{"step": 1, "loss": 0.25}], "model": {"hf/x": b"2"}, "checkpoints": []}
    assert victims.differences(whole, other) == [
        "metrics: steps ([1], [1]), fields ['loss']",
        "model: hf/x",
        "checkpoints: ['1'] expected, [] found",
    ]
