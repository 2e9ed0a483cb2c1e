"""The page of inspections in a browser: silent, used by keyboard, readable in both themes."""

import json

import pytest
from browsers import open_browser
from test_page import EMPTY, HOSTILE, example, hostile

from iapo_jax.information.html import render_page

pytestmark = pytest.mark.nightly


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
    assert "token 20 of 40" in tip(driver) and "+2.200 nats: more certain" in tip(driver)
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
    """The browser scrolls to the focused token, and its tooltip must follow."""
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
        assert tip(driver).splitlines()[1] == "0.000 nats: no information"
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
    """For screen readers: spaces, the ramp of colors, the box that scrolls."""
    driver = page(example(3, 3, tokens=["a", "   ", "b"]))
    name = "return document.querySelector(arguments[0]).getAttribute('aria-label')"
    assert driver.execute_script(name, "[data-i='1']") == "3 spaces"
    assert driver.execute_script(name, "[role=region]") == "values of completion 1"
    assert "nats per token" in driver.execute_script(name, ".ramp[role=img]")


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
@pytest.mark.parametrize("sign", [1, -1], ids=["more", "less"])
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
    """Eight completions of 2,000 tokens; tokens have no listeners of their own."""
    driver = page(*[example(2000, 1990) for _ in range(8)])
    focus_first(driver)
    keys(driver, "ARROW_RIGHT", "ARROW_RIGHT", "END")
    assert "token 2000 of 2000" in tip(driver)
