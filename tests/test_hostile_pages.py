"""Scripts in every text that reaches a page or a terminal: they are read there, and nothing else.

The oracle is the page of harmless texts of the same lengths: the same elements with the same
attributes, in the same order.
"""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from browsers import open_browser
from result_directories import (
    completion,
    inspection,
    member,
    write_evaluation,
    write_lines,
    write_run,
)
from rich.console import Console

from iapo_jax.information import terminal
from iapo_jax.information.html import render_page
from iapo_jax.information.inspection import Inspection
from iapo_jax.report import command as report

ATTACKS = [
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "'><svg onload='window.hacked = 1'>",
    "javascript:window.hacked=1",
    '<a href="javascript:window.hacked=1">x</a>',
    "</title></style></textarea><base href='//evil.example/'>",
    "<!-- <script> &lt; &#60; ]]> %3Cscript%3E {{7*7}} ${7*7}",
    "\" onmouseover=window.hacked=1 x=' style='background:url(//evil.example)' `",
    "\x00\x1b]8;;http://evil.example\x07\u2028\u202e\\u003c\\",
]
HOSTILE = " ".join(ATTACKS)
IN_A_NAME = ATTACKS[1]  # a name of a directory holds no slash
PLACES = {"id", "href", "xlink:href", "aria-labelledby"}  # within the page
URL = r"url\(#[a-z0-9-]+\)"
HARMLESS = {HOSTILE: "h" * len(HOSTILE), IN_A_NAME: "n" * len(IN_A_NAME)}


class Elements(HTMLParser):
    """What a browser would make of a page: elements, attributes, and the texts of scripts."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.found, self.values, self.scripts, self.texts = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, *(name for name, _ in attrs)))
        self.values += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        self.found.append((f"/{tag}",))

    def handle_comment(self, data):
        self.found.append(("comment",))

    def handle_data(self, data):
        inside = self.found and self.found[-1][0] in ("script", "style")
        (self.scripts if inside else self.texts).append(data)


def check_page(page, harmless, times):
    """Nothing of a page but texts and readable attributes comes from the texts."""
    one, other = Elements(page), Elements(harmless)
    assert one.found == other.found
    assert [name for name, _ in one.values] == [name for name, _ in other.values]
    for (name, value), (_, plain) in zip(one.values, other.values, strict=True):
        place = name in PLACES and re.fullmatch(r"#?[a-z0-9 -]+", value, re.I)
        same = re.sub(URL, "", value) == re.sub(URL, "", plain)
        assert same or name == "aria-label" or place, (name, value)
        assert not name.startswith("on")
    kept = [text for text in one.scripts if not text.startswith("[{")]  # the embedded figures
    assert kept == [text for text in other.scripts if not text.startswith("[{")]
    for text in set(one.scripts) - set(kept):
        assert "<" not in text and ">" not in text and json.loads(text)
    shown = "".join(one.texts)
    assert shown.count("window.hacked") >= times and "\x1b" not in page and "\x00" not in page


def write_all(root, text, name):
    """A run, one without evaluations, and an evaluation; `text` wherever a text may stand."""
    config = dict(model={"path": text}, data={"dataset": text}, prompt={"system": text})
    fields = dict(
        dataset=text,
        dataset_name="data",
        source=text,
        prompts=[f"{text}{n}" for n in range(4)],
        answers=[text] * 4,
        settings={"seed": text, text: text, "max_completion_length": 96},
        step=text,
        environment={text: text},
        fingerprint=text,
    )
    found = member(text, **fields)
    told = [
        inspection(prompt, [0.5, 1.0], text=text, answer=text)
        | dict(estimator=text, postfix=text, extracted=text, reference=text)
        for prompt in found["prompts"][:2]
    ]
    runs = [
        write_run(
            root / f"{name}{n}",
            method=method,
            before=found,
            after=member(text, **fields | {"settings": {"seed": 1, text: str(n)}}),
            inspections=(told, told),
            **config | {"prompt": {"system": f"{text}{n}"}},
        )
        for n, method in enumerate([text])
    ]
    bare = write_run(root / f"{name}bare", method=text, **config)
    rows = [dict(row=1, prompt=text, completion=text, extracted=text, answer=text, length=text)]
    write_lines(bare / "completions" / "step_1.jsonl", rows)
    choice = {"criterion": "ratio", "low": 1.0, "high": 9.0, "name": text}
    write_lines(runs[0] / "selection.jsonl", [choice | {"step": 2, "ratio": 2.0, "chosen": text}])
    labeled = [member(f"{text}{n}", **fields) for n in (1, 2)]
    lines = [
        completion(labeled[0], row, completion=text, extracted=text, length=text)
        for row in range(4)
    ]
    for one in labeled:
        one["model"], label = f"m{len(one['model'])}", one["model"]
        write_evaluation(root / f"{name}e", [one], completions=lines)
        path = next((root / f"{name}e").glob(f"{one['model']}.*.json"))
        path.write_text(json.dumps(one | {"model": label}))
    difference = dict(model=f"{text}1", dataset=text, name="accuracy", baseline=f"{text}2")
    difference |= dict(value=0.1, low=0.05, high=0.2)
    figures = [dict(model=f"{text}{n}", dataset=text, name="accuracy", value=0.5) for n in (1, 2)]
    told = {"format": 1, "figures": figures, "differences": [difference]}
    (root / f"{name}e" / "summary.json").write_text(json.dumps(told))
    return [*runs, bare, root / f"{name}e"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The report of hostile texts, and that of harmless ones."""
    made = []
    for text, name in ((HOSTILE, IN_A_NAME), tuple(HARMLESS.values())):
        root = tmp_path_factory.mktemp("r")
        directories = write_all(root, text, name)
        out = root / "out"
        assert report.main([*map(str, directories), "--out", str(out), "--title", text]) == 0
        made.append(out)
    return made


