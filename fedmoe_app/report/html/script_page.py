"""The page's script, first part: helpers, theme, sorting, and what starts the rest.

Texts reach the page through ``textContent`` only.
"""

from __future__ import annotations

PAGE_JS = r"""
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function shape(tag, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

// Without the middle: names may differ at their ends only.
function shorten(name, room) {
  const all = Array.from(name), tail = Math.max(0, Math.floor((room - 1) / 3));
  if (all.length <= room) return name;
  return all.slice(0, Math.max(0, room - 1 - tail)).join("") + "…"
    + all.slice(all.length - tail).join("");
}

// -- numbers ------------------------------------------------------------------------------------

function humanBytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value, unit = 0;
  while (size >= 999.5 && unit < 4) { size /= 1000; unit += 1; }
  return `${unit && size < 99.95 ? size.toPrecision(3) : Math.round(size)} ${units[unit]}`;
}

function shortNumber(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  return size >= 1000 || size < 0.001 ? value.toPrecision(3) : String(+value.toPrecision(3));
}

const FORMATS = {
  share: value => (100 * value).toFixed(1) + " %",
  number: shortNumber,
  count: value => String(Math.round(value)),
  bytes: humanBytes,
  seconds: value => (value < 100 ? String(+value.toPrecision(3)) : Math.round(value)) + " s",
};
// On axes, without decimals that the ticks do not need.
const TICKS = {
  ...FORMATS,
  share: value => String(+(100 * value).toPrecision(3)) + " %",
  bytes: value => humanBytes(value).replace(/(\.\d*?)0+ /, "$1 ").replace(". ", " "),
};

function niceTicks(low, high, most) {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= raw * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1)
    ticks.push(+(i * step).toPrecision(12));
  return ticks;
}

// -- tooltip ------------------------------------------------------------------------------------

const tip = element("div", { class: "tip", role: "status", hidden: "" });

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - box.width - 6);
  const over = event.clientY + 16 + box.height > innerHeight;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, over ? event.clientY - box.height - 12 : event.clientY + 16) + "px";
}

function hideTip() { tip.hidden = true; }

// -- what the reader chose, kept while a running page loads itself again --------------------------

function remembered(key, fallback) {
  try { return sessionStorage.getItem(location.pathname + key) ?? fallback; }
  catch { return fallback; }
}

function remember(key, value) {
  try { sessionStorage.setItem(location.pathname + key, value); } catch { /* not allowed here */ }
}

// -- theme --------------------------------------------------------------------------------------

function startTheme(redraw) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const chosen = remembered("theme", "");
    document.documentElement.dataset.theme = chosen || (system.matches ? "dark" : "light");
    redraw();
  };
  document.getElementById("theme").addEventListener("click", () => {
    remember("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    apply();
  });
  system.addEventListener("change", apply);
  apply();
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

function start() {
  document.body.append(tip);
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  const drawings = [];
  document.querySelectorAll("[data-chart]").forEach(figure =>
    drawings.push([figure, drawChart(figure, DATA.charts[figure.dataset.chart])]));
  document.querySelectorAll("[data-map]").forEach(figure =>
    drawings.push([figure, drawMap(figure, DATA.maps[figure.dataset.map])]));
  startTheme(() => drawings.forEach(([, draw]) => draw()));
  const widths = new Map();
  const observer = new ResizeObserver(entries => entries.forEach(({ target }) => {
    const width = target.clientWidth;
    if (widths.get(target) === width) return;
    widths.set(target, width);
    drawings.find(([figure]) => figure === target)[1]();
  }));
  drawings.forEach(([figure]) => observer.observe(figure));
  showAge();
  setInterval(showAge, 30000);
  document.documentElement.dataset.ready = "yes";
}
"""
