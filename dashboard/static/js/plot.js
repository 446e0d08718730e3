// Turns a chart's definition and the store into ECharts options. No DOM except the tooltip's.
import { number, tick } from "./format.js";
import { position, smooth } from "./store.js";

const SMOOTHING = 0.8; // weight of the past in the moving average
const FEW = 80; // with fewer points each gets a symbol

// Between two steps the weights are published and ratios start at 1 again, so no line joins them.
function strokes(points, values) {
  const data = [];
  points.forEach((point, i) => {
    if (i && point.update >= 0 && points[i - 1].step !== point.step) data.push([point.x, null]);
    data.push([point.x, values[i]]);
  });
  return data;
}

// [{series, points: [{x, step, update, value, low, high}]}]: the numbers for a chart's plot and table.
export function chartData(chart, store, updatesPerStep, zoom) {
  return chart.series.map((series) => ({
    series,
    points: store
      .points(series.name)
      .map((point) => ({ ...point, x: position(point, updatesPerStep) }))
      .filter((point) => !zoom || (point.x >= zoom[0] && point.x <= zoom[1])),
  }));
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    series: [1, 2, 3, 4, 5, 6, 7].map((n) => read(`--s${n}`)),
    line: read("--line"),
    strong: read("--line-strong"),
    text: read("--text-2"),
    raised: read("--bg-raised"),
  };
}

function filled(points, xs) {
  const values = new Map(points.map((point) => [point.x, point.value ?? 0]));
  return xs.map((x) => [x, values.get(x) ?? 0]);
}

function lineSeries({ series, points }, palette, { smoothed, updatesPerStep }) {
  const color = palette.series[series.color - 1];
  const values = points.map((point) => point.value);
  const marks = series.style === "marks";
  const byUpdate = points.some((point) => point.update >= 0);
  const drawn = smoothed && !marks ? smooth(values, byUpdate ? SMOOTHING ** (1 / updatesPerStep) : SMOOTHING) : values;
  const line = {
    type: "line",
    id: series.name,
    name: series.label,
    data: smoothed ? points.map((point, i) => [point.x, drawn[i]]) : strokes(points, drawn),
    color,
    showSymbol: marks || points.length <= FEW,
    symbol: "circle",
    symbolSize: marks ? 8 : 4,
    lineStyle: { width: marks ? 1.2 : 1.8, type: series.style === "dashed" ? [5, 4] : marks ? [2, 3] : "solid" },
    emphasis: { disabled: true },
    connectNulls: false,
    z: marks ? 4 : 3,
  };
  if (marks) line.itemStyle = { color: palette.raised, borderColor: color, borderWidth: 2 };
  if (!smoothed || marks) return [line];
  const raw = { ...line, id: `${series.name} raw`, data: strokes(points, values), showSymbol: false, silent: true, z: 2 };
  raw.lineStyle = { width: 1, opacity: 0.3 };
  return [raw, line];
}

function stackSeries({ series, points }, xs, palette) {
  const color = palette.series[series.color - 1];
  return {
    type: "line",
    id: series.name,
    name: series.label,
    stack: "all",
    step: "middle",
    data: filled(points, xs),
    color,
    showSymbol: false,
    lineStyle: { width: 0 },
    areaStyle: { color, opacity: 0.85 },
    emphasis: { disabled: true },
  };
}

function referenceLines(chart, palette) {
  return {
    type: "line",
    id: "reference",
    data: [],
    silent: true,
    markLine: {
      silent: true,
      symbol: "none",
      animation: false,
      lineStyle: { color: palette.strong, width: 1, type: "solid" },
      label: { color: palette.text, fontSize: 11, position: "end", distance: 6 },
      data: chart.lines.map((line) => ({ yAxis: line.value, label: { formatter: line.label } })),
    },
  };
}

function yAxis(chart, palette) {
  const ends = chart.y ?? {};
  const axis = {
    type: "value",
    scale: true,
    splitNumber: ends.min === 0 && ends.max === 1 ? 5 : 4,
    axisLabel: { color: palette.text, fontSize: 11, formatter: tick },
    splitLine: { lineStyle: { color: palette.line } },
  };
  if (ends.min !== undefined) axis.min = (data) => (Number.isFinite(data.min) ? Math.min(ends.min, data.min) : ends.min);
  if (ends.max !== undefined) axis.max = (data) => (Number.isFinite(data.max) ? Math.max(ends.max, data.max) : ends.max);
  return axis;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function stepName(point) {
  return point.update < 0 ? `${point.step}` : `${point.step}, update ${point.update}`;
}

// Built from elements: the content-security policy allows no inline styles in HTML text.
function tooltip(data, hovered) {
  const x = hovered.find((item) => item.value)?.value[0];
  const box = element("div", undefined, "tip");
  const table = element("table");
  let heading = "";
  for (const { series, points } of data) {
    const point = points.find((candidate) => candidate.x === x);
    if (!point) continue;
    heading = `step ${stepName(point)}: click for its trajectories`;
    const row = table.insertRow();
    const name = row.insertCell();
    name.append(element("i", undefined, `c${series.color}`), series.label);
    row.insertCell().textContent = number(point.value);
    if (point.low !== null && point.low !== undefined) row.insertCell().textContent = `${number(point.low)} … ${number(point.high)}`;
  }
  box.append(element("p", heading), table);
  return box;
}

export function plotOption(chart, data, view) {
  const palette = colours();
  const stacked = chart.series[0].style === "stack";
  const xs = stacked ? [...new Set(data.flatMap((entry) => entry.points.map((point) => point.x)))].sort((a, b) => a - b) : [];
  const series = stacked
    ? data.map((entry) => stackSeries(entry, xs, palette))
    : data.flatMap((entry) => lineSeries(entry, palette, view));
  if (chart.lines) series.push(referenceLines(chart, palette));
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    grid: { left: 4, right: chart.lines ? 84 : 10, top: 12, bottom: 4, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
    xAxis: {
      type: "value",
      min: view.from,
      max: view.to,
      minInterval: 1,
      axisLabel: { color: palette.text, fontSize: 11, hideOverlap: true, formatter: (x) => (Number.isInteger(x) ? tick(x) : "") },
      axisLine: { lineStyle: { color: palette.strong }, onZero: false },
      axisTick: { lineStyle: { color: palette.strong } },
      splitLine: { show: false },
    },
    yAxis: yAxis(chart, palette),
    tooltip: {
      trigger: "axis",
      confine: true,
      transitionDuration: 0,
      backgroundColor: palette.raised,
      borderColor: palette.strong,
      padding: [7, 10],
      axisPointer: { lineStyle: { color: palette.strong, type: "solid" } },
      formatter: (hovered) => tooltip(data, hovered),
    },
    series,
  };
}
