"""The examples in docstrings run, and no public function lacks one."""

import doctest
import importlib
import inspect

import pytest

import iapo_jax

FACES = (
    "iapo_jax",
    *(f"iapo_jax.{n}" for n in ["algorithms", "answers", "information", "losses", "model"]),
)


def public_functions(face):
    """Every function, jitted or not, of a module's `__all__`."""
    module = importlib.import_module(face)
    named = {name: getattr(module, name) for name in module.__all__}
    return {
        name: found for name, found in named.items() if inspect.isroutine(inspect.unwrap(found))
    }


MODULES = sorted({f.__module__ for face in FACES for f in public_functions(face).values()})


@pytest.mark.parametrize("face", FACES)
def test_every_public_function_has_an_example(face):
    found = public_functions(face)
    assert found and [name for name, f in found.items() if ">>>" not in (f.__doc__ or "")] == []


@pytest.mark.parametrize("name", [*MODULES, "iapo_jax.types", "iapo_jax.losses"])
def test_examples(name, root, monkeypatch):
    monkeypatch.chdir(root)  # examples name the model of the quick start
    module = importlib.import_module(name)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    tests = [test for test in finder.find(module) if test.examples]
    public = {
        f.__name__
        for face in FACES
        for f in public_functions(face).values()
        if f.__module__ == name
    }
    assert public <= {test.name.rpartition(".")[2] for test in tests}
    for test in tests:
        assert runner.run(test).failed == 0, test.name


def test_some_25_names_are_at_the_top():
    assert (
        20
        <= len([name for name in iapo_jax.__all__ if not inspect.ismodule(getattr(iapo_jax, name))])
        <= 30
    )
