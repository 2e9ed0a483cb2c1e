"""Answers: extraction, and equivalence in children that can be killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from iapo_jax.answers import checker as answers
from iapo_jax.answers.checker import AnswerChecker, extract_answer

ROOT = Path(__file__).resolve().parents[1]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
# Without iapo_jax/__init__.py, which imports JAX.
ALONE = (
    "import sys, types\n"
    "package = sys.modules['iapo_jax'] = types.ModuleType('iapo_jax')\n"
    f"package.__path__ = [{str(Path(answers.__file__).parents[1])!r}]\n"
    "from iapo_jax.answers import checker as answers\n"
)
HANG = r"2^{2^{2^{2^{2^{2}}}}}"  # 2^(2^65536): has no end in any time


@pytest.fixture(scope="module")
def checker():
    with AnswerChecker(2, timeout=10.0) as checker:
        yield checker


@pytest.fixture
def no_child(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a child process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Let the children import a `math_verify` whose `verify(gold, candidate)` is the given code."""

    def write(code, preamble=""):
        lines = (
            "import os, time\nLatexExtractionConfig = dict\nparse = lambda text, *a, **k: text\n"
        )
        body = f"{preamble}\n{lines}def verify(gold, candidate, **options):\n    {code}\n"
        (tmp_path / "math_verify.py").write_text(body)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


@pytest.mark.parametrize(
    "completion, expected",
    [
        ("<think>3*4 = 12</think><answer>12.5</answer>", "12.5"),
        ("<answer> 7 </answer>", "7"),
        ("<answer>7</answer> no, <answer>8</answer>", "8"),
        ("<answer>7</answer> and <answer>8", "7"),
        ("<answer>7</answer></answer>", "7"),
        ("<answer>7<answer>8</answer>", "8"),
        ("</answer><answer>7", None),
        ("</answer>7<answer>", None),
        ("<answer></answer>", ""),
        ("<answer>\nit is \\boxed{ 7 }\n</answer>", "7"),
        (r"<answer>\boxed{7} or rather \boxed{8}</answer>", "8"),
        (r"<answer>\boxed{7}, \boxed{8</answer>", "7"),
        (r"<answer>\boxed{\frac{1}{\sqrt{2}}}</answer>", r"\frac{1}{\sqrt{2}}"),
        (r"<answer>\boxed{\boxed{3}}</answer>", "3"),
        (r"<answer>\boxed{\{1, 2\}}</answer>", r"\{1, 2\}"),
        (r"<answer>\boxed{\left\{ 1 \right.}</answer>", r"\left\{ 1 \right."),
        (r"<answer>\boxed {5}</answer>", "5"),
        (r"<answer>5</answer> \boxed{6}", "5"),
        (r"<think>\boxed{1}</think> so \boxed{2}.", "2"),
        (r"<think>\boxed{1}</think> so 2.", None),
        (r"\boxed{1}</think> so 2.", None),
        (r"<think>a</think>\boxed{1}<think>b</think>\boxed{2} }", "2"),
        (r"<think>\boxed{1} and then", None),
        (r"no tags, \boxed{1} and { \boxed{2}", "2"),
        (r"no tags, \boxed{1 and {2}", None),
        ("<think>3*4 = 12</think>", None),
        ("The answer is 12.", "12"),
        ("It must be 12.", None),
        ("", None),
    ],
)
def test_extract_answer(completion, expected):
    assert extract_answer(completion) == expected


MILLION = 1_000_000


@pytest.mark.parametrize(
    "hostile",
    [
        "<answer>\\boxed{" + "{" * MILLION + "</answer>",
        "<answer>\\boxed{" + "{" * MILLION + "}" * MILLION + "}</answer>",
        "\\boxed{" * MILLION,
        "\\boxed " * MILLION,
        "<think>" * MILLION + "</think>",
        "<answer>" * MILLION,
        "<think></think>" + "<answer></answer>" * MILLION,
    ],
    ids=lambda text: text[:20],
)
def test_hostile_texts_take_linear_time(hostile, no_child):
    """A second or two on a slow core; a step for each pair of characters would take a day."""
    start = time.process_time()
    assert answers.is_correct(hostile, "12") is False
    assert time.process_time() - start < 30.0


@pytest.mark.parametrize(
    "one, other, same",
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"$-\dfrac{3}{4}$", "-3/4", True),
        ("1/2", "2 / 4", True),
        ("4/2", "2", True),
        ("1/3", "0.333333", False),
        ("1/0", "1/0.0", False),
        ("1/0", "2/0", False),
        (r"\frac{x}{2}", "0.5", False),
        ("1" * 3000 + "/2", "1" * 3001 + "/2", False),
        ("１/２", "0.5", False),
    ],
)
def test_exact_values_mean_the_same_without_a_child(one, other, same, no_child):
    assert answers.same_answer(one, other) is answers.same_answer(other, one) is same


