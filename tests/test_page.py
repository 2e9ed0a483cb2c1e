"""The HTML page and the terminal view: escaped, self-contained."""

import io
import json
import math
import re

import pytest
from rich.console import Console

from iapo_jax.information import terminal
from iapo_jax.information.html import render_page
from iapo_jax.information.inspection import Inspection, total, visible

HOSTILE = "<script>window.hacked = 1</script>"


def example(count=40, thinking=30, **changed):
    """Smooth figures: u falls in one step at token 20, and rises a little at token 10."""
    u = [2.3 + 0.3 * (9 < t < 15) if t < 20 else 0.1 for t in range(count + 1)]
    s = [u[t] - u[t + 1] if t < thinking else 0.0 for t in range(count)]
    fields = dict(
        prompt=f"What is 6 times 7? {HOSTILE}",
        completion="six times seven",
        prompt_ids=[1, 2, 3],
        completion_ids=list(range(count)),
        postfix_ids=[4, 5],
        tokens=[f"w{t} " for t in range(count)],
        uncertainty=u,
        informativeness=s,
        entropy=[0.5] * count,
        log_prob=[math.log(0.25)] * count,
        thinking_length=thinking,
        estimator="answer_entropy",
        postfix="</think>\n<answer>",
        answer="42",
        extracted="42",
        correct=True,
        finished=True,
    )
    return Inspection(**(fields | changed))


def hostile():
    tokens = [HOSTILE, "\n", "</script>", "\x1b[31m", "&amp;", "[bold]", "\\xf0", "\u2028", "é"]
    count = len(tokens)
    return example(count, count, tokens=tokens, extracted=HOSTILE, correct=False, finished=False)


EMPTY = example(0, 0, tokens=[], extracted=None, correct=None)


# ------------------------------------------------------------------ the page as text


def test_the_page_needs_and_allows_nothing_else():
    page = render_page([example(), hostile(), EMPTY])
    assert "http://" not in page and "https://" not in page
    assert not re.search(r"<(link|img|iframe|object)|@import|url\(", page)
    assert "default-src 'none'" in page and "'unsafe-inline'; script-src 'sha256-" in page


def test_texts_of_models_and_users_are_escaped():
    page = render_page([hostile()], title=HOSTILE)
    assert "<script>window" not in page
    assert page.count("<script") == 2  # the figures and the page's own
    assert page.count("</script>") == 2


def test_the_embedded_figures_are_those_that_were_given():
    one = hostile()
    page = render_page([one])
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    (told,) = json.loads(text)
    assert told["shown"] == [visible(token) for token in one.tokens]
    assert told["uncertainty"] == one.uncertainty


def test_no_completion_and_no_information_are_pages_too():
    flat = example(3, 3, uncertainty=[0.0] * 4, informativeness=[0.0] * 3)
    for page in (render_page([]), render_page([EMPTY]), render_page([flat])):
        assert "nan" not in page.lower().replace("unanswered", "")


def grounds(page):
    """The opacity of every token's ground, in the order of the page."""
    return [float(a) for a in re.findall(r'role="option"[^>]*--a:([\d.]+)', page)]


def test_rounding_is_not_shown_as_information():
    """u of 1e-7 nats, as one answer alone leaves it: no color, and a flat curve."""
    u = [1e-7 * (t % 2) for t in range(4)]
    noise = example(3, 3, uncertainty=u, informativeness=[-1e-7, 1e-7, -1e-7])
    page = render_page([noise])
    assert max(grounds(page)) < 0.01 and "0.10 nats at the top" in page
    assert "0 to 0.10 nats" in shown([noise])


def test_the_color_is_the_root_of_the_share():
    one = example(3, 3, uncertainty=[2.0, 1.0, 0.75, 0.75], informativeness=[1.0, 0.25, 0.0])
    full, quarter, none = grounds(render_page([one]))
    assert abs(quarter - full / 2) < 1e-3 and none == 0.0


def test_curves_share_their_axes():
    """20 tokens beside 40 end in the middle of the plot."""
    page = render_page([example(40, 30), example(20, 15)])
    lines = re.findall(r'<path d="(M[^"]*)"', page)
    assert [line.rpartition("L")[2].split()[0] for line in lines] == ["1", "0.5"]


def test_what_cannot_be_seen_is_spelt():
    assert visible("a\n\x1b[0m\t\u200b\xa0é🧮") == "a⏎\\x1b[0m⇥\\u200b\\xa0é🧮"


