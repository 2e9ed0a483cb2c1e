"""The HTML page and the terminal view: escaped, self-contained, usable by keyboard."""

import io
import json
import math
import re

import pytest
from browsers import open_browser
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
    """Else a row of zeros would look like a finding."""
    alone = example(3, 3, uncertainty=[0.0] * 4, informativeness=[0.0] * 3)
    sure = alone._replace(estimator="answer_set_entropy", answer_meanings=[0, 0])
    silent = alone._replace(estimator="answer_log_prob")
    for one, reason in (
        (sure, "fewer than two answers that differ"),
        (silent, "no answer to teach"),
    ):
        assert reason in shown([one]) and reason in render_page([one])
    two = sure._replace(answer_meanings=[0, 1])
    told = silent._replace(answer_ids=[[1]], answer_meanings=[0])
    for one in (alone, two, told):
        assert "u is 0" not in shown([one]) + render_page([one])


def test_the_end_of_thinking_is_marked_in_both_views():
    """u may rise again behind it: that is no thinking."""
    u = [2.0] * 5 + [0.1] * 3 + [1.9] * 3
    closed = example(10, 7, uncertainty=u, informativeness=[0.0] * 10)
    (bars,) = [line for line in shown([closed]).splitlines() if "u_t" in line]
    assert re.search(r"u_t  █{5} {3}│█{3} ", bars)
    page = render_page([closed])
    assert '<rect class="veil" x="0.7" y="0" width="0.3"' in page
    assert "2.00 → 0.10" in page and "0.100 where thinking ends, 1.900 at the last" in page
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
    assert "thinking told +2.200" in text and "completion 3 of 3" in text
    row = next(line for line in text.splitlines() if "'w19 '" in line)
    assert re.split(r"\s+", row.strip("│ ")) == ["20", "'w19", "'", "+2.200", "2.300", "0.100"]
    assert "[bold]" in text  # text, not markup


