"""The report in a browser: tooltips, switches, sorting and keys, without an error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_report import sample_report

from results.report.page import render_report

PROBE = """
<script>
  window.problems = [];
  window.onerror = (m) => window.problems.push(m);
  const error = console.error; console.error = (...m) => { window.problems.push(m); error(...m); };
</script>
"""
ACT = """
<script>
  const $ = (s) => document.querySelector(s);
  const tip = $("#tooltip"), out = {};
  const point = $(".front-point[data-i]");
  point.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
  const text = tip.textContent;
  out.hover = [tip.hidden, text.includes(point.dataset.digest), text.includes(" at ")];
  point.dispatchEvent(new PointerEvent("pointerout", {bubbles: true}));
  out.left = tip.hidden;
  point.dispatchEvent(new MouseEvent("click", {bubbles: true}));
  point.dispatchEvent(new PointerEvent("pointerout", {bubbles: true}));
  out.pinned = [tip.hidden, tip.className];
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  out.escaped = tip.hidden;
  const before = point.getAttribute("cx");
  $('.switch [data-axis="macs"]').click();
  out.moved = before !== point.getAttribute("cx");
  out.views = Array.from(document.querySelectorAll(".view:not(.off)"), (v) => v.dataset.axis);
  const head = document.querySelectorAll("#front thead th")[4];
  head.querySelector("button").click();
  const rows = document.querySelectorAll("#front tbody tr");
  out.sorted = Array.from(rows, (r) => Number(r.cells[4].dataset.v));
  $(".chosen-point[data-i]").focus();
  out.focus = !tip.hidden;
  const left = new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true});
  document.activeElement.dispatchEvent(left);
  out.walked = !document.activeElement.classList.contains("chosen-point");
  out.problems = window.problems;
  const output = document.createElement("output");
  output.textContent = JSON.stringify(out);
  document.body.replaceChildren(output);
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_in_a_browser_the_page_reacts_and_reports_no_error(tmp_path: Path) -> None:
    page = render_report(sample_report())
    html = page.replace("<head>", "<head>" + PROBE).replace("</body>", ACT + "</body>")
    (tmp_path / "report.html").write_text(html)
    result = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"<output>(.*?)</output>", result.stdout, re.S)
    assert found, result.stderr[-2000:]
    out = json.loads(found[1])
    accuracy = out.pop("sorted")
    assert accuracy == sorted(accuracy)
    assert out == {
        "hover": [False, True, True],
        "left": True,
        "pinned": [False, "pinned"],
        "escaped": True,
        "moved": True,
        "views": ["macs", "macs"],
        "focus": True,
        "walked": True,
        "problems": [],
    }
    assert "CONSOLE" not in result.stderr
