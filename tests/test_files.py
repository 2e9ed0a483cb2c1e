"""JSON and JSONL files: what is read, what an error names, and writes that are complete."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from iapo_jax.errors import RunError, UserError, check_unicode
from iapo_jax.runtime import files
from iapo_jax.runtime.locks import file_lock


@pytest.fixture
def write(tmp_path):
    def to_file(content, name="a.json"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to_file


# ------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    "content, options, expected",
    [
        ('{"a": 1}', {}, {"a": 1}),
        ('\ufeff{"a": 1}\n', {}, {"a": 1}),
        ('{"a": 1, "a": 2}', {}, {"a": 2}),  # as JSON's own rules allow
        ("[1, 2]", {"kind": list}, [1, 2]),
    ],
)
def test_a_json_file_is_read(write, content, options, expected):
    assert files.read_json(write(content), **options) == expected


@pytest.mark.parametrize(
    "content, options, sentence",
    [
        ("{broken", {}, "{path} is not JSON: Expecting property name"),
        (b'{"a": "\xff"}', {}, "{path} is not UTF-8: "),
        ("[1]", {}, "{path} is [1]; expected an object"),
        ('{"a": 1}', {"kind": list}, "{path} is {{'a': 1}}; expected a list"),
        ('{"b": {"a": 1, "a": 2}}', {"unique_keys": True}, "{path} is not JSON: the key 'a' o"),
        ("[" * 100_000, {"kind": list}, "{path} is not JSON: maximum recursion depth"),
        ('{"a": ' + "9" * 5000 + "}", {}, "{path} is not JSON: Exceeds the limit"),
        (None, {"missing": "a run"}, "{path} is missing; expected a run"),
    ],
)
def test_a_damaged_json_file_is_one_sentence(write, tmp_path, content, options, sentence):
    path = tmp_path / "none.json" if content is None else write(content)
    with pytest.raises(UserError) as caught:
        files.read_json(path, **options)
    assert str(caught.value).startswith(sentence.format(path=path))
    assert "\n" not in str(caught.value)


def test_a_directory_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: .*directory"):
        files.read_json(tmp_path)


def test_lines_end_at_newlines_only(write):
    """U+2028 and U+0085 are part of a text."""
    path = write('{"a": "x\u2028y\u0085z"}\r\n\n{"a": 1}\n')
    assert list(files.iterate_jsonl(path)) == [(1, {"a": "x\u2028y\u0085z"}), (3, {"a": 1})]


@pytest.mark.parametrize("end", ['{"a": ', '{"a": "\u00e9'.encode()[:-1], "nonsense"])
def test_an_incomplete_end_is_left_out_of_a_runs_rows(write, end):
    end = end.encode() if isinstance(end, str) else end
    path = write(b'{"a": 1}\n' + end)
    assert files.read_jsonl(path) == [{"a": 1}]
    with pytest.raises(UserError, match=f"{path}, line 2 is not "):
        list(files.iterate_jsonl(path))  # of a data file it is damage
    with pytest.raises(UserError, match=f"{path}, line 2 is not "):
        files.read_jsonl(write(b'{"a": 1}\n' + end + b"\n"))
    path = write(b'{"a": 1}\n' + end)
    files.cut_incomplete_end(path)
    assert path.read_bytes() == b'{"a": 1}\n'
    files.cut_incomplete_end(path)
    assert path.read_bytes() == b'{"a": 1}\n'


def test_a_missing_file_has_no_rows(tmp_path):
    assert files.read_jsonl(tmp_path / "none.jsonl") == []
    files.cut_incomplete_end(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="none.jsonl cannot be read: "):
        list(files.iterate_jsonl(tmp_path / "none.jsonl"))


def test_what_a_conversion_rejects_names_the_line(write):
    path = write('{"a": 1}\n{"b": 2}\n')
    assert files.read_jsonl(path, len) == [1, 1]
    with pytest.raises(UserError, match=f"^{path}, line 2: 'a' is missing$"):
        files.read_jsonl(path, lambda row: row["a"])
    with pytest.raises(UserError, match=f"^{path}, line 1: invalid literal"):
        files.read_jsonl(path, lambda row: int("x"))
    with pytest.raises(UserError, match=f"^{path}, line 2 is 3; expected an object$"):
        files.read_jsonl(write('{"a": 1}\n3\n'))


# ------------------------------------------------------------------------------ writing


def test_what_is_written_is_read_back(tmp_path):
    value = {"b": [1, None], "a": "\u00e9\u2028\ud800"}
    rows = [value, {"c": 1.5}]
    path = tmp_path / "new" / "folder" / "a.json"
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert list(files.read_json(path)) == ["b", "a"]
    files.write_json(path, value, sort_keys=True)
    assert list(files.read_json(path)) == ["a", "b"]
    files.write_json(path, rows)
    assert files.read_json(path, kind=list) == rows and path.read_text().count("\n") == 4
    files.write_jsonl(path, rows)
    files.append_jsonl(path, rows[:1])
    assert files.read_jsonl(path) == [*rows, value]
    assert path.read_text().split("\n")[1] == json.dumps(rows[1])
    assert os.listdir(path.parent) == ["a.json"]


def test_a_write_that_fails_leaves_the_earlier_file(write, monkeypatch):
    path = write("before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    sentence = "^the page cannot be written: .*No space left"
    with pytest.raises(RunError, match=sentence), files.writing("the page"):
        files.write_atomically(path, "after")
    with pytest.raises(UserError, match=sentence), files.writing("the page", UserError):
        files.write_atomically(path, "after")
    assert path.read_text() == "before"


def test_a_link_keeps_its_place(write, tmp_path):
    path = write("before")
    (tmp_path / "link").symlink_to(path)
    files.write_atomically(tmp_path / "link", b"after")
    assert (tmp_path / "link").is_symlink() and path.read_text() == "after"


def test_a_pipe_is_written_into(tmp_path):
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    files.write_atomically(path, "text")
    reader.join(10)
    assert read == ["text"] and path.is_fifo()


def test_half_of_a_surrogate_pair_is_not_text():
    assert check_unicode("\u00e9\U0001f600", "the answer") == "\u00e9\U0001f600"
    with pytest.raises(UserError, match=r"^the answer is 'a.udc80'; expected UTF-8 text without"):
        check_unicode("a\udc80", "the answer")


# -------------------------------------------------------------------------------- locks

HOLD = """
import sys, time
from pathlib import Path
from iapo_jax.runtime.locks import file_lock
with file_lock(Path(sys.argv[1]), instead="another", sign=True):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path, root):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        sentence = (
            f"^{path} is in use by another process .process {holder.pid} on .*, or use another$"
        )
        with (
            pytest.raises(UserError, match=sentence),
            file_lock(path, instead="another", sign=True),
        ):
            pass
        assert path.read_text().startswith(f"process {holder.pid} on ")
        holder.send_signal(signal.SIGKILL)
    with file_lock(path, instead="another", sign=True) as held:
        assert held and path.read_text().startswith(f"process {os.getpid()} on ")
    with file_lock(path, instead="another") as held:
        assert held
