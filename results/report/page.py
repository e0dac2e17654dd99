"""The report: one HTML file that anyone can open, offline, years later.

Charts are drawn here as SVG; a little plain JavaScript adds tooltips, sorting and the choice of
the x axis. A content security policy in the page forbids it to load anything from anywhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from results.files import atomic_write
from results.report import charts, chosen, classes, curves, front, parent, tables, words
from results.report.data import ReportData
from search_space.metrics import title_of
from search_space.units import format_duration

TEMPLATES = Path(__file__).parent / "templates"
REPORT = "report.html"


def write_report(run_dir: Path, data: ReportData) -> Path:
    """Write ``report.html`` into the run directory, atomically, and return its path.

    Raises:
        InvalidArchitectureError, UnknownNameError: ``data`` holds an architecture that is none.
    """
    target = run_dir / REPORT
    atomic_write(target, render_report(data))
    return target


def render_report(data: ReportData) -> str:
    """The report as one self-contained HTML page."""
    import yaml

    return render_page(
        "report.html.j2",
        data=data,
        created=words.moment(data.created),
        headline=chosen.headline(data),
        quality=words.quality_of(data),
        chart=front.front_chart(data),
        front_table=tables.front_table(data),
        beaten=chosen.beaten_note(data),
        classes=classes.class_view(data),
        parent=parent.parent_view(data),
        blocks=chosen.block_picture(data),
        latency=curves.latency_chart(data),
        training=curves.training_charts(data),
        trials=tables.trial_table(data),
        baselines=tables.baseline_table(data),
        config=yaml.safe_dump(data.to_dict()["config"], sort_keys=False, allow_unicode=True)
        if data.config
        else "",
    )


def render_page(template: str, *folders: Path, **values: Any) -> str:
    """The page of a template, here or in ``folders``.

    A name that the template uses and ``values`` lacks is an error.
    """
    import jinja2
    import markupsafe

    # autoescape by hand: the default decides by file suffix, and every template here is HTML.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES, *folders]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def commands(text: str) -> markupsafe.Markup:
        # what stands between backticks is for a shell
        escaped = str(markupsafe.escape(text))
        return markupsafe.Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escaped))

    environment.filters |= {
        "commands": commands,
        "duration": format_duration,
        "signed": charts.signed,
        "thousands": charts.thousands,
        "title_of": title_of,
    }

    def asset(name: str) -> markupsafe.Markup:
        # A style sheet or script of this package, not a template: it may hold braces.
        return markupsafe.Markup((TEMPLATES / name).read_text("utf-8"))

    return environment.get_template(template).render(
        style=asset("report.css"), script=asset("report.js"), **values
    )
