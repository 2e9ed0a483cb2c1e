"""Imports go one way, in reading order, and every heavy dependency has one home."""

import ast
import subprocess
import sys

import pytest

MATHEMATICS = (
    *("types", "statistics", "advantages", "shaping", "selection"),
    *("adaptation", "losses", "options", "algorithms", "diagnostics"),
)
# Each module imports only from those before it.
READING_ORDER = [
    *("errors", "locks", "config", "checks", "plugins"),
    *MATHEMATICS,
    *("sharding", "processes", "interruption", "cli"),
    *("kernels", "attention", "model", "scoring", "sampling", "information", "signals"),
    *("extraction", "notation", "quantities", "structures", "equivalence", "answers", "rewards"),
    *("weights", "pretrained", "untrusted", "probes"),
    *("questions", "arithmetic", "catalogue", "cleaning", "tables", "chat_prompts", "data"),
    *("figures", "records", "summary"),
    *("checkpoint", "metrics"),
    *("update", "run", "rollouts", "resampling", "skipping", "boundary"),
    *("inspection", "examine", "evaluation", "held_out", "model_selection", "reporting"),
    *("learner", "trainer", "step", "train", "sft"),
    *("sources", "export", "evaluate"),
    *("terminal", "page", "inspect"),
    *("report.samples", "report.results", "report.series", "report.grouping", "report.entries"),
    *("report.comparison", "report.methods_table", "report.charts", "report.panels"),
    *("report.examples", "report.page", "report.command", "report.__main__"),
]

PACKAGES = {"report"}

HOMES = {
    "datasets": {"tables"},
    "flax": {"model"},
    "grain": {"data"},
    "huggingface_hub": {"weights", "pretrained"},
    "math_verify": {"answers"},
    "matplotlib": {"report.charts"},
    "omegaconf": {"config"},
    "optax": {"update"},
    "orbax": {"checkpoint"},
    "rich": {"terminal"},
    "safetensors": {"weights"},
    "tensorboardX": {"metrics"},
    "tqdm": {"metrics"},
    "transformers": {"pretrained"},
}


def imported(path):
    """Every module that a file imports, in functions too; names of `from x import y` as x.y."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.fixture(scope="module")
def modules(root):
    """Module name (of a package, as report.page) -> what it imports; all but __init__."""
    folder = root / "iapo_jax"
    named = {
        ".".join(path.relative_to(folder).with_suffix("").parts): path
        for path in sorted(folder.rglob("*.py"))
        if path.stem != "__init__"
    }
    return {name: imported(path) for name, path in named.items()}


def own(names):
    """The modules of this library among imported names."""
    parts = [name.split(".")[1:] for name in names if name.startswith("iapo_jax.")]
    whole = {".".join(part[: 1 + (part[0] in PACKAGES)]) for part in parts}
    return whole - PACKAGES


def test_every_module_has_its_place(modules):
    assert sorted(modules) == sorted(READING_ORDER)


@pytest.mark.parametrize("name", READING_ORDER)
def test_imports_go_one_way(modules, name):
    before = READING_ORDER[: READING_ORDER.index(name)]
    assert own(modules[name]) <= set(before), f"{name} imports from below"


def test_nothing_imports_the_package_itself(modules):
    # `import iapo_jax` inside would be a cycle through __init__.
    for name, names in modules.items():
        bare = {n for n in names if n == "iapo_jax"} and not own(names)
        assert not bare, name


@pytest.mark.parametrize("dependency", HOMES)
def test_one_home(modules, dependency):
    found = {
        name for name, names in modules.items() if dependency in {n.split(".")[0] for n in names}
    }
    assert found == HOMES[dependency]


@pytest.mark.parametrize("name", MATHEMATICS)
def test_the_mathematics_sees_no_model(modules, name):
    assert own(modules[name]) <= set(MATHEMATICS)


HOST = ("extraction", "notation", "quantities", "structures", "equivalence", "answers")


@pytest.mark.parametrize("name", [*HOST, "rewards", "plugins"])
def test_the_host_side_sees_no_jax(modules, name):
    assert "jax" not in {n.split(".")[0] for n in modules[name]}


def test_importing_the_library_is_light():
    heavy = {"transformers", "datasets", "orbax", "omegaconf", "grain", "math_verify"}
    heavy |= {"tensorboardX", "safetensors", "huggingface_hub", "torch", "tensorflow"}
    heavy |= {"matplotlib"}
    code = f"import sys, iapo_jax; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import iapo_jax

    assert sorted(iapo_jax.__all__) == list(iapo_jax.__all__)
    assert all(hasattr(iapo_jax, name) for name in iapo_jax.__all__)
