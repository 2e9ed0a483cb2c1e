"""The report in a browser: silent, within its window, readable in both themes, by keyboard."""

import json

import pytest
from browsers import open_browser
from result_directories import (
    completion,
    drawn,
    inspection,
    member,
    write_evaluation,
    write_lines,
    write_run,
)

from iapo_jax.report import command as report

pytestmark = pytest.mark.nightly

HOSTILE = "<script>window.hacked = 1</script>"
LONG = "antidisestablishmentarianism" * 3


@pytest.fixture(scope="module")
def browser():
    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Twelve runs of ten configs, with long and hostile names; a bare run; an evaluation."""
    root = tmp_path_factory.mktemp("report")
    before = member(**drawn(0.8, 60, problems=20), dataset="arithmetic")
    runs = []
    methods = ["iapo_priced"] * 3 + ["grpo", f"{LONG}.py:rule", HOSTILE]
    methods += ["rloo", "gfpo", "gtpo", "s_grpo", "l1_max", "dapo"]
    for n, method in enumerate(methods):
        after = member(**drawn(0.9, 30 + n, problems=20, seed=n), dataset="arithmetic", seed=n)
        told = [inspection(p, [0.1, 0.5, 0.1, 0.1], after=2) for p in before["prompts"][:2]]
        told[0] |= {"tokens": [HOSTILE, LONG, "x", "y", "z", "\n"], "prompt": before["prompts"][0]}
        seen = (told, told) if n < 4 else (None, None)
        runs.append(
            write_run(
                *(root / f"r{n}",),
                **dict(seed=n, method=method, before=before, after=after, inspections=seen),
                **dict(without=("kl",), texts=n > 8),
            )
        )
    choice = {"criterion": "ratio", "low": 1.0, "high": 9.0}
    rows = [choice | {"step": s, "ratio": 2.0 + s, "chosen": s == 4} for s in (2, 4)]
    write_lines(runs[3] / "selection.jsonl", rows)
    bare = write_run(root / "bare", method="bare")
    for label in ("start", HOSTILE):
        found = member(label, dataset=HOSTILE)
        lines = [completion(found, row, completion=f"{HOSTILE} {LONG}") for row in range(4)]
        write_evaluation(root / "e", [found], completions=lines)
    out = root / "out"
    argv = [*runs, bare, root / "e", "--out", out, "--title", HOSTILE]
    assert report.main(list(map(str, argv))) == 0
    return out / "report.html"


@pytest.fixture
def page(browser, made):
    """Opens the report at a width and in the system's theme; its console must stay silent."""

    def open_page(width=1280, system="light"):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": system}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(made.as_uri())
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


OPEN_ALL = "for (const d of document.querySelectorAll('details')) d.open = true;"


def test_no_script_of_a_text_runs_and_nothing_is_fetched(page, browser):
    browser.get_log("performance")
    driver = page()
    assert driver.execute_script("return window.hacked") is None
    assert driver.title == HOSTILE
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    ]
    assert urls and all(url.startswith("file://") for url in urls)


