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
    *("errors", "config", "cli", "checks", "plugins"),
    *MATHEMATICS,
    *("sharding", "kernels", "attention", "model", "scoring", "sampling", "information", "signals"),
    *("arithmetic", "answers", "rewards", "weights", "pretrained", "probes"),
    *("questions", "catalogue", "cleaning", "data"),
    *("figures", "records", "summary"),
    *("checkpoint", "metrics"),
    *("update", "run", "rollouts", "resampling"),
    *("inspection", "examine", "evaluation", "held_out", "reporting"),
    *("learner", "trainer", "step", "train", "sft"),
    *("sources", "export", "evaluate"),
    *("terminal", "page", "inspect"),
    *(
        "samples",
        "results",
        "series",
        "grouping",
        "entries",
        "comparison",
        "methods_table",
        "charts",
    ),
    *("report_charts", "report_examples", "report_page", "report"),
]

HOMES = {
    "datasets": {"data"},
    "flax": {"model"},
    "grain": {"data"},
    "huggingface_hub": {"weights", "pretrained"},
    "math_verify": {"answers"},
    "matplotlib": {"charts"},
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
    """Module name -> what it imports, for every module but __init__."""
    files = sorted((root / "iapo_jax").rglob("*.py"))
    return {path.stem: imported(path) for path in files if path.stem != "__init__"}


def own(names):
    """The modules of this library among imported names."""
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "iapo_jax" and len(part) > 1}


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


@pytest.mark.parametrize("name", ["answers", "rewards", "plugins"])
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