def test_why_nothing_is_unsure_is_said_in_both_views():
    """Otherwise a row of zeros would look like a finding."""
    alone = example(3, 3, uncertainty=[0.0] * 4, informativeness=[0.0] * 3)
    sure = alone._replace(estimator="answer_set_entropy", answer_meanings=[0, 0])
    silent = alone._replace(estimator="answer_log_prob")
    for one, reason in (
        (sure, "fewer than two different answers"),
        (silent, "no answer to teach"),
    ):
        assert reason in shown([one]) and reason in render_page([one])
    two = sure._replace(answer_meanings=[0, 1])
    told = silent._replace(answer_ids=[[1]], answer_meanings=[0])
    for one in (alone, two, told):
        assert "u is 0" not in shown([one]) + render_page([one])


def test_the_end_of_thinking_is_marked_in_both_views():
    """u may rise again after it, which is not thinking."""
    u = [2.0] * 5 + [0.1] * 3 + [1.9] * 3
    closed = example(10, 7, uncertainty=u, informativeness=[0.0] * 10)
    (bars,) = [line for line in shown([closed]).splitlines() if "u_t" in line]
    assert re.search(r"u_t  █{5} {3}│█{3} ", bars)
    page = render_page([closed])
    assert '<rect class="veil" x="0.7" y="0" width="0.3"' in page
    assert "2.00 → 0.10" in page and "0.100 nats at the end of thinking, 1.900 at the last" in page
    open_end = render_page([example(10, 10, uncertainty=u, informativeness=[0.0] * 10)])
    assert "veil" not in open_end.partition("<body>")[2]


def test_the_prompt_is_shown_as_text_that_obeys_nothing():
    page = render_page([example(prompt="a\nb\u202ec", answer="4\u202e2")])
    assert "\u202e" not in page.partition('<script type="application/json"')[0]
    assert '<span class="nl">⏎</span>\nb\\u202ec' in page


def test_the_total_is_that_of_thinking():
    assert abs(total(example()) - (2.3 - 0.1)) < 1e-9 and total(EMPTY) == 0.0


# ------------------------------------------------------------------ the terminal


def shown(inspections, **options):
    out = io.StringIO()
    terminal.show(inspections, Console(file=out, width=100, **options))
    return out.getvalue()


def test_the_terminal_shows_figures_without_colors():
    text = shown([example(), hostile(), EMPTY])
    assert "\x1b" not in text  # no colors, and no escape of the completion's
    assert "information in the thinking +2.200" in text and "completion 3 of 3" in text
    row = next(line for line in text.splitlines() if "'w19 '" in line)
    assert re.split(r"\s+", row.strip("│ ")) == ["20", "'w19", "'", "+2.200", "2.300", "0.100"]
    assert "[bold]" in text  # text, not markup


def test_the_terminal_colors_what_told(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown([example()], force_terminal=True, color_system="truecolor")
    assert re.search(r"\x1b\[[0-9;]*48;2;22;104;184m" + "w19", text)
    assert "\x1b[31m" not in shown([hostile()], force_terminal=True, color_system="truecolor")


def test_the_terminal_tells_doubt_without_colors_too():
    """With 16 colors the pale ones look alike, so tokens that lower certainty are underlined."""
    text = shown([example()], force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[(4;[0-9;]*)m" + "w9 ", text)
    assert not re.search(r"\x1b\[(4;[0-9;]*)m" + "w19 ", text)


def test_what_rounds_to_nothing_is_not_told_with_a_sign():
    """Neither as information, nor as a row of the most telling tokens."""
    u = [0.5, 0.5 + 1e-5, 0.5 - 1e-5, 0.5]
    s = [u[t] - u[t + 1] for t in range(3)]
    text = shown([example(3, 3, uncertainty=u, informativeness=s)])
    assert (
        "information in the thinking 0.000" in text
        and "0.000'" not in text
        and "u before" not in text
    )
    assert "<dt>information</dt><dd>0.000</dd>" in render_page(
        [example(3, 3, uncertainty=u, informativeness=s)]
    )


@pytest.mark.parametrize("highest", [2.0, 12.0, 1234.0])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_curve_stays_on_its_line(highest, width):
    one = example(60, 50, uncertainty=[highest] * 61)
    out = io.StringIO()
    terminal.show([one], Console(file=out, width=width))
    (line,) = [line for line in out.getvalue().splitlines() if "u_t" in line]
    assert f"0 to {highest:.2f} nats" in line and len(line) == width