@pytest.mark.parametrize("width", [320, 400, 768, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    """With every detail open; what scrolls by itself may hold more."""
    driver = page(width)
    wide = driver.execute_script(
        OPEN_ALL
        + """const right = innerWidth + 1;
        const scrolls = (x) => x.closest('.wide, .scroll, svg, #tip');
        return [document.documentElement.scrollWidth, [...document.querySelectorAll('main *')]
          .filter((x) => !scrolls(x) || x.matches('.wide, .scroll, svg'))
          .filter((x) => x.getBoundingClientRect().right > right)
          .map((x) => `${x.tagName}.${x.className?.baseVal ?? x.className}`)]"""
    )
    assert wide[0] <= width and wide[1] == []


def test_every_figure_is_drawn(page):
    """Each with a size, a name and a description, and its text within its box."""
    driver = page(400)
    figures = driver.execute_script(
        """return [...document.querySelectorAll('figure.chart:not(.empty)')].map((figure) => {
          const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect();
          const told = svg.getAttribute('aria-labelledby').split(' ')
            .map((id) => document.getElementById(id).textContent);
          const out = [...svg.querySelectorAll('text')].map((t) => t.getBoundingClientRect())
            .filter((t) => t.left < box.left - 2 || t.right > box.right + 2
                        || t.top < box.top - 2 || t.bottom > box.bottom + 2);
          return [box.width, box.height, ...told, out.length]; })"""
    )
    # 6 curves and the choice; two datasets: 3 or 2 charts, and one for each model
    assert len(figures) == 7 + (3 + 11) + (2 + 2)
    for width, height, title, told, outside in figures:
        assert width > 300 and height > 150 and title and told and outside == 0


def test_text_in_charts_can_be_read_on_a_phone(page):
    driver = page(400)
    sizes = driver.execute_script(
        """return [...document.querySelectorAll('figure.chart svg')].map((svg) =>
          svg.getBoundingClientRect().width / svg.viewBox.baseVal.width * Math.min(
            ...[...svg.querySelectorAll('text')]
              .map((text) => parseFloat(getComputedStyle(text).fontSize))))"""
    )
    assert min(sizes) >= 10.5


def test_labels_of_an_axis_do_not_overlap(page):
    driver = page(400)
    overlapping = driver.execute_script(
        """let found = 0;
        for (const svg of document.querySelectorAll('figure.chart svg')) {
          const boxes = [...svg.querySelectorAll('text')].map((t) => t.getBoundingClientRect());
          boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
            const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (x > 1 && y > 3) found += 1; })); }
        return found"""
    )
    assert overlapping == 0


CONTRASTS = """
const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
const light = (c) => { const f = c.slice(0, 3).map(v => v / 255).map(
  v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
const ground = (x) => { for (; x; x = x.parentElement) {
  const c = rgb(getComputedStyle(x).backgroundColor);
  if ((c[3] ?? 1) === 1) return c; } };
const text = (x) => [...x.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
return [...document.querySelectorAll('body *')]
  .filter((x) => text(x) && x.getClientRects().length && !x.matches('.t, .step, script, style'))
  .map((x) => {
    const ink = getComputedStyle(x)[x.closest('svg') ? 'fill' : 'color'];
    const [a, b] = [light(rgb(ink)), light(ground(x))].sort((p, q) => q - p);
    return [(a + 0.05) / (b + 0.05), x.tagName, x.textContent.slice(0, 40)]; })
  .sort((p, q) => p[0] - q[0]);
"""


@pytest.mark.parametrize("system", ["light", "dark"])
def test_text_can_be_read_in_both_themes(page, system):
    """WCAG AA, 4.5 to 1, of all text of the page, that of the charts too."""
    driver = page(system=system)
    found = driver.execute_script(OPEN_ALL + CONTRASTS)
    assert len(found) > 300 and any(tag == "text" for _, tag, _ in found)
    assert found[0][0] >= 4.5, found[0]


def test_the_theme_button_is_reached_and_pressed_by_keyboard(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = page()
    inks = (
        "return [getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('figure.chart text')).fill]"
    )
    before = driver.execute_script(inks)
    ActionChains(driver).send_keys(Keys.TAB).perform()
    assert driver.execute_script("return document.activeElement.id") == "theme"
    ActionChains(driver).send_keys(Keys.ENTER).perform()
    after = driver.execute_script(inks)
    assert before[0] != after[0] and before[1] != after[1]


def test_the_token_view_works_as_on_its_own_page(page):
    driver = page()
    tip = driver.execute_script(
        """document.querySelector('.example .t').focus();
        return document.getElementById('tip').innerText"""
    )
    assert "token 1 of 6" in tip and HOSTILE in tip
    rows = driver.execute_async_script(
        """const done = arguments[0], card = document.querySelector('article[data-index="3"]');
        card.closest('.example').open = true;
        card.querySelector('details').open = true;
        setTimeout(() => done(card.querySelectorAll('tbody tr').length), 300)"""
    )
    assert rows == 6


def test_the_contents_lead_somewhere(page):
    driver = page()
    lost = driver.execute_script(
        """return [...document.querySelectorAll('nav a')].map((a) => a.hash.slice(1))
          .filter((id) => !document.getElementById(id))"""
    )
    assert lost == []
    heads = driver.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))"
    )
    assert heads[0] == 1 and all(b - a <= 1 for a, b in zip(heads, heads[1:], strict=False))
