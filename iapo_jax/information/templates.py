"""Pages from the templates in assets/, in which every value is escaped.

The only module that imports jinja2.
"""

import functools
from typing import Any

import jinja2
from markupsafe import Markup

from iapo_jax.information.inspection import visible

_LINE_END = Markup('<span class="nl">⏎</span>\n')


def render(template: str, **values: Any) -> Markup:
    """A template of assets/ with these values; the result is markup that is not escaped again."""
    return Markup(_environment().get_template(template).render(**values))


def asset(name: str) -> Markup:
    """A style sheet or script of assets/, verbatim."""
    environment = _environment()
    return Markup(environment.loader.get_source(environment, name)[0])


def text_lines(text: str) -> Markup:
    """The escaped text with invisible characters made visible; line breaks are kept."""
    return _LINE_END.join(visible(text).split("⏎"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("iapo_jax", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"visible": visible, "text_lines": text_lines}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment
