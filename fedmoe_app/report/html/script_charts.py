"""The page's script, second part: charts as SVG, redrawn at each width."""

from __future__ import annotations

CHARTS_JS = r"""
const MARKS = ["circle", "square", "triangle", "diamond", "cross"];

function colour(number) { return `var(--c${number % 8})`; }

function mark(kind, x, y, r, fill) {
  if (kind === "circle") return shape("circle", { cx: x, cy: y, r, fill });
  const paths = {
    square: `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    triangle: `M${x},${y - 1.2 * r}L${x + 1.2 * r},${y + r}H${x - 1.2 * r}z`,
    diamond: `M${x},${y - 1.3 * r}L${x + 1.3 * r},${y}L${x},${y + 1.3 * r}L${x - 1.3 * r},${y}z`,
    cross: `M${x - r},${y - r}L${x + r},${y + r}M${x - r},${y + r}L${x + r},${y - r}`,
  };
  const ink = kind === "cross" ? { stroke: fill, "stroke-width": 2, fill: "none" } : { fill };
  return shape("path", { d: paths[kind], ...ink });
}

function known(series) { return series.points.filter(point => point[1] !== null); }

// Each chart: a function that draws it anew, at the width that its figure has.
function drawChart(figure, chart) {
  const plot = element("div", { class: "plot" });
  const hidden = new Set();
  figure.append(plot);
  if (!chart || !chart.series.length) {
    plot.append(element("p", { class: "quiet" }, "No numbers yet."));
    return () => {};
  }
  const draw = () => {
    const kinds = { lines: drawLines, bars: drawBars, dots: drawDots };
    const shown = chart.series.map((series, i) => ({ ...series, number: i }))
      .filter((_, i) => !hidden.has(i));
    plot.replaceChildren(kinds[chart.kind](plot.clientWidth || 600, chart, shown));
  };
  figure.append(makeLegend(chart, hidden, draw));
  return draw;
}

function makeLegend(chart, hidden, draw) {
  const legend = element("div", { class: "legend" });
  chart.series.forEach((series, i) => {
    const key = shape("svg", { viewBox: "0 0 30 14", "aria-hidden": "true" });
    if (chart.kind === "lines")
      key.append(shape("line", { x1: 0, x2: 30, y1: 7, y2: 7, "stroke-width": 2.2,
        stroke: colour(series.colour), "stroke-dasharray": series.dash || "" }));
    key.append(mark(chart.kind === "bars" ? "square" : markOf(chart, series, i), 15, 7,
      series.small ? 2.4 : 4,
      colour(series.colour)));
    const item = element("span", {}, key, series.name);
    if (chart.kind === "lines" && chart.series.length > 1) {
      item.tabIndex = 0;
      item.setAttribute("role", "button");
      item.setAttribute("aria-pressed", "true");
      item.style.cursor = "pointer";
      const toggle = () => {
        if (hidden.has(i)) hidden.delete(i); else hidden.add(i);
        item.style.opacity = hidden.has(i) ? 0.4 : 1;
        item.setAttribute("aria-pressed", String(!hidden.has(i)));
        draw();
      };
      item.addEventListener("click", toggle);
      item.addEventListener("keydown", event => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); }
      });
    }
    legend.append(item);
  });
  if ((chart.failed || []).length) {
    const key = shape("svg", { viewBox: "0 0 30 14", "aria-hidden": "true" });
    key.append(shape("rect", { x: 8, width: 14, height: 14, fill: "var(--bad)", opacity: 0.25 }));
    legend.append(element("span", {}, key, "failed round"));
  }
  return legend;
}

function markOf(chart, series, i) {
  return MARKS[(series.mark ?? i) % MARKS.length];
}

function rangeOf(chart, shown) {
  const values = shown.flatMap(s => known(s).flatMap(p => [p[1], p[2] ?? p[1], p[3] ?? p[1]]));
  const low = chart.low ?? Math.min(...values), most = Math.max(...values);
  const high = chart.high ?? (most > low ? low + (most - low) * 1.06 : low + 1);
  return [low, Math.min(high, chart.most ?? Infinity)];
}

// Axes and grid; returns the scales.
function frame(svg, chart, width, height, xRange, yRange, names = null) {
  const format = TICKS[chart.format];
  const yTicks = niceTicks(...yRange, 5);
  const left = 14 + Math.max(...yTicks.map(t => format(t).length)) * 7, right = width - 10;
  const top = 20, bottom = height - 38;
  const x = v => left + (v - xRange[0]) / (xRange[1] - xRange[0]) * (right - left);
  const y = v => bottom - (v - yRange[0]) / (yRange[1] - yRange[0]) * (bottom - top);
  for (const tick of yTicks) {
    svg.append(shape("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }));
    svg.append(shape("text", { class: "quiet-text", x: left - 6, y: y(tick) + 4,
      "text-anchor": "end" }, format(tick)));
  }
  const few = Math.max(2, Math.floor((right - left) / 42));
  const xTicks = names ? [] : niceTicks(xRange[0], xRange[1], few).filter(Number.isInteger);
  for (const tick of xTicks)
    svg.append(shape("text", { class: "quiet-text", x: x(tick), y: bottom + 17,
      "text-anchor": "middle" }, String(tick)));
  svg.append(shape("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  svg.append(shape("text", { class: "quiet-text", x: (left + right) / 2, y: height - 5,
    "text-anchor": "middle" }, chart.x));
  svg.append(shape("text", { class: "quiet-text", x: 2, y: 11 }, chart.y));
  for (const round of chart.failed || [])
    svg.append(shape("rect", { x: x(round - 0.45), y: top, width: x(0.9) - x(0),
      height: bottom - top, fill: "var(--bad)", opacity: 0.14 }));
  return { x, y, left, right, top, bottom };
}

function drawLines(width, chart, shown) {
  const height = Math.max(220, Math.min(320, width * 0.6));
  const svg = shape("svg", { width, height, role: "img", "aria-label": chart.y });
  const rounds = chart.series.flatMap(s => known(s).map(p => p[0]));
  let [first, last] = [Math.min(...rounds), Math.max(...rounds)];
  if (first === last) { first -= 1; last += 1; }
  const scales = frame(svg, chart, width, height, [first - 0.12, last + 0.12],
    rangeOf(chart, chart.series));
  for (const series of shown) drawBand(svg, series, scales);
  for (const series of shown) drawLine(svg, chart, series, scales);
  hoverRounds(svg, chart, shown, scales);
  return svg;
}

function inRange(scales, value) {
  return Math.max(scales.top, Math.min(scales.bottom, scales.y(value)));
}

function drawBand(svg, series, scales) {
  const points = known(series).filter(p => p.length > 2 && p[2] !== null);
  if (points.length < 2) return;
  const at = (p, i) => `${scales.x(p[0]).toFixed(1)},${inRange(scales, p[i]).toFixed(1)}`;
  const edge = [...points.map(p => at(p, 3)), ...points.reverse().map(p => at(p, 2))];
  svg.append(shape("path", { d: `M${edge.join("L")}Z`, fill: colour(series.colour),
    opacity: series.faint ? 0.1 : 0.17 }));
}

function drawLine(svg, chart, series, scales) {
  const points = known(series);
  const at = p => `${scales.x(p[0]).toFixed(1)},${scales.y(p[1]).toFixed(1)}`;
  svg.append(shape("path", { d: `M${points.map(at).join("L")}`, fill: "none", "stroke-width": 2.2,
    stroke: colour(series.colour), "stroke-dasharray": series.dash || "",
    "stroke-linejoin": "round" }));
  if (points.length > 60) return;
  for (const point of points)
    svg.append(mark(markOf(chart, series, series.number), scales.x(point[0]), scales.y(point[1]),
      3.4, colour(series.colour)));
}

// A vertical line at the nearest round, and the values there.
function hoverRounds(svg, chart, shown, scales) {
  const rounds = [...new Set(shown.flatMap(s => known(s).map(p => p[0])))].sort((a, b) => a - b);
  const line = shape("line", { class: "axis", y1: scales.top, y2: scales.bottom,
    visibility: "hidden" });
  svg.append(line);
  const format = FORMATS[chart.format];
  svg.addEventListener("pointermove", event => {
    const place = event.clientX - svg.getBoundingClientRect().left;
    const near = rounds.reduce((a, b) =>
      Math.abs(scales.x(b) - place) < Math.abs(scales.x(a) - place) ? b : a, rounds[0]);
    if (near === undefined) return;
    line.setAttribute("x1", scales.x(near));
    line.setAttribute("x2", scales.x(near));
    line.setAttribute("visibility", "visible");
    const texts = shown.flatMap(series => {
      const point = known(series).find(p => p[0] === near);
      if (!point) return [];
      const ends = point.length > 2 && point[2] !== null
        ? ` (${format(point[2])} to ${format(point[3])})` : "";
      return [`${series.name}: ${format(point[1])}${ends}`];
    });
    showTip(event, [`${chart.x} ${near}`, ...texts].join("\n"));
  });
  svg.addEventListener("pointerleave", () => {
    line.setAttribute("visibility", "hidden");
    hideTip();
  });
}

function drawBars(width, chart, shown) {
  const height = Math.max(200, Math.min(280, width * 0.5));
  const svg = shape("svg", { width, height, role: "img", "aria-label": chart.y });
  const rounds = chart.series.flatMap(s => known(s).map(p => p[0]));
  const scales = frame(svg, chart, width, height,
    [Math.min(...rounds) - 0.6, Math.max(...rounds) + 0.6], rangeOf(chart, chart.series));
  const slot = scales.x(1) - scales.x(0), thick = Math.max(1, slot * 0.8 / shown.length);
  shown.forEach((series, i) => known(series).forEach(([round, value]) =>
    svg.append(shape("rect", { x: scales.x(round) - slot * 0.4 + i * thick, y: scales.y(value),
      width: Math.max(1, thick - 1), height: Math.max(0, scales.bottom - scales.y(value)),
      fill: colour(series.colour) }))));
  hoverRounds(svg, chart, shown, scales);
  return svg;
}

// Rows against one number: a mark a series, a line from the lowest to the highest or the interval.
function drawDots(width, chart, shown) {
  const rowHeight = chart.rows.length > 30 ? 16 : 24;
  const height = 34 + chart.rows.length * rowHeight + 30;
  const svg = shape("svg", { width, height, role: "img", "aria-label": chart.x });
  const longest = Math.max(...chart.rows.map(name => name.length));
  const left = Math.min(width * 0.42, 12 + longest * 7), right = width - 26;
  const all = shown.flatMap(s => s.values.flat().concat((s.ends || []).flat()))
    .filter(v => v !== null && v !== undefined);
  const low = chart.low ?? Math.min(0, ...all);
  const high = chart.high ?? (Math.max(...all) * 1.05 || 1);
  const x = v => left + (Math.max(low, Math.min(high, v)) - low) / (high - low) * (right - left);
  const bottom = 14 + chart.rows.length * rowHeight, format = FORMATS[chart.format];
  for (const tick of niceTicks(low, high, Math.max(2, Math.floor((right - left) / 80)))) {
    svg.append(shape("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 8, y2: bottom }));
    svg.append(shape("text", { class: "quiet-text", x: x(tick), y: bottom + 16,
      "text-anchor": "middle" }, TICKS[chart.format](tick)));
  }
  svg.append(shape("text", { class: "quiet-text", x: (left + right) / 2, y: height - 6,
    "text-anchor": "middle" }, chart.x));
  chart.rows.forEach((name, row) => drawDotRow(svg, chart, shown, { row, name, left, right, x,
    y: 14 + (row + 0.5) * rowHeight, rowHeight, format }));
  svg.addEventListener("pointerleave", hideTip);
  return svg;
}

function drawDotRow(svg, chart, shown, at) {
  const room = Math.floor((at.left - 8) / 6.6);
  const name = shorten(at.name, room);
  svg.append(shape("text", { x: at.left - 8, y: at.y + 4, "text-anchor": "end" }, name));
  const texts = [];
  const one = shown.filter(s => !Array.isArray(s.values[at.row]) && s.values[at.row] !== null);
  if (one.length > 1 && chart.joined !== false) {
    const places = one.map(s => at.x(s.values[at.row]));
    svg.append(shape("line", { x1: Math.min(...places), x2: Math.max(...places), y1: at.y,
      y2: at.y, stroke: "var(--quiet)", "stroke-width": 1.6, opacity: 0.6 }));
  }
  for (const series of shown) {
    const value = series.values[at.row], ends = series.ends && series.ends[at.row];
    const ink = series.colours ? colour(series.colours[at.row]) : colour(series.colour);
    if (ends)
      svg.append(shape("path", { stroke: ink, "stroke-width": 2, fill: "none",
        d: `M${at.x(ends[0])},${at.y - 5}v10m0,-5H${at.x(ends[1])}m0,-5v10` }));
    const list = [value].flat().filter(v => v !== null && v !== undefined);
    for (const each of list)
      svg.append(mark(markOf(chart, series, series.number), at.x(each),
        at.y + (series.small ? 7 : 0), series.small ? 2.4 : 5, ink));
    if (list.length)
      texts.push(`${series.name}: ${list.map(at.format).join(", ")}`
        + (ends ? ` (${at.format(ends[0])} to ${at.format(ends[1])})` : ""));
  }
  const target = shape("rect", { x: 0, y: at.y - at.rowHeight / 2, width: at.right,
    height: at.rowHeight, fill: "transparent" });
  target.addEventListener("pointermove", event =>
    showTip(event, [at.name, ...texts].join("\n")));
  svg.append(target);
}
"""
