"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Map(); // part -> names not shown
  const many = 500; // rows of a figure's data that are listed; the CSV has all

  // Colours come as CSS variables, so that one palette serves both schemes; plotly wants what they stand for.
  function resolved(value, style) {
    if (typeof value === "string") {
      return value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map((one) => resolved(one, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, resolved(one, style)]));
    }
    return value;
  }

  function draw(plot) {
    const figure = plot.closest("figure");
    const panels = [...figure.querySelectorAll(".plot")];
    const spec = figures[figure.dataset.figure].panels[panels.indexOf(plot)];
    const names = hidden.get(plot.closest(".part")) || new Set();
    const { data, layout } = resolved(spec, getComputedStyle(document.documentElement));
    for (const trace of data) trace.visible = !names.has(trace.meta);
    layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
    const config = {
      responsive: true, displaylogo: false, scrollZoom: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
      toImageButtonOptions: { filename: figure.dataset.figure, scale: 3 },
    };
    return Plotly.react(plot, data, layout, config).then(() => {
      if (plot.dataset.drawn) return;
      plot.dataset.drawn = "true";
      plot.on("plotly_afterplot", () => scalable(plot));
      scalable(plot);
    });
  }

  // On paper the drawing shrinks with the page: that takes a viewBox, which plotly does not set.
  function scalable(plot) {
    const { width, height } = plot._fullLayout;
    plot.style.setProperty("--aspect", `${width} / ${height}`);
    for (const svg of plot.querySelectorAll(".main-svg")) svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  }

  const shown = () => [...document.querySelectorAll(".plot")].filter((plot) => !plot.parentElement.hidden);
  const drawAll = () => Promise.all(shown().map(draw));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { document.documentElement.classList.add("light"); drawAll(); });
  addEventListener("afterprint", () => { document.documentElement.classList.remove("light"); drawAll(); });

  for (const input of document.querySelectorAll(".choice input")) {
    input.addEventListener("change", () => {
      const panels = [...input.closest("figure").querySelectorAll(".panel")];
      panels.forEach((panel, index) => { panel.hidden = index !== Number(input.value); });
      draw(panels[Number(input.value)].querySelector(".plot"));
    });
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const part = button.closest(".part");
      const names = hidden.get(part) || new Set();
      hidden.set(part, names);
      if (!names.delete(button.dataset.name)) names.add(button.dataset.name);
      for (const other of part.querySelectorAll(".legend button")) {
        other.setAttribute("aria-pressed", String(!names.has(other.dataset.name)));
      }
      shown().filter((plot) => part.contains(plot)).forEach(draw);
    });
  }

  function compare(a, b) {
    if (a === "" || b === "") return Number(a === "") - Number(b === ""); // nothing known: last, either way
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  }

  for (const heading of document.querySelectorAll(".tabled thead th")) {
    heading.querySelector("button").addEventListener("click", () => {
      const table = heading.closest("table");
      const column = heading.cellIndex;
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        return down && x !== "" && y !== "" ? compare(y, x) : compare(x, y);
      });
      table.tBodies[0].append(...rows);
      document.getElementById("said").textContent =
        `Sorted by ${heading.textContent.trim()}, ${down ? "descending" : "ascending"}.`;
    });
  }

  function csv(rows) {
    const quoted = (cell) => {
      const text = cell === null || cell === undefined ? "" : String(cell);
      return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  }

  function download(name, rows) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(rows)], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", () => {
      const figure = button.closest("figure");
      if (figure) {
        const { columns, rows } = figures[figure.dataset.figure];
        download(button.dataset.download, [columns, ...rows]);
        return;
      }
      const table = button.closest(".tabled").querySelector("table");
      const heads = [...table.tHead.rows[0].cells].map((cell) => {
        const unit = cell.dataset.unit;
        return cell.textContent.trim() + (unit && unit !== "1" ? ` [${unit}]` : "");
      });
      const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.dataset.value));
      download(button.dataset.download, [heads, ...rows]);
    });
  }

  for (const details of document.querySelectorAll("details.data")) {
    details.addEventListener("toggle", () => {
      const box = details.querySelector(".scroll");
      if (box.firstChild) return;
      const { columns, rows } = figures[details.closest("figure").dataset.figure];
      const table = document.createElement("table");
      const head = table.createTHead().insertRow();
      for (const column of columns) {
        const cell = document.createElement("th");
        cell.scope = "col";
        cell.textContent = column.replaceAll("_", " ");
        head.append(cell);
      }
      const body = table.createTBody();
      for (const row of rows.slice(0, many)) {
        const line = body.insertRow();
        for (const value of row) {
          const cell = line.insertCell();
          if (typeof value === "number") cell.className = "number";
          cell.textContent = value === null ? "" : String(value);
        }
      }
      box.append(table);
      if (rows.length > many) {
        const more = document.createElement("p");
        more.className = "caption";
        more.textContent = `The first ${many} of ${rows.length} rows; the CSV has them all.`;
        box.after(more);
      }
    });
  }

  drawAll().then(() => { document.documentElement.dataset.ready = "true"; });
})();