@pytest.mark.parametrize(
    "candidate, gold, equal",
    [
        ("12", "12", True),
        (" 12\n", "12", True),
        ("13", "12", False),
        ("-12", "12", False),
        ("-12", "-12", True),
        ("+12", "12", True),
        ("012", "12", True),
        ("-0", "0", True),
        ("12.0", "12", True),
        ("12.", "12", True),
        ("12.5", "12", False),
        ("12.50", "12.5", True),
        ("12.0000001", "12", False),
        ("123456789012345678901234567890", "123456789012345678901234567891", False),
        ("1,234", "1234", True),
        ("1,234,567.0", "1234567", True),
        ("$1,234", "1234", True),
        (r"\$12", "12", True),
        ("-$12", "-12", True),
        ("$12$", "12", True),
        (r"\(12\)", "12", True),
        ("", "12", False),
        ("", "", False),
        ("B", "B", True),
        ("b", "B", True),
        ("(B)", "B", True),
        ("B.", "B", True),
        (r"\text{(B)}.", "B", True),
        ("A", "B", False),
        ("A=B", "B", False),  # math-verify says True
        ("A or B", "B", False),
        ("12", "B", False),
        ("9" * 2_001, "12", False),
        ("x" * 2_001, "x+0", False),
        ("x" * 2_001, "x" * 2_001, True),
    ],
)
def test_short_cuts_need_no_child(candidate, gold, equal, no_child):
    assert AnswerChecker(1).check([(candidate, gold)]) == [equal]


# The equalities are arithmetic; the inequalities are hedges, other digits, and texts that hold 12.
@pytest.mark.parametrize(
    "candidate, gold, equal",
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\dfrac{3}{6}", r"\frac12", True),
        (r"\frac{1}{2}", r"\frac{1}{3}", False),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"2\sqrt{3}", r"\sqrt{13}", False),
        (r"(1, \frac{4}{2})", "(1,2)", True),
        ("(2, 1)", "(1, 2)", False),
        (r"\{2, 1\}", "1, 2", True),
        ("(x+1)^2", "x^2+2x+1", True),
        (r"$\frac{24}{2}$", "12", True),
        ("x = 12", "12", True),
        (r"12\text{ dollars}", "12", True),
        (r"12\%", "12", True),
        ("−12", "-12", True),
        ("12 or 13", "12", False),
        ("12, 13", "12", False),
        ("12 13", "12", False),
        ("13 or maybe $12$", "12", False),
        ("$12$ $13$", "12", False),
        ("I don't know but 12", "12", False),
        ("final answer is $12$. I hope", "12", False),
        (r"13} \boxed{12", "12", False),
        ("１２", "12", False),
        ("١٢", "12", False),
        ("12²", "12", False),
        ("((((", "12", False),
        ("\ud800\x00", "12", False),
        ("__import__('os')", "12", False),
    ],
)
def test_math_verify_decides_the_rest(checker, candidate, gold, equal):
    assert checker.check([(candidate, gold)]) == [equal]
    assert (checker.timeouts, checker.errors) == (0, 0)


@pytest.mark.skipif(not GSM8K.exists(), reason=f"no {GSM8K}")
def test_gsm8k_golds_need_no_child(no_child):
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    golds = [row["answer"].rpartition("####")[2].strip() for row in rows]
    assert len(golds) == 7_473
    texts = [f"<think>1 + 1 = 2</think><answer>{gold}</answer>" for gold in golds]
    assert all(answers.are_correct(texts, golds))
    more = [int(gold.replace(",", "")) + 1 for gold in golds]
    assert not any(answers.are_correct(texts, more))


def test_a_hang_costs_one_answer_and_not_the_batch():
    # 24 equalities x + n = (2x + 2n)/2 and as many inequalities, with the hang among them.
    pairs = [(f"x+{n}", rf"\frac{{2x+{2 * n + odd}}}{{2}}") for odd in (0, 1) for n in range(24)]
    pairs.insert(5, (HANG, "16"))
    expected = [True] * 24 + [False] * 24
    expected.insert(5, False)
    with AnswerChecker(2, timeout=1.0) as checker:
        assert checker.check(pairs) == expected
        assert (checker.timeouts, checker.errors) == (1, 0)  # no other job waited for its end
        assert checker.check([("x+1", "1+x")]) == [True]


