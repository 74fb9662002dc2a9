"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Map(); // part -> names not shown
  const many = 500; // rows of a figure's data that are listed; the CSV has all

  const views = new Map(); // plot -> its Vega view

  const specOf = (plot) => {
    const figure = plot.closest("figure");
    return figures[figure.dataset.figure].panels[[...figure.querySelectorAll(".plot")].indexOf(plot)];
  };

  // `ast`: expressions are interpreted, because the page forbids itself to evaluate strings.
  const embed = (plot, spec, renderer) => vegaEmbed(plot, spec, {
    renderer, ast: true, actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true },
  });

  async function draw(plot) {
    if (!views.has(plot)) {
      const spec = specOf(plot);
      if (spec.layer && matchMedia("(pointer: coarse)").matches) delete spec.layer.at(-1).params; // a finger scrolls
      views.set(plot, (await embed(plot, spec, "svg")).view);
    }
    const names = hidden.get(plot.closest(".part"));
    if (names && specOf(plot).layer) await views.get(plot).signal("hidden", [...names]).runAsync();
  }

  // A canvas knows no CSS variables: an image is drawn with the colours that they have now.
  async function saveImage(plot, name) {
    const style = getComputedStyle(document.documentElement);
    const text = JSON.stringify({ ...specOf(plot), width: plot.clientWidth, background: "var(--paper)" });
    const spec = text.replace(/var\((--[\w-]+)\)/g, (_, variable) => style.getPropertyValue(variable).trim());
    const { view } = await embed(document.createElement("div"), JSON.parse(spec), "canvas");
    save(await view.toImageURL("png", 3), `${name}.png`);
  }

  function save(url, name) {
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
  }

  const shown = () => [...document.querySelectorAll(".plot")].filter((plot) => !plot.parentElement.hidden);
  const drawAll = () => Promise.all(shown().map(draw));

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
      let text = cell === null || cell === undefined ? "" : String(cell);
      if (/^[=+\-@\t]/.test(text) && Number.isNaN(Number(text))) text = `'${text}`; // no formula of a spreadsheet
      return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  }

  function download(name, rows) {
    const url = URL.createObjectURL(new Blob([csv(rows)], { type: "text/csv" }));
    save(url, `${name}.csv`);
    setTimeout(() => URL.revokeObjectURL(url), 1000);
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

  for (const button of document.querySelectorAll("[data-image]")) {
    button.addEventListener("click", () => {
      const plots = [...button.closest("figure").querySelectorAll(".plot")].filter((plot) => !plot.parentElement.hidden);
      plots.forEach((plot, index) => saveImage(plot, button.dataset.image + (index ? `-${index}` : "")));
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

  // Room for the plots before they are drawn; from here, because the page forbids itself attributes of style.
  for (const plot of document.querySelectorAll(".plot")) plot.style.minHeight = `${plot.dataset.height}px`;

  drawAll().then(() => { document.documentElement.dataset.ready = "true"; });
})();
