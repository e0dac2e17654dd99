"""The report: one HTML file that anyone can open, offline, years later.

Charts are drawn here as SVG; a little plain JavaScript adds tooltips, sorting and the choice of
the x axis. A content security policy in the page forbids it to load anything from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from results.files import atomic_write
from results.pareto import kendall_tau
from results.report.data import (
    Baseline,
    Chosen,
    Epoch,
    Export,
    FrontMember,
    LatencyCheck,
    LatencyPair,
    Phase,
    Point,
    RankRow,
    ReportData,
)
from results.report.page import render_page
from results.report.views import cheap_metrics
from search_space.metrics import ACCURACY

__all__ = [
    "Baseline",
    "Chosen",
    "Epoch",
    "Export",
    "FrontMember",
    "LatencyCheck",
    "LatencyPair",
    "Phase",
    "Point",
    "RankRow",
    "ReportData",
    "rank_rows",
    "render_report",
    "write_report",
]

REPORT = "report.html"


def write_report(run_dir: Path, data: ReportData) -> Path:
    """Write ``report.html`` into the run directory, atomically, and return its path.

    Raises InvalidArchitectureError or UnknownNameError where ``data`` holds an architecture that
    is none.
    """
    target = Path(run_dir) / REPORT
    atomic_write(target, render_report(data))
    return target


def render_report(data: ReportData) -> str:
    """The report as one self-contained HTML page."""
    import yaml

    from results.report import front as fronts
    from results.report import tables, views
    from results.report.quality import quality_of

    return render_page(
        "report.html.j2",
        data=data,
        created=views.moment(data.created),
        headline=views.headline(data),
        quality=quality_of(data),
        chart=fronts.front_chart(data),
        front_table=tables.front_table(data),
        blocks=views.block_picture(data),
        latency=views.latency_chart(data),
        ranks=tables.rank_tables(data),
        training=views.training_charts(data),
        trials=tables.trial_table(data),
        baselines=tables.baseline_table(data),
        phases=views.phase_bars(data),
        config=yaml.safe_dump(data.to_dict()["config"], sort_keys=False, allow_unicode=True)
        if data.config
        else "",
    )


def rank_rows(
    metrics: Sequence[Mapping[str, float]],
    names: Sequence[str] = (),
    *,
    against: str = ACCURACY,
    kind: str = "metric",
) -> tuple[RankRow, ...]:
    """Kendall's tau of each of ``names`` against ``against`` over evaluated architectures.

    Without ``names`` it is of every cheap metric that they have.
    ``metrics`` holds one mapping an architecture; those that lack one of the two are left out
    of that row.
    """
    nan = float("nan")
    names = names or cheap_metrics(metrics)
    rows = []
    for name in names:
        found = kendall_tau(
            [m.get(name, nan) for m in metrics], [m.get(against, nan) for m in metrics]
        )
        rows.append(
            RankRow(
                name=name,
                against=against,
                tau=found.tau,
                low=found.low,
                high=found.high,
                n=found.n,
                kind=kind,
            )
        )
    return tuple(rows)
