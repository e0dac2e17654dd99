"use strict";
// Tooltips, the choice of the x axis, and sortable tables. Text enters the page only through
// textContent, so that nothing a run contains is ever read as HTML.
(function () {
  document.documentElement.classList.add("js");

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function setUpChart() {
    const chart = document.getElementById("front-chart");
    if (!chart) return;
    const tooltip = document.getElementById("tooltip");
    const data = JSON.parse(document.getElementById("chart-data").textContent);
    let pinned = null;

    function fill(detail) {
      const body = document.createDocumentFragment();
      body.append(element("div", "tip-title", detail.title), element("div", "tip-role", detail.role));
      const table = element("table");
      for (const [name, text] of detail.rows) {
        const row = element("tr");
        row.append(element("td", "", name), element("td", "", text));
        table.append(row);
      }
      body.append(table);
      if (detail.stages.length) {
        const list = element("ol");
        for (const stage of detail.stages) list.append(element("li", "", stage));
        body.append(list);
      }
      if (pinned) {
        const close = element("button", "", "×");
        close.type = "button";
        close.setAttribute("aria-label", "Close");
        close.addEventListener("click", hide);
        body.append(close);
      }
      tooltip.replaceChildren(body);
    }

    function mark(point, on) {
      point.classList.toggle("active", on);
      const digest = point.dataset.digest;
      if (!digest) return;
      for (const row of document.querySelectorAll("tr[data-digest]")) {
        if (row.dataset.digest === digest) row.classList.toggle("active", on);
      }
    }

    let shown = null;
    function show(point) {
      if (shown) mark(shown, false);
      shown = point;
      mark(point, true);
      fill(data.details[Number(point.dataset.i)]);
      tooltip.classList.toggle("pinned", pinned === point);
      tooltip.hidden = false;
      const area = tooltip.parentElement.getBoundingClientRect();
      const at = point.getBoundingClientRect();
      const x = (at.left + at.right) / 2 - area.left;
      const y = (at.top + at.bottom) / 2 - area.top;
      const width = tooltip.offsetWidth;
      const height = tooltip.offsetHeight;
      let left = x + 16;
      if (left + width > area.width) left = x - width - 16;
      tooltip.style.left = Math.max(0, Math.min(left, area.width - width)) + "px";
      // Where neither side has room (a phone), the box goes below or above the point.
      const beside = left >= 0;
      const below = y + 18 + height < area.height ? y + 18 : Math.max(0, y - height - 18);
      const top = beside ? Math.max(0, Math.min(y - height / 2, area.height - height)) : below;
      tooltip.style.top = top + "px";
    }

    function hide() {
      pinned = null;
      if (shown) mark(shown, false);
      shown = null;
      tooltip.hidden = true;
    }

    function pointOf(event) {
      const node = event.target;
      return node instanceof Element ? node.closest("[data-i]") : null;
    }

    chart.addEventListener("pointerover", function (event) {
      const point = pointOf(event);
      if (point && !pinned) show(point);
    });
    chart.addEventListener("pointerout", function (event) {
      if (pointOf(event) && !pinned) hide();
    });
    chart.addEventListener("focusin", function (event) {
      const point = pointOf(event);
      if (point && !pinned) show(point);
    });
    chart.addEventListener("focusout", function () {
      if (!pinned) hide();
    });
    function togglePin(point) {
      const same = pinned === point;
      hide();
      if (same) return;
      pinned = point;
      show(point);
    }
    chart.addEventListener("click", function (event) {
      const point = pointOf(event);
      if (point) togglePin(point);
      else hide();
    });

    // One tab stop; left and right walk the front and the baselines, up and down all points.
    function walkable(selector) {
      return Array.from(chart.querySelectorAll(selector))
        .filter(function (p) { return p.getClientRects().length > 0; })
        .map(function (p) { const r = p.getBoundingClientRect(); return [r.left + r.width / 2, p]; })
        .sort(function (a, b) { return a[0] - b[0]; })
        .map(function (pair) { return pair[1]; });
    }
    chart.addEventListener("keydown", function (event) {
      const point = pointOf(event);
      if (event.key === "Escape") { hide(); return; }
      if (!point) return;
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        togglePin(point);
        return;
      }
      const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1 };
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      const every = event.key === "ArrowUp" || event.key === "ArrowDown";
      const list = walkable(every ? "[data-i]" : ".front-point, .baseline-point, .point:focus");
      const next = list[list.indexOf(point) + step];
      if (!next) return;
      pinned = null;
      for (const p of chart.querySelectorAll('[tabindex="0"]')) p.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
    document.addEventListener("keydown", function (event) {
      if (event.key === "Escape") hide();
    });
    if (!chart.querySelector('[tabindex="0"]')) {
      const first = chart.querySelector(".front-point, .baseline-point");
      if (first) first.setAttribute("tabindex", "0");
    }

    const buttons = document.querySelectorAll(".switch button");
    function choose(axis) {
      hide();
      const index = data.axes.indexOf(axis);
      for (const b of buttons) b.setAttribute("aria-pressed", String(b.dataset.axis === axis));
      for (const view of chart.querySelectorAll(".view")) {
        view.classList.toggle("off", view.dataset.axis !== axis);
      }
      for (const point of chart.querySelectorAll("circle.point")) {
        const x = point.dataset.x.split(" ")[index];
        point.classList.toggle("off", x === "");
        if (x !== "") point.setAttribute("cx", x);
      }
    }
    for (const b of buttons) b.addEventListener("click", function () { choose(b.dataset.axis); });
    for (const row of document.querySelectorAll("#front tr[data-digest]")) {
      const find = function () {
        return Array.from(chart.querySelectorAll(".front-point"))
          .find(function (p) { return p.dataset.digest === row.dataset.digest; });
      };
      row.addEventListener("pointerenter", function () { const p = find(); if (p) p.classList.add("active"); });
      row.addEventListener("pointerleave", function () { const p = find(); if (p && p !== shown) p.classList.remove("active"); });
    }
  }

  function setUpSorting(table) {
    const headers = Array.from(table.querySelectorAll("thead th"));
    headers.forEach(function (header, column) {
      const button = header.querySelector("button");
      if (!button) return;
      button.addEventListener("click", function () {
        const up = header.getAttribute("aria-sort") !== "ascending";
        for (const other of headers) other.removeAttribute("aria-sort");
        header.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = Array.from(body.rows);
        const key = function (row) { return row.cells[column].dataset.v; };
        rows.sort(function (a, b) {
          const x = key(a);
          const y = key(b);
          if (x === "" || y === "") return (x === "") - (y === "");  // unknown last either way
          const order = column === 0 ? x.localeCompare(y) : Number(x) - Number(y);
          return up ? order : -order;
        });
        body.append(...rows);
      });
    });
  }

  setUpChart();
  document.querySelectorAll("table.sortable").forEach(setUpSorting);
}());