def test_default_checker_counts():
    before = answers.checker_counts()
    assert answers.answers_match(HANG, "16", timeout=0.5) is False
    assert answers.answers_match("x+1", "1+x") is True
    assert answers.checker_counts() == before | {"timeouts": before["timeouts"] + 1}


def test_equal_pairs_are_asked_once(stand_in, tmp_path):
    stand_in(f"open({str(tmp_path / 'log')!r}, 'a').write(candidate); return True")
    with AnswerChecker(1) as checker:
        assert checker.check([("x", "y")] * 5 + [(" x", "$y$")]) == [True] * 6
    assert (tmp_path / "log").read_text() == r"\boxed{x}"


def test_a_child_killed_while_idle_is_replaced():
    with AnswerChecker(1) as checker:
        assert checker.check([("x+1", "1+x")]) == [True]
        (first,) = checker.waiting()
        os.kill(first, signal.SIGKILL)
        assert checker.check([("x+1", "1+x"), ("x+1", "2+x")]) == [True, False]
        (second,) = checker.waiting()
        assert second != first
        assert (checker.timeouts, checker.errors) == (0, 0)


def test_a_job_is_retried_once_if_its_child_dies(stand_in, tmp_path):
    mark = str(tmp_path / "mark")
    die_once = f"os.path.exists({mark!r}) or (open({mark!r}, 'w').close(), os.kill(os.getpid(), 9))"
    stand_in(f"{die_once}; return 'never' not in candidate or os.kill(os.getpid(), 9)")
    with AnswerChecker(1) as checker:
        assert checker.check([("x", "y"), ("never", "y"), ("z", "y")]) == [True, False, True]
        assert (checker.timeouts, checker.errors) == (0, 1)


def test_an_exception_in_the_checker_is_counted(stand_in):
    stand_in("return 1 / (candidate != '\\\\boxed{x}')")
    with AnswerChecker(1) as checker:
        assert checker.check([("x", "y"), ("z", "y")]) == [False, True]
        assert (checker.timeouts, checker.errors) == (0, 1)


def test_a_child_that_cannot_start_is_an_error(stand_in):
    stand_in("pass", preamble="raise ImportError('broken here')")
    with AnswerChecker(2) as checker, pytest.raises(RuntimeError, match="broken here"):
        checker.check([("x", "y"), ("z", "y")])


def test_usable_from_other_threads(checker):
    found = {}

    def work(n):
        pairs = [(f"{n}x+{d}", f"{d}+2x") for d in range(3, 9)]
        found[n] = checker.check(pairs)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {1: [False] * 6, 2: [True] * 6, 3: [False] * 6}


def test_starting_a_child_does_not_fork_this_process():
    # JAX warns from such a hook; fork with its threads can deadlock.
    forks = []
    os.register_at_fork(before=lambda: forks.append(1))
    with AnswerChecker(1) as checker:
        assert checker.check([("x+1", "1+x")]) == [True]
    assert not forks


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_child_holds_neither_jax_nor_numpy_and_is_limited():
    with AnswerChecker(1, memory=3 * 2**30) as checker:
        checker.check([("x+1", "1+x")])
        proc = Path("/proc") / str(checker.waiting()[0])
        maps = (proc / "maps").read_text()
        assert "python" in maps and "jax" not in maps and "numpy" not in maps
        (limit,) = [
            line for line in (proc / "limits").read_text().splitlines() if "address" in line
        ]
        assert limit.split()[3] == str(3 * 2**30)


def test_the_module_imports_neither_jax_nor_math_verify():
    code = f"{ALONE}assert not {{'jax', 'math_verify', 'sympy'}} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)"], ids=["exit", "killed"])
def test_children_end_with_the_process(end):
    code = (
        f"{ALONE}import os\n"
        "assert answers.answers_match('x+1', '1+x')\n"
        f"print(answers.default_checker().waiting()[0], flush=True)\n{end}\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.stdout.strip().isdigit()
    stat = Path("/proc") / done.stdout.strip() / "stat"
    until = time.monotonic() + 10.0
    # Without its parent it may stay a zombie (state Z) where process 1 does not reap.
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until, "the child outlived its parent"
        time.sleep(0.05)


def test_a_closed_checker_still_knows_numbers():
    with AnswerChecker(1) as checker:
        checker.check([("x+1", "1+x")])
        (child,) = checker.waiting()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert checker.check([("12.0", "12")]) == [True]
    with pytest.raises(RuntimeError, match="shutdown"):
        checker.check([("x+1", "1+x")])


def test_lengths_must_agree():
    with pytest.raises(ValueError):
        answers.are_correct(["<answer>12</answer>"], ["12", "13"])
