"""The page's script, third part: heat maps with a slider over rounds and a choice of the rest."""

from __future__ import annotations

# Viridis and a blue-orange pair around a neutral middle, at equal steps.
MAPS_JS = r"""
const VIRIDIS = ["440154", "482475", "414487", "355f8d", "2a788e", "21918c", "22a884", "44bf70",
  "7ad151", "bddf26", "fde725"];
const DIVERGING = ["0a4a82", "3f86be", "9cc3df", "f2f2f2", "f3bb8a", "d9782d", "8f3d00"];

function hexToRgb(hex) { return [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16)); }

function paint(stops, share) {
  const place = Math.max(0, Math.min(1, share)) * (stops.length - 1);
  const lower = Math.min(Math.floor(place), stops.length - 2);
  const [a, b] = [hexToRgb(stops[lower]), hexToRgb(stops[lower + 1])];
  return a.map((value, i) => Math.round(value + (b[i] - value) * (place - lower)));
}

function inkOn(rgb) {
  return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140 ? "#111" : "#fff";
}

// Numbers with named axes: look values up by axis name.
function openCube(cube) {
  const strides = [];
  cube.axes.reduceRight((size, axis, i) => { strides[i] = size; return size * axis.labels.length; },
    1);
  return {
    labels: name => cube.axes.find(axis => axis.name === name).labels,
    others: used => cube.axes.filter(axis => !used.includes(axis.name)),
    at: place => cube.values[cube.axes.reduce(
      (sum, axis, i) => sum + strides[i] * place[axis.name], 0)],
    values: cube.values,
  };
}

function drawMap(figure, map) {
  const cube = openCube(DATA.cubes[map.cube]);
  const place = {};
  const controls = element("div", { class: "controls" });
  const plot = element("div", { class: "plot" }), scale = element("div", { class: "scale" });
  const whole = valueRange(map, cube.values);
  const draw = () => {
    const range = map.own_scale ? valueRange(map, shownValues(map, cube, place)) : whole;
    plot.replaceChildren(mapSvg(plot.clientWidth || 400, map, cube, place, range));
    scale.replaceChildren(...scaleParts(map, range));
  };
  for (const axis of cube.others([map.rows, map.columns])) {
    if (axis.name === "round") addSlider(controls, figure, axis, place, draw);
    else addChoice(controls, figure, axis, place, draw);
  }
  figure.append(controls, plot, scale);
  return draw;
}

function shownValues(map, cube, place) {
  return cube.labels(map.rows).flatMap((_, r) => cube.labels(map.columns).map((_, c) =>
    cube.at({ ...place, [map.rows]: r, [map.columns]: c })));
}

function valueRange(map, values) {
  const high = map.high ?? values.reduce((most, v) => (v !== null && v > most ? v : most), 0);
  const low = map.low ?? values.reduce((least, v) => (v !== null && v < least ? v : least), 0);
  return [low, high > low ? high : low + 1];
}

function addSlider(controls, figure, axis, place, draw) {
  const last = axis.labels.length - 1;
  const slider = element("input", { type: "range", min: 0, max: last, step: 1,
    "aria-label": axis.name });
  const key = `${figure.id}:${axis.name}`;
  slider.value = remembered(key, last);
  const shown = element("output");
  const moved = () => {
    place[axis.name] = Number(slider.value);
    const label = axis.labels[slider.value];
    shown.textContent = /^\d+$/.test(label) ? `${axis.name} ${label}` : label;
    slider.setAttribute("aria-valuetext", shown.textContent);
  };
  slider.addEventListener("input", () => {
    moved();
    // At the end the newest round is shown, also after the page loaded itself again.
    remember(key, slider.value === slider.max ? 1e9 : slider.value);
    draw();
  });
  moved();
  controls.append(element("label", { class: "slider" }, slider, shown));
}

function addChoice(controls, figure, axis, place, draw) {
  const plain = label => /^\d+$/.test(label);
  const select = element("select", {}, ...axis.labels.map((label, i) =>
    element("option", { value: i }, plain(label) ? `${axis.name} ${label}` : label)));
  const key = `${figure.id}:${axis.name}`;
  const kept = remembered(key, 0);
  select.value = kept < axis.labels.length ? kept : 0;
  select.setAttribute("aria-label", axis.name);
  const changed = () => { place[axis.name] = Number(select.value); };
  select.addEventListener("change", () => { changed(); remember(key, select.value); draw(); });
  changed();
  controls.append(select);
}

function shareOf(value, [low, high]) { return (value - low) / (high - low); }

function stopsOf(map) { return map.scale === "diverging" ? DIVERGING : VIRIDIS; }

function mapSvg(width, map, cube, place, range) {
  const rows = cube.labels(map.rows), columns = cube.labels(map.columns);
  const left = 24 + Math.max(...rows.map(label => label.length)) * 7.2, top = 34;
  const room = (width - left - 4) / columns.length;
  const cellWidth = Math.max(9, Math.min(64, room));
  const cellHeight = Math.max(11, Math.min(rows.length > 24 ? 15 : 30, cellWidth));
  const full = left + cellWidth * columns.length + 4, height = top + cellHeight * rows.length + 4;
  const svg = shape("svg", { width: full, height, role: "img", "aria-label": map.title });
  svg.style.width = full + "px";
  svg.append(shape("text", { class: "quiet-text", x: left + cellWidth * columns.length / 2, y: 12,
    "text-anchor": "middle" }, map.columns));
  svg.append(shape("text", { class: "quiet-text", "text-anchor": "middle",
    transform: `translate(11,${top + cellHeight * rows.length / 2}) rotate(-90)` },
    fitting(map.rows, cellHeight * rows.length)));
  const everyColumn = Math.ceil(26 / cellWidth), everyRow = Math.ceil(12 / cellHeight);
  columns.forEach((label, i) => { if (i % everyColumn === 0) svg.append(shape("text", {
    class: "quiet-text", x: left + (i + 0.5) * cellWidth, y: top - 6, "text-anchor": "middle" },
    label)); });
  rows.forEach((label, i) => { if (i % everyRow === 0) svg.append(shape("text", {
    class: "quiet-text", x: left - 5, y: top + (i + 0.5) * cellHeight + 4,
    "text-anchor": "end" }, label)); });
  const written = cellWidth >= 27 && cellHeight >= 17;
  rows.forEach((rowLabel, r) => columns.forEach((columnLabel, c) => {
    const value = cube.at({ ...place, [map.rows]: r, [map.columns]: c });
    drawCell(svg, map, value, range, written, {
      x: left + c * cellWidth, y: top + r * cellHeight, width: cellWidth, height: cellHeight,
      name: `${map.rows} ${rowLabel}, ${map.columns} ${columnLabel}` });
  }));
  svg.addEventListener("pointerleave", hideTip);
  return svg;
}

function fitting(text, room) { return text.length * 6.6 > room ? "" : text; }

function drawCell(svg, map, value, range, written, at) {
  const none = value === null || value === undefined;
  const rgb = none ? null : paint(stopsOf(map), shareOf(value, range));
  const cell = shape("rect", { class: "cell", x: at.x, y: at.y, width: at.width - 1,
    height: at.height - 1, fill: none ? "var(--none)" : `rgb(${rgb.join(",")})` });
  const text = none ? "no number" : FORMATS[map.format](value);
  cell.dataset.value = none ? "" : String(value);
  cell.addEventListener("pointermove", event => showTip(event, `${at.name}\n${text}`));
  svg.append(cell);
  if (none && at.width > 5)
    svg.append(shape("line", { class: "axis", x1: at.x + 1, y1: at.y + at.height - 2,
      x2: at.x + at.width - 2, y2: at.y + 1, "pointer-events": "none" }));
  if (none || !written) return;
  svg.append(shape("text", { x: at.x + at.width / 2 - 0.5, y: at.y + at.height / 2 + 3.5,
    "text-anchor": "middle", "pointer-events": "none" }, inCell(map, value, range)));
  Object.assign(svg.lastChild.style, { fill: inkOn(rgb), fontSize: "11px" });
}

// Numbers too small for two decimals are written as multiples of the power of ten returned here.
function powerOfTen(map, range) {
  const most = Math.max(...range.map(Math.abs));
  const small = map.format !== "share" && map.format !== "count" && most < 0.05;
  return small ? Math.floor(Math.log10(most)) : 0;
}

function inCell(map, value, range) {
  if (map.format === "share") return String(Math.round(100 * value));
  if (map.format === "count") return String(Math.round(value));
  const power = powerOfTen(map, range);
  if (power) return (value / 10 ** power).toFixed(1);
  return value.toFixed(2).replace(/^(-?)0\./, "$1.");
}

function scaleParts(map, [low, high]) {
  const format = FORMATS[map.format];
  const canvas = element("canvas", { width: 150, height: 1 });
  const context = canvas.getContext("2d");
  for (let i = 0; i < 150; i += 1) {
    context.fillStyle = `rgb(${paint(stopsOf(map), i / 149).join(",")})`;
    context.fillRect(i, 0, 1, 1);
  }
  const parts = [format(low), canvas, format(high), element("i"), "none"];
  const power = powerOfTen(map, [low, high]);
  if (map.format === "share") parts.push("(numbers in cells: %)");
  if (power) parts.push(`(numbers in cells: times 10^${power})`);
  return parts.map(part => (typeof part === "string" ? element("span", {}, part) : part));
}
"""
