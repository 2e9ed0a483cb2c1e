"""README and docs are true: their links lead somewhere, their Python runs."""

import re
import subprocess

import numpy as np
import pytest

from iapo_jax import Group
from iapo_jax.runtime import plugins

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "experiments", "benchmarks"]


def pages(root):
    """Every Markdown page that git tracks or would add, but those of tests."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=root, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    return [root / name for name in found if name.split("/")[0] in PAGES]


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)


def test_links_lead_to_files_and_headings(root):
    broken = []
    for page in pages(root):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith(("http://", "https://")):
                continue
            name, _, heading = target.partition("#")
            place = (page.parent / name) if name else page
            if not place.exists():
                broken.append(f"{page.name}: {target}")
            elif heading:
                titles = re.findall(r"^#+ (.+)$", place.read_text(), re.M)
                slugs = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
                if heading not in slugs:
                    broken.append(f"{page.name}: {target}")
    assert not broken


def test_paths_that_the_readme_names_exist(root):
    text = (root / "README.md").read_text()
    named = set(re.findall(r"(?:experiments|docs|benchmarks)/[\w./-]+\.\w+", text))
    assert named
    assert [name for name in sorted(named) if not (root / name).exists()] == []


def test_the_readme_is_short_and_has_two_commands(root):
    text = (root / "README.md").read_text()
    assert len(text.split()) < 900
    assert len(re.findall(r"^pip install ", text, re.M)) == 2  # .ci/run takes them from here


def test_the_example_of_the_readme_runs(root, monkeypatch):
    monkeypatch.chdir(root)
    [code] = python_blocks(root / "README.md")
    names = {}
    exec(code, names)
    assert names["uncertainty"].shape == (1, 4, 97)
    assert np.isfinite(names["uncertainty"]).all()


@pytest.fixture
def training_examples(root, tmp_path):
    """The reward function and the rule of docs/training.md, loaded from files as a config would."""
    reward, rule = python_blocks(root / "docs" / "training.md")
    (tmp_path / "my_rewards.py").write_text(reward)
    (tmp_path / "my_rule.py").write_text(rule)
    return (
        plugins.load(f"{tmp_path}/my_rewards.py:short", "reward"),
        plugins.load(f"{tmp_path}/my_rule.py:shortest_correct", "rule"),
    )


def test_the_examples_of_the_training_page_run(training_examples):
    short, shortest_correct = training_examples
    assert short([], ["x" * 500, ""], []) == [-0.5, 0.0]
    mask = np.arange(4) < np.array([[2], [4], [4]])
    correct = np.array([True, True, False])
    credit = shortest_correct(Group(mask, reward=correct.astype(np.float32), correct=correct), None)
    shortest, longest, incorrect = credit.advantage[:, 0]
    assert shortest > longest > incorrect
    np.testing.assert_allclose(credit.advantage[0], [shortest, shortest, 0, 0])
