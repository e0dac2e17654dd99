"""A self-contained HTML page from a template, with the style and script all reports share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, **values: Any) -> str:
    """The page; a name that the template uses and ``values`` lacks is an error."""
    import jinja2
    import markupsafe

    # autoescape by hand: the default decides by file suffix, and every template here is HTML.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def commands(text: str) -> markupsafe.Markup:
        # what stands between backticks is for a shell
        escaped = str(markupsafe.escape(text))
        return markupsafe.Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escaped))

    environment.filters["commands"] = commands

    def asset(name: str) -> markupsafe.Markup:
        # A style sheet or script of this package, not a template: it may hold braces.
        return markupsafe.Markup((TEMPLATES / name).read_text("utf-8"))

    return environment.get_template(template).render(
        style=asset("report.css"), script=asset("report.js"), **values
    )
