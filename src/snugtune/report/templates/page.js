"use strict";
(() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const percent = (share, digits = 1) => (100 * share).toFixed(digits) + "\u00a0%";
  const data = JSON.parse(find("#report-data").textContent);
  document.documentElement.classList.add("scripted");

  // Tables whose headings sort

  const valueOf = (cell, kind) => {
    const text = cell.textContent.trim();
    if (kind === "text") return text;
    const number = parseFloat(text.replace(/[,\s\u00a0%]/g, ""));
    return Number.isNaN(number) ? -Infinity : number;
  };

  const sortBy = (table, heading, direction) => {
    const place = [...heading.parentNode.children].indexOf(heading);
    const kind = heading.dataset.sort;
    const sign = direction === "ascending" ? 1 : -1;
    const text = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, order) => ({ row, order, value: valueOf(row.cells[place], kind) }));
    rows.sort((a, b) => {
      const less = kind === "text" ? text.compare(a.value, b.value) : a.value === b.value ? 0 : a.value < b.value ? -1 : 1;
      return sign * less || a.order - b.order;
    });
    body.append(...rows.map((item) => item.row));
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
  };

  for (const table of all("table.sorts")) {
    for (const heading of all("th[data-sort]", table)) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const now = heading.getAttribute("aria-sort");
        const first = heading.dataset.sort === "text" ? "ascending" : "descending";
        const other = first === "ascending" ? "descending" : "ascending";
        sortBy(table, heading, now === first ? other : first);
      });
    }
  }

  // The filter of the classes

  const classes = find("#class-table");
  if (classes) {
    const rows = [...classes.tBodies[0].rows].map((row) => {
      const headings = [...classes.tHead.rows[0].cells].map((cell) => cell.textContent);
      const number = (name) => valueOf(row.cells[headings.findIndex((text) => text.endsWith(name))], "number");
      const label = find("bdi", row.cells[0]);
      return {
        row,
        label: ((label && label.title) || row.cells[0].textContent).toLowerCase(),
        f1: number("F1"),
        few: Number(row.dataset.few),
        seen: Number(row.dataset.seen) > 0,
      };
    });
    const wanted = {
      all: () => true,
      weak: (item) => item.f1 > -Infinity && item.f1 < 50,
      rare: (item) => item.few < 10,
      seen: (item) => item.seen,
    };
    const search = find("#class-find");
    const which = find("#class-which");
    const filter = () => {
      const needle = search.value.trim().toLowerCase();
      let shown = 0;
      for (const item of rows) {
        const show = item.label.includes(needle) && wanted[which.value](item);
        item.row.hidden = !show;
        shown += show;
      }
      find("#class-count").textContent = `${shown} of ${rows.length}`;
    };
    search.addEventListener("input", filter);
    which.addEventListener("change", filter);
    filter();
  }

  // The threshold one may try on the risk-coverage curve

  const slider = find("#threshold");
  if (slider && data.risk) {
    const chart = find('[data-chart="risk"]');
    const [left, right, top, bottom] = chart.dataset.box.split(" ").map(Number);
    const [lowX, highX] = chart.dataset.x.split(" ").map(Number);
    const [lowY, highY] = chart.dataset.y.split(" ").map(Number);
    const dot = document.createElementNS(chart.namespaceURI, "circle");
    dot.setAttribute("class", "dot probe");
    dot.setAttribute("r", "5");
    chart.append(dot);
    const move = () => {
      const [threshold, coverage, precision] = data.risk[Number(slider.value)];
      dot.setAttribute("cx", left + ((coverage - lowX) / (highX - lowX)) * (right - left));
      dot.setAttribute("cy", bottom - (Math.max(0, precision - lowY) / (highY - lowY)) * (bottom - top));
      const says = `At a confidence of ${threshold.toFixed(3)} or more: ${percent(coverage)} automated, ${percent(precision)} of these right`;
      slider.setAttribute("aria-valuetext", says);
      find("#threshold-says").textContent = says + (slider.value === slider.dataset.chosen ? " (the chosen threshold)." : ".");
    };
    slider.addEventListener("input", move);
    move();
  }

  // Reading the confusion map, by pointer or by arrow keys

  const map = find("#map");
  if (map && data.map) {
    const { labels, rows, cells } = data.map;
    const size = labels.length;
    const counts = new Map(cells.map(([row, column, count]) => [row * size + column, count]));
    let at = [0, 0];
    const read = (row, column) => {
      at = [Math.min(size - 1, Math.max(0, row)), Math.min(size - 1, Math.max(0, column))];
      const [i, j] = at;
      const count = counts.get(i * size + j) || 0;
      map.classList.add("read");
      find("#map-row").setAttribute("y", i);
      find("#map-column").setAttribute("x", j);
      const share = rows[i] ? `, ${percent(count / rows[i])}` : "";
      const says = find("#map-says");
      says.replaceChildren();
      const name = (index) => {
        const isolated = document.createElement("bdi");
        isolated.textContent = labels[index];
        return isolated;
      };
      if (i === j) says.append(name(i), ` recognised: ${count} of ${rows[i]}${share}`);
      else says.append(name(i), " taken for ", name(j), `: ${count} of ${rows[i]}${share}`);
    };
    const pointed = (event) => {
      const box = map.getBoundingClientRect();
      read(Math.floor(((event.clientY - box.top) / box.height) * size), Math.floor(((event.clientX - box.left) / box.width) * size));
    };
    map.addEventListener("pointermove", pointed);
    map.addEventListener("pointerdown", pointed);
    map.addEventListener("pointerleave", () => document.activeElement !== map && map.classList.remove("read"));
    map.addEventListener("blur", () => map.classList.remove("read"));
    map.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      read(at[0] + step[0], at[1] + step[1]);
    });
  }

  // On paper nothing can be opened

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    for (const one of opened) one.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });
})();
