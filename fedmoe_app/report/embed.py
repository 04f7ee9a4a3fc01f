"""The page's script: theme, tables, and the drawing of its charts and maps by Vega.

Texts reach the page through ``textContent`` and Vega's marks only. The specs' colours are variables
of the style sheet; their present values are put in before a chart is drawn, and it is drawn again
when the theme changes.
"""

from __future__ import annotations

SCRIPT = r""""use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
// What the content security policy allows: no eval, no style element, no link to a web site.
const OPTIONS = { mode: "vega-lite", renderer: "svg", ast: true, defaultStyle: false,
  tooltip: { disableDefaultStyle: true }, actions: false, logLevel: 1 };

function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "line", "path"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// -- what the reader chose, kept while a running page loads itself again --------------------------

function remembered(key, fallback) {
  try { return sessionStorage.getItem(location.pathname + key) ?? fallback; }
  catch { return fallback; }
}

function remember(key, value) {
  try { sessionStorage.setItem(location.pathname + key, value); } catch { /* not allowed here */ }
}

// -- charts -------------------------------------------------------------------------------------

const LEAST = 9, NAMED = 15, MOST = 64;  // pixels of a column of a map

// One drawing of a figure at a time: a change that comes meanwhile is drawn after it.
class Drawing {
  constructor(figure, chart) {
    this.chart = chart;
    this.signals = {};
    this.plot = element("div", { class: "plot" });
    this.done = Promise.resolve();
    figure.append(this.plot);
    if (chart.legend.length) figure.append(this.legend());
    if (chart.cube) this.plot.before(this.controls(figure.id, DATA.cubes[chart.cube]));
  }

  redraw() { return this.done = this.done.then(() => this.draw()); }

  async draw() {
    const css = getComputedStyle(document.documentElement);
    const inked = value => JSON.parse(JSON.stringify(value), (_, each) =>
      typeof each !== "string" ? each : each.replace(/^var\((--[a-z0-9]+)\)$/,
        (_, name) => css.getPropertyValue(name).trim()));
    const spec = inked(this.chart.spec), config = inked(DATA.config);
    this.width = this.plot.clientWidth;
    if (this.chart.columns) spec.width = { step: this.step(spec) };
    this.plot.style.minHeight = this.plot.clientHeight + "px";  // the page does not jump meanwhile
    this.made?.finalize();
    this.made = await vegaEmbed(this.plot, spec, { ...OPTIONS, config });
    const { view } = this.made;
    if (this.chart.cube) view.signal("cube", DATA.cubes[this.chart.cube].values);
    for (const [name, value] of Object.entries(this.signals)) view.signal(name, value);
    await view.runAsync();
    this.plot.style.minHeight = "";
  }

  step(spec) {
    const rows = spec.params.find(each => each.name === "rows").value;
    const left = 34 + Math.max(...rows.map(name => name.length)) * 7;
    // Names that stand upright need room for their letters; a narrow page scrolls then.
    const least = spec.encoding.x.axis.labelAngle ? NAMED : LEAST;
    return Math.max(least, Math.min(MOST, Math.floor((this.width - left) / this.chart.columns)));
  }

  set(name, value) {
    this.signals[name] = value;
    this.made?.view.signal(name, value).runAsync();
  }

  // Names as buttons: Vega's own legend cannot be reached with the keyboard.
  legend() {
    const hidden = new Set();
    const button = entry => {
      const made = element("button", { type: "button", "aria-pressed": "true" }, sample(entry),
        entry.name);
      made.disabled = entry.series.length === 0;
      made.addEventListener("click", () => {
        const shown = made.getAttribute("aria-pressed") !== "true";
        made.setAttribute("aria-pressed", shown);
        entry.series.forEach(each => shown ? hidden.delete(each) : hidden.add(each));
        this.set("hidden", [...hidden]);
      });
      return made;
    };
    return element("div", { class: "legend" }, ...this.chart.legend.map(button));
  }

  // A slider over rounds and a choice for each other axis that is neither rows nor columns.
  controls(id, cube) {
    const box = element("div", { class: "controls" });
    cube.axes.forEach((axis, i) => {
      const name = "at" + i;
      if (!this.chart.spec.params.some(each => each.name === name)) return;
      box.append((axis.name === "round" ? slider : choice)(axis, `${id}:${axis.name}`,
        value => this.set(name, value)));
    });
    return box;
  }
}

function sample({ kind, colour, dash, shape, small }) {
  const key = element("svg", { viewBox: "0 0 30 14", "aria-hidden": "true" });
  if (kind === "line") key.append(element("line", { x1: 0, x2: 30, y1: 7, y2: 7,
    stroke: colour, "stroke-width": 2.2, "stroke-dasharray": dash.join(" ") }));
  const square = "M-1-1H1V1H-1Z";
  const path = kind === "bar" || kind === "area" ? square : shape;
  if (path) key.append(element("path", { d: path, fill: colour,
    opacity: kind === "area" ? 0.25 : 1,
    transform: `translate(15,7) scale(${small ? 2.4 : 4.4})` }));
  return key;
}

function called(axis, label) { return /^\d+$/.test(label) ? `${axis.name} ${label}` : label; }

function slider(axis, key, moved) {
  const last = axis.labels.length - 1;
  const input = element("input", { type: "range", min: 0, max: last, step: 1,
    "aria-label": axis.name });
  const shown = element("output");
  const move = () => {
    shown.textContent = called(axis, axis.labels[input.value]);
    input.setAttribute("aria-valuetext", shown.textContent);
    moved(Number(input.value));
  };
  input.value = remembered(key, last);
  input.addEventListener("input", () => {
    // At the end the newest round is shown, also after the page loaded itself again.
    remember(key, input.value === input.max ? 1e9 : input.value);
    move();
  });
  move();
  return element("label", { class: "slider" }, input, shown);
}

function choice(axis, key, moved) {
  const select = element("select", { "aria-label": axis.name }, ...axis.labels.map((label, i) =>
    element("option", { value: i }, called(axis, label))));
  const kept = remembered(key, 0);
  select.value = kept < axis.labels.length ? kept : 0;
  select.addEventListener("change", () => {
    remember(key, select.value);
    moved(Number(select.value));
  });
  moved(Number(select.value));
  return select;
}

// -- theme --------------------------------------------------------------------------------------

function startTheme(redraw) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const chosen = remembered("theme", "");
    document.documentElement.dataset.theme = chosen || (system.matches ? "dark" : "light");
    return redraw();
  };
  document.getElementById("theme").addEventListener("click", () => {
    remember("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    apply();
  });
  system.addEventListener("change", apply);
  return apply();
}

// -- tables -------------------------------------------------------------------------------------

function sortKey(row, column) {
  const text = row.cells[column].dataset.sort;
  if (text === undefined) return null;
  return text !== "" && isFinite(text) ? Number(text) : text;
}

function sortBy(table, column, down) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map(row => [sortKey(row, column), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);  // unknown ones last
    const both = typeof a === "number" && typeof b === "number";
    const order = both ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return down ? -order : order;
  });
  body.append(...rows.map(([, row]) => row));
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(each => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    sortBy(table, column, down);
  }));
}

// -- start --------------------------------------------------------------------------------------

function showAge() {
  const written = Number(document.getElementById("written").dataset.epoch);
  const minutes = Math.floor((Date.now() / 1000 - written) / 60);
  const running = document.querySelector(".state.running");
  if (running && minutes >= 1)
    document.getElementById("age").textContent = ` (${minutes} min ago)`;
}

async function start() {
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  showAge();
  setInterval(showAge, 30000);
  const drawings = [...document.querySelectorAll("[data-chart]")].map(figure =>
    new Drawing(figure, DATA.charts[figure.dataset.chart]));
  await startTheme(() => Promise.all(drawings.map(each => each.redraw())));
  new ResizeObserver(() => drawings.forEach(each => {
    if (each.plot.clientWidth !== each.width) each.redraw();
  })).observe(document.querySelector("main"));
  document.documentElement.dataset.ready = "yes";
}

start();
"""
