// A line chart: one value a step and series. Faint dots are single updates.
import { number } from "./format.js";
import { GRID, palette, plotFrame, stepAxis, tip, tooltipStyle, valueAxis } from "./plot.js";
import { inView, lastPass, place, smooth } from "./steps.js";
import { WHOLE_STEP } from "./store.js";

const SMOOTHING = 0.8; // weight of the past in the moving average
const FEW = 60; // with fewer steps each gets a symbol, and its updates are drawn

// How many trajectories are behind a step's numbers: "8 of 64 trajectories", or nothing where that isn't recorded.
const BEHIND = ["p/last_pass/defined", "p/last_pass/undefined"];

export function trajectoriesBehind(store, step) {
  const [defined, without] = BEHIND.map((name) => store.points(name).find((point) => point.step === step)?.value);
  return defined && without !== undefined ? `${number(defined)} of ${number(defined + without)} trajectories` : "";
}

function lineSeries({ series, points, updates }, colours, smoothed) {
  const color = colours.series[series.color - 1];
  const marks = series.style === "marks";
  const values = points.map((point) => point.value);
  const line = {
    type: "line",
    id: series.name,
    name: series.label,
    data: points.map((point, i) => [point.step, values[i]]),
    color,
    showSymbol: marks || points.length <= FEW,
    symbol: "circle",
    symbolSize: marks && points.length <= FEW ? 8 : 4,
    lineStyle: { width: marks ? 1.2 : 1.8, type: series.style === "dashed" ? [5, 4] : marks ? [2, 3] : "solid" },
    sampling: "minmax", // no more points than pixels
    emphasis: { disabled: true },
    z: marks ? 4 : 3,
  };
  if (marks) return [{ ...line, itemStyle: { color: colours.raised, borderColor: color, borderWidth: 2 } }];
  const dots = {
    type: "scatter",
    id: `${series.name} updates`,
    data: updates,
    symbolSize: 3.5,
    itemStyle: { color, opacity: 0.35 },
    silent: true,
    tooltip: { show: false },
    z: 2,
  };
  const extra = updates.length ? [dots] : [];
  if (!smoothed) return [...extra, line];
  const raw = { ...line, id: `${series.name} raw`, showSymbol: false, silent: true, z: 2, lineStyle: { width: 1, opacity: 0.3 } };
  const drawn = smooth(values, SMOOTHING);
  return [...extra, raw, { ...line, data: points.map((point, i) => [point.step, drawn[i]]) }];
}

function stackSeries({ series, points }, steps, colours) {
  const color = colours.series[series.color - 1];
  const values = new Map(points.map((point) => [point.step, point.value ?? 0]));
  return {
    type: "line",
    id: series.name,
    name: series.label,
    stack: "all",
    step: "middle",
    data: steps.map((step) => [step, values.get(step) ?? 0]),
    color,
    showSymbol: false,
    lineStyle: { width: 0 },
    areaStyle: { color, opacity: 0.85 },
    emphasis: { disabled: true },
  };
}

function referenceLines(chart, colours) {
  return {
    type: "line",
    id: "reference",
    data: [],
    silent: true,
    markLine: {
      silent: true,
      symbol: "none",
      animation: false,
      lineStyle: { color: colours.strong, width: 1, type: "solid" },
      label: { color: colours.text, fontSize: 11, position: "insideEndTop", distance: [2, 2] },
      data: chart.lines.map((line) => ({ yAxis: line.value, label: { formatter: line.label } })),
    },
  };
}

// The numbers of the steps in view: [{ series, points: one a step, updates: [[x, value]] of single ones }].
export function lineData(chart, store, job, zoom) {
  return chart.series.map((series) => {
    const all = inView(store.points(series.name), zoom);
    const points = lastPass(all, job, series.pool);
    const dotted = points.length <= FEW && series.style !== "dashed";
    const single = dotted ? all.filter((point) => point.update !== WHOLE_STEP) : [];
    return { series, points, updates: single.map((point) => [place(point, job.updates), point.value]) };
  });
}

function tooltip(data, hovered) {
  const step = Math.round(hovered.find((item) => item.value)?.value[0] ?? NaN);
  const rows = data.flatMap(({ series, points }) => {
    const point = points.find((candidate) => candidate.step === step);
    if (!point) return [];
    const span = point.low != null ? [`${number(point.low)} … ${number(point.high)}`] : [];
    return [{ mark: `c${series.color}`, label: series.label, values: [number(point.value), ...span] }];
  });
  return tip(`step ${step}: click for its trajectories`, rows);
}

function swatch(series) {
  const shape = { dashed: "dashed", marks: "dots", stack: "fill" }[series.style] ?? "";
  return `c${series.color} ${shape}`;
}

function newest(points) {
  return points.findLast((point) => point.value !== null) ?? null;
}

export function lineFigure(chart) {
  return {
    ...chart,
    names: () => [...chart.series.map((series) => series.name), ...(chart.behind ? BEHIND : [])],
    read: ({ store, job, view }) => lineData(chart, store, job, view.zoom),
    empty: (data) => data.every((entry) => entry.points.length === 0),
    sentence: () => [],
    legend: (data) =>
      data.map(({ series, points }) => ({ mark: swatch(series), label: series.label, newest: newest(points) ?? {} })),
    option(data, { view }) {
      const colours = palette();
      const stacked = data.filter((entry) => entry.series.style === "stack");
      const steps = [...new Set(stacked.flatMap((entry) => entry.points.map((point) => point.step)))].sort((a, b) => a - b);
      const series = data.flatMap((entry) =>
        entry.series.style === "stack" ? [stackSeries(entry, steps, colours)] : lineSeries(entry, colours, view.smoothed),
      );
      if (chart.lines) series.push(referenceLines(chart, colours));
      return {
        ...plotFrame(),
        grid: GRID,
        xAxis: stepAxis(colours, view),
        yAxis: valueAxis(colours, chart.y, chart.unit),
        tooltip: {
          ...tooltipStyle(colours, (hovered) => tooltip(data, hovered)),
          trigger: "axis",
          axisPointer: { lineStyle: { color: colours.strong, type: "solid" } },
        },
        series,
      };
    },
    // The values of the plot without smoothing.
    table(data) {
      const rows = new Map();
      data.forEach(({ points }, column) => {
        for (const point of points) {
          if (!rows.has(point.step)) rows.set(point.step, Array(data.length).fill(""));
          rows.get(point.step)[column] = number(point.value);
        }
      });
      return { head: data.map(({ series }) => series.label), rows };
    },
  };
}
