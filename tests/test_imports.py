"""Imports go one way: between packages, and inside each; every heavy dependency has one home."""

import ast
import graphlib
import subprocess
import sys

import pytest

# Each package imports only from those before it.
ORDER = [
    "types", "errors", "sharding", "config", "algorithms", "losses", "model", "runtime", "answers",
    "pretrained", "data", "rollout", "information", "evaluation", "training",
    "train", "sft", "evaluate", "inspect", "export", "report",
]  # fmt: skip
HOMES = {
    "datasets": {"data.files"},
    "flax": {"model.decoder"},
    "filelock": {"runtime.locks"},
    "huggingface_hub": {"pretrained.weights", "pretrained.model_directory"},
    "jinja2": {"information.templates"},
    "latex2sympy2_extended": {"answers.checker"},
    "markupsafe": {"information.templates"},
    "math_verify": {"answers.checker"},
    "matplotlib": {"report.charts"},
    "omegaconf": {"config.loading"},
    "optax": {"training.optimizer"},
    "orbax": {"training.checkpoint"},
    "rich": {"information.terminal"},
    "safetensors": {"pretrained.weights"},
    "scipy": {"evaluation.intervals"},
    "tensorboardX": {"training.run_writer"},
    "tqdm": {"runtime.console"},
    "transformers": {"pretrained.tokenization"},
}
EVERYWHERE = {"chex", "jax", "numpy"}
PURE = {"algorithms": {"types"}, "model": {"types", "sharding"}}


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
    """Module name (as data.files) -> what it imports; all but __init__."""
    folder = root / "iapo_jax"
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): imported(path)
        for path in sorted(folder.rglob("*.py"))
        if path.stem != "__init__"
    }


def own(names):
    """The modules and packages of this library among imported names."""
    return {name.removeprefix("iapo_jax.") for name in names if name.startswith("iapo_jax.")}


def package(name):
    return name.partition(".")[0]


def test_every_module_has_its_package(modules):
    assert {package(name) for name in modules} == set(ORDER)


def test_packages_import_one_way(modules):
    for name, names in modules.items():
        above = {package(n) for n in own(names)} - {package(name)}
        assert above & set(ORDER) <= set(ORDER[: ORDER.index(package(name))]), name


def test_no_module_imports_itself_by_a_detour(modules):
    graph = {name: own(names) & set(modules) - {name} for name, names in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("pure", PURE)
def test_the_mathematics_sees_no_files_and_no_config(modules, pure):
    for name, names in modules.items():
        if package(name) == pure:
            assert {package(n) for n in own(names)} <= PURE[pure] | {pure}, name


def test_the_answers_see_no_jax(modules):
    for name, names in modules.items():
        if package(name) == "answers":
            assert "jax" not in {package(n) for n in names}, name


@pytest.mark.parametrize("dependency", HOMES)
def test_one_home(modules, dependency):
    found = {name for name, names in modules.items() if dependency in {package(n) for n in names}}
    assert found == HOMES[dependency]


def test_every_dependency_has_a_home(modules):
    found = {package(name) for names in modules.values() for name in names}
    assert found - sys.stdlib_module_names - EVERYWHERE - {"iapo_jax"} == set(HOMES)


def test_importing_the_library_is_light():
    heavy = {"transformers", "datasets", "orbax", "omegaconf", "math_verify"}
    heavy |= {"tensorboardX", "safetensors", "huggingface_hub", "torch", "tensorflow"}
    heavy |= {"matplotlib", "jinja2", "scipy.stats"}
    code = f"import sys, iapo_jax; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import iapo_jax

    assert sorted(iapo_jax.__all__) == list(iapo_jax.__all__)
    assert all(hasattr(iapo_jax, name) for name in iapo_jax.__all__)
