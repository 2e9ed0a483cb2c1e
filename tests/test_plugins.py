"""A user's code by its name: loaded once; an error names the file and the line."""

import sys

import pytest

from iapo_jax.errors import UserError
from iapo_jax.runtime import plugins


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"x = 1\ndef f(:\n", "raised SyntaxError: invalid syntax (own.py, line 2)"),
        (b"x = 1\n  y = 2\n", "raised IndentationError: unexpected indent (own.py, line 2)"),
        (b"\n\nimport no_such\n", "raised ModuleNotFoundError(\"No module named 'no_such'\")"),
        (b"def g():\n    1 / 0\ng()\n", "raised ZeroDivisionError('division by zero') (own.py, li"),
        (b"raise ValueError('a\\nb')\n", r"raised ValueError('a\nb') (own.py, line 1)"),
        (b"import sys\nsys.exit(0)\n", "raised SystemExit(0) (own.py, line 2)"),
        (b"a = '\xe9'\n", "raised SyntaxError: (unicode error) 'utf-8' codec can't decode"),
        (b"a = 1\0\n", "raised SyntaxError: source code string cannot contain null bytes"),
        (b"g = 1\n", "own.py does not define 'f'"),
        (b"class E(Exception):\n    def __repr__(self):\n        return 'a\\nb'\nraise E\n",
         "raised a b (own.py, line 4)"),
        (b"class E(Exception):\n    def __repr__(self):\n        1 / 0\nraise E\n",
         "raised a E (own.py, line 4)"),
    ],
)  # fmt: skip
def test_a_file_that_fails_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "own.py").write_bytes(content)
    with pytest.raises(UserError) as caught:
        plugins.load(f"{tmp_path}/own.py:f", "Reward")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_module_that_fails_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_module.py").write_text("x = 1\nimport no_such\n")
    with pytest.raises(UserError, match=r"no_such.*\(own_module.py, line 2\)"):
        plugins.load("own_module.f", "Reward")
    assert "own_module" not in sys.modules


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    for place in ("none.py", "folder.py", "~/none.py"):
        with pytest.raises(UserError, match=f"file '.*{place[-7:]}' does not exist"):
            plugins.load(f"{place}:f", "Reward")


def test_a_file_beside_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.py").write_text("f = 7\n")
    assert plugins.load("~/own.py:f", "Reward") == 7