def test_a_report_escapes_every_text(reports, capsys):
    pages = [(out / "report.html").read_text(encoding="utf-8") for out in reports]
    check_page(*pages, times=60)
    plain = "".join(Elements(pages[0]).texts)
    for attack in ATTACKS[:-1]:
        assert attack in plain, attack
    assert all(path.name.isascii() for path in (reports[0] / "charts").iterdir())
    table = (reports[0] / "methods.md").read_text()
    assert "\\<script>" in table and "<script>" not in table.replace("\\<", "")


def inspections(text):
    made = inspection(text, [0.5, 1.0, -0.5], after=1, text=text, answer=text)
    made |= dict(estimator=f"[b]{text}", postfix=text, extracted=f"[i]{text}", reference=text)
    tokens = ["\n", text, "[bold red]x[/]", "[link=http://evil.example]y[/link]"]
    return [Inspection(**made | {"tokens": tokens}), Inspection(**made | {"correct": False})]


def test_the_inspection_page_escapes_every_text():
    pages = [render_page(inspections(text), text) for text in (HOSTILE, HARMLESS[HOSTILE])]
    check_page(*pages, times=40)


def test_a_terminal_obeys_nothing_of_a_completion():
    """With colors on: the only escapes are the colors', and markup is text."""
    out = io.StringIO()
    console = Console(file=out, width=4000, force_terminal=True, color_system="truecolor")
    terminal.show(inspections(HOSTILE), console)
    text = out.getvalue()
    for part in text.split("\x1b")[1:]:
        assert part.partition("m")[0].strip("[0123456789;") == "", part[:40]
    for markup in ("[b]", "[i]", "[bold red]x[/]", "[link=http://evil.example]"):
        assert markup in text
    assert not {char for char in text if not char.isprintable()} - {"\x1b", "\n"}


@pytest.fixture(scope="module")
def browser():
    driver = open_browser()
    yield driver
    driver.quit()


def test_no_script_of_a_text_runs_in_a_browser(browser, reports, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(render_page(inspections(HOSTILE), HOSTILE), encoding="utf-8")
    for path in (reports[0] / "report.html", page):
        browser.get(path.as_uri())
        browser.execute_script(
            "for (const d of document.querySelectorAll('details')) d.open = true;"
            "document.querySelector('.t').focus();"
        )
        browser.implicitly_wait(0.2)
        assert browser.execute_script("return window.hacked") is None
        assert browser.execute_script("return document.querySelectorAll('img, base').length") == 0
        assert browser.get_log("browser") == []