def test_the_terminal_colors_what_told(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown([example()], force_terminal=True, color_system="truecolor")
    assert re.search(r"\x1b\[[0-9;]*48;2;22;104;184m" + "w19", text)
    assert "\x1b[31m" not in shown([hostile()], force_terminal=True, color_system="truecolor")


def test_the_terminal_tells_doubt_without_colors_too():
    """With 16 colors the pale ones are alike: what unsettled is underlined."""
    text = shown([example()], force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[(4;[0-9;]*)m" + "w9 ", text)
    assert not re.search(r"\x1b\[(4;[0-9;]*)m" + "w19 ", text)


def test_what_rounds_to_nothing_is_not_told_with_a_sign():
    """Neither as information, nor as a row of the most telling tokens."""
    u = [0.5, 0.5 + 1e-5, 0.5 - 1e-5, 0.5]
    s = [u[t] - u[t + 1] for t in range(3)]
    text = shown([example(3, 3, uncertainty=u, informativeness=s)])
    assert "thinking told 0.000" in text and "0.000'" not in text and "u before" not in text
    assert "<dt>told, nats</dt><dd>0.000</dd>" in render_page(
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


# ------------------------------------------------------------------ the page in a browser


@pytest.fixture(scope="module")
def browser():
    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tmp_path):
    """Opens a page of inspections; its own console must stay silent."""

    def open_page(*inspections, width=1200, height=900):
        path = tmp_path / "page.html"
        path.write_text(render_page(inspections), encoding="utf-8")
        browser.set_window_size(width, height)
        browser.get(path.as_uri())
        return browser

    yield open_page
    assert browser.get_log("browser") == []


def keys(driver, *names):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    chain = ActionChains(driver)
    for name in names:
        chain.send_keys(getattr(Keys, name))
    chain.perform()


def tip(driver):
    return driver.execute_script(
        "const t = document.getElementById('tip'); return t.hidden ? null : t.innerText"
    )


def focus_first(driver):
    driver.execute_script("document.querySelector('.t').focus()")


def test_a_script_in_a_completion_does_not_run(page):
    driver = page(hostile())
    assert driver.execute_script("return window.hacked") is None
    assert HOSTILE in driver.find_element("css selector", ".text").text


def test_nothing_is_fetched(page, browser):
    browser.get_log("performance")
    driver = page(example(), hostile())
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    ]
    assert all(url.startswith("file://") for url in urls)


def test_arrow_keys_walk_and_tell(page):
    driver = page(example(), EMPTY)
    focus_first(driver)
    assert "token 1 of 40" in tip(driver) and "u 2.300 → 2.300" in tip(driver)
    keys(driver, "ARROW_RIGHT", "ARROW_RIGHT")
    assert "token 3 of 40" in tip(driver)
    keys(driver, "ARROW_DOWN", "ARROW_DOWN", "ARROW_DOWN")  # up to 10, back down at 15, then 20
    assert "token 20 of 40" in tip(driver) and "+2.200 nats: told" in tip(driver)
    assert "probability 0.250" in tip(driver)
    keys(driver, "END")
    assert "after the end of thinking" in tip(driver)
    keys(driver, "HOME", "ARROW_LEFT")
    assert "token 1 of 40" in tip(driver)
    keys(driver, "ESCAPE")
    assert tip(driver) is None
    focused = "return document.querySelectorAll('.t[tabindex=\"0\"]').length"
    assert driver.execute_script(focused) == 1  # one stop for the tab key


def test_a_focus_that_scrolls_keeps_its_figures(page):
    """The browser scrolls to the token that gets the focus; what it tells must go along."""
    driver = page(*[example()] * 4, width=500, height=500)
    shown = driver.execute_async_script(
        """const done = arguments[0], tip = document.getElementById('tip');
        const token = [...document.querySelectorAll('article')].at(-1).querySelector('.t');
        token.focus();
        setTimeout(() => {
          const [own, at] = [tip, token].map((x) => x.getBoundingClientRect());
          done([scrollY > 500, tip.hidden, own.top >= 0 && own.bottom <= innerHeight,
                Math.min(Math.abs(own.bottom - at.top), Math.abs(own.top - at.bottom))]);
        }, 300)"""
    )
    assert shown[:3] == [True, False, True] and shown[3] < 20


def test_the_tip_is_bound_to_its_token_for_readers(page):
    driver = page(example())
    focus_first(driver)
    described = driver.execute_script(
        "return document.activeElement.getAttribute('aria-describedby')"
    )
    role = driver.execute_script("return document.getElementById('tip').getAttribute('role')")
    assert (described, role) == ("tip", "tooltip")


def test_tip_and_table_show_a_token_as_the_text_does(page):
    """No character obeyed, none doubled, and nothing where a token has no text."""
    tokens = ["\u202eabc", "\\frac", "\\xf0", "", "a\nb"]
    told = ["\\u202eabc", "\\frac", "\\xf0", "∅", "a⏎b"]
    driver = page(example(5, 5, tokens=tokens))
    focus_first(driver)
    for text in told:
        assert tip(driver).splitlines()[0] == f"token {told.index(text) + 1} of 5 {text}"
        keys(driver, "ARROW_RIGHT")
    driver.execute_script("document.querySelector('article details').open = true")
    cells = driver.execute_async_script(
        """const done = arguments[0];
        const all = () => [...document.querySelectorAll('tbody td:nth-child(2)')];
        setTimeout(() => done(all().map(r => r.textContent)), 200)"""
    )
    assert cells == told


def test_a_tip_of_nothing_says_so(page):
    u = [0.5, 0.5 + 1e-5, 0.5]
    driver = page(example(2, 2, uncertainty=u, informativeness=[-1e-5, 1e-5]))
    focus_first(driver)
    for _ in range(2):
        assert tip(driver).splitlines()[1] == "0.000 nats: told nothing"
        keys(driver, "ARROW_RIGHT")


def test_the_browsers_own_shortcuts_stay(page):
    driver = page(example())
    focus_first(driver)
    left = driver.execute_script(
        """const press = (options) => document.activeElement.dispatchEvent(new KeyboardEvent(
          'keydown', { key: 'ArrowRight', bubbles: true, cancelable: true, ...options }));
        return [{ altKey: true }, { metaKey: true }, { ctrlKey: true }, {}].map(press);"""
    )
    assert left == [True, True, True, False]  # False: the page took it


def test_what_has_no_text_has_a_name(page):
    """For screen readers: blanks, the ramp of colors, the box that scrolls."""
    driver = page(example(3, 3, tokens=["a", "   ", "b"]))
    name = "return document.querySelector(arguments[0]).getAttribute('aria-label')"
    assert driver.execute_script(name, "[data-i='1']") == "3 blanks"
    assert driver.execute_script(name, "[role=region]") == "figures of completion 1"
    assert "nats a token" in driver.execute_script(name, ".ramp[role=img]")


def test_a_narrow_table_keeps_its_words(page):
    driver = page(example(), width=400)
    driver.execute_script("document.querySelector('article details').open = true")
    width = driver.execute_async_script(
        """const done = arguments[0];
        const cell = () => document.querySelector('tbody td:nth-child(2)');
        setTimeout(() => done(cell().getBoundingClientRect().width), 200)"""
    )
    assert width > 60


def test_the_curve_finds_its_token(page):
    driver = page(example())
    driver.execute_script(
        """const box = document.querySelector('.plot').getBoundingClientRect();
        const at = { bubbles: true, clientX: box.left + box.width * 0.5, clientY: box.top + 5 };
        document.querySelector('.plot').dispatchEvent(new PointerEvent('pointermove', at));"""
    )
    assert "token 20 of 40" in tip(driver)
    left = driver.execute_script("return document.querySelector('.marker').style.left")
    assert left == "50%"


def test_the_table_has_every_figure(page):
    driver = page(example())
    driver.execute_script("document.querySelector('article details').open = true")
    rows = driver.execute_async_script(
        """const done = arguments[0], all = () => [...document.querySelectorAll('tbody tr')];
        setTimeout(() => done(all().map(r => r.innerText)), 200)"""
    )
    assert len(rows) == 40
    assert rows[19].split("\t") == ["20", "w19 ", "+2.200", "0.100", "0.500", "0.250"]


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(page, browser, width):
    """Neither a box, nor what it holds."""
    one_word = example(60, 50, tokens=["antidisestablishmentarianism" * 3] + ["x" * 9] * 59)
    one_word = one_word._replace(prompt="y" * 300, answer="z" * 300, extracted="1" * 300)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver = page(one_word, example(), hostile(), EMPTY)
    seen, wide = driver.execute_script(
        """const right = document.documentElement.clientWidth + 1;
        const boxes = 'article, header, .text, .legend, .sums, .sums dd, .facts dd, .prompt';
        return [innerWidth, [...document.querySelectorAll(boxes)]
          .filter(x => x.getBoundingClientRect().right > right || x.scrollWidth > x.clientWidth + 1)
          .map(x => `${x.tagName}.${x.className} ${x.scrollWidth} in ${x.clientWidth}`)]"""
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert (seen, wide) == (width, [])


LIGHT, DARK = "rgb(251, 251, 249)", "rgb(21, 23, 26)"


@pytest.fixture
def system_theme(browser):
    """Sets the theme that the system says it has."""

    def choose(name):
        features = [{"name": "prefers-color-scheme", "value": name}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    yield choose
    choose("")


@pytest.mark.parametrize("system, grounds", [("light", (LIGHT, DARK)), ("dark", (DARK, LIGHT))])
def test_the_theme_follows_the_system_and_the_button(page, system_theme, system, grounds):
    system_theme(system)
    driver = page(example())
    ground = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(ground)
    driver.find_element("id", "theme").click()
    assert (before, driver.execute_script(ground)) == grounds


@pytest.mark.parametrize("system", ["light", "dark"])
@pytest.mark.parametrize("sign", [1, -1], ids=["told", "unsettled"])
def test_text_can_be_read_in_both_themes(page, system_theme, system, sign):
    """WCAG AA, 4.5 to 1, of the text on the strongest ground of a token, and in the legend."""
    system_theme(system)
    u = [2.0 + sign, 2.0, 2.0]
    driver = page(example(2, 2, uncertainty=u, informativeness=[float(sign), 0.0]))
    contrasts = driver.execute_script(
        """const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
        const light = (c) => { const f = c.slice(0, 3).map(v => v / 255).map(
          v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
        const contrast = (element, under) => {
          const style = getComputedStyle(element), over = rgb(style.backgroundColor);
          const below = rgb(getComputedStyle(under).backgroundColor), a = over[3] ?? 1;
          const ground = over.slice(0, 3).map((v, i) => a * v + (1 - a) * below[i]);
          const [x, y] = [light(rgb(style.color)), light(ground)].sort((p, q) => q - p);
          return (x + 0.05) / (y + 0.05); };
        const token = document.querySelector('.t');
        return [contrast(token, token.closest('article')),
          ...[...document.querySelectorAll('.step')].map(x => contrast(x, document.body))]"""
    )
    assert len(contrasts) == 7 and min(contrasts) > 4.5


def test_long_completions_work_alike(page):
    """2,000 tokens, eight of them; no listener of its own for each."""
    driver = page(*[example(2000, 1990) for _ in range(8)])
    focus_first(driver)
    keys(driver, "ARROW_RIGHT", "ARROW_RIGHT", "END")
    assert "token 2000 of 2000" in tip(driver)
