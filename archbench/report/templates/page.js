"use strict";
(() => {
  const packed = JSON.parse(document.getElementById("packed").textContent);
  const hidden = new Map(); // part -> names not shown
  const many = 500; // rows of a figure's data that are listed; the CSV has all
  const unpacked = new Map(); // figure's key -> its panels and data
  const views = new Map(); // plot -> its Vega view
  let library = null;

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  // The policy of the page names the library by its digest, like the scripts that stand in it.
  async function load() {
    const script = document.createElement("script");
    script.textContent = await unpack(packed.library);
    document.body.append(script);
  }

  function once(map, key, make) {
    if (!map.has(key)) map.set(key, make());
    return map.get(key);
  }

  const figureOf = (element) => {
    const key = element.closest("figure").dataset.figure;
    return once(unpacked, key, async () => JSON.parse(await unpack(packed.figures[key])));
  };

  async function specOf(plot) {
    const plots = [...plot.closest("figure").querySelectorAll(".plot")];
    return (await figureOf(plot)).panels[plots.indexOf(plot)];
  }

  // `ast`: expressions are interpreted, because the page forbids itself to evaluate strings.
  async function embed(plot, spec, renderer) {
    await (library ||= load());
    return (await vegaEmbed(plot, spec, {
      renderer, ast: true, actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true },
    })).view;
  }

  async function draw(plot) {
    const spec = await specOf(plot);
    const view = await once(views, plot, () => {
      if (spec.layer && matchMedia("(pointer: coarse)").matches) delete spec.layer.at(-1).params; // a finger scrolls
      return embed(plot, spec, "svg");
    });
    const names = hidden.get(plot.closest(".part"));
    if (names && spec.layer) await view.signal("hidden", [...names]).runAsync();
  }

  // A canvas knows no CSS variables: an image is drawn with the colours that they have now.
  async function saveImage(plot, name) {
    const style = getComputedStyle(document.documentElement);
    const text = JSON.stringify({ ...await specOf(plot), width: plot.clientWidth, background: "var(--paper)" });
    const spec = text.replace(/var\((--[\w-]+)\)/g, (_, variable) => style.getPropertyValue(variable).trim());
    const view = await embed(document.createElement("div"), JSON.parse(spec), "canvas");
    save(await view.toImageURL("png", 3), `${name}.png`);
  }

  function save(url, name) {
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
  }

  const shown = (inside) => [...inside.querySelectorAll(".plot")].filter((plot) => !plot.parentElement.hidden);

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
      shown(part).filter((plot) => views.has(plot)).forEach(draw);
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
    button.addEventListener("click", async () => {
      if (button.closest("figure")) {
        const { columns, rows } = await figureOf(button);
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
      shown(button.closest("figure")).forEach((plot, index) => saveImage(plot, button.dataset.image + (index ? `-${index}` : "")));
    });
  }

  for (const details of document.querySelectorAll("details.data")) {
    details.addEventListener("toggle", async () => {
      const box = details.querySelector(".scroll");
      const { columns, rows } = await figureOf(details);
      if (box.firstChild) return;
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

  // A figure is drawn when it comes near the window, and the rest before printing. Unpacking takes turns of the browser,
  // drawing does not: what is unpacked in good time is on the paper.
  if ("DecompressionStream" in window) {
    const near = new IntersectionObserver((entries) => {
      entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target));
    }, { rootMargin: "50% 0px" });
    document.querySelectorAll(".plot").forEach((plot) => near.observe(plot));
    window.addEventListener("beforeprint", () => shown(document).forEach(draw));
    window.addEventListener("load", () => setTimeout(() => {
      if (packed.library) library ||= load();
      document.querySelectorAll("figure").forEach(figureOf);
    }));
  } else {
    document.getElementById("old").hidden = false;
  }
  document.documentElement.dataset.ready = String(Math.round(performance.now())); // milliseconds until it answers
})();
