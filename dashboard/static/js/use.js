// What nodes used over the last hour: GPUs by NVML, or else the processes of the viewer's attempts.
// Pure functions first; the rest draws them with ECharts and asks for what is new while somebody looks.
import { GRID, make, palette, plotFrame, SMALL, tip, tooltipStyle, valueAxis } from "./plot.js";
import { onReturn } from "./returning.js";
import { root } from "./root.js";

const HOUR_MS = 3_600_000;
const COLOURS = 9;
const MIB_A_GIB = 1024;

// Each chart: a title, the unit of its axis, and the lines of a node, [{ name, of: sample -> value or null }].
const CHARTS = [
  { id: "gpu", title: "GPU utilisation", unit: "%", y: { min: 0, max: 100 }, more: { interval: 25 }, lines: (node, each) => gpuLines(node, each, (gpu) => gpu.utilisation ?? null, mean) },
  { id: "gpu-memory", title: "GPU memory used", unit: "GiB", y: { min: 0 }, lines: (node, each) => gpuLines(node, each, (gpu) => (gpu.memory_used_mb == null ? null : gpu.memory_used_mb / MIB_A_GIB), sum) },
  { id: "cpu", title: "Busy cores", unit: "cores", y: { min: 0 }, lines: (node) => attemptLines(node, (one) => one.cpu) },
  { id: "memory", title: "Memory of processes", unit: "GiB", y: { min: 0 }, lines: (node) => attemptLines(node, (one) => one.memory_mb / MIB_A_GIB) },
];

function sum(values) {
  return values.reduce((all, value) => all + value, 0);
}

function mean(values) {
  return sum(values) / values.length;
}

// A line for each GPU, or one for all of a node's.
function gpuLines(node, each, value, together) {
  if (node.gpus.length === 0) return [];
  const known = (sample, wanted) => sample.gpus.filter((gpu) => wanted === null || gpu.uuid === wanted).map(value).filter((one) => one !== null);
  const of = (wanted) => (sample) => {
    const values = known(sample, wanted);
    return values.length ? together(values) : null;
  };
  return each === "gpu" ? node.gpus.map(({ uuid, label }) => ({ name: label, of: of(uuid) })) : [{ name: node.id, of: of(null) }];
}

// A node without GPUs is as busy as what runs there.
function attemptLines(node, value) {
  return node.gpus.length ? [] : [{ name: node.id, of: (sample) => sum(sample.attempts.map(value)) }];
}

// [[ms, value]]; null where reports are missing, so that no line is drawn across.
export function points(samples, everyMs, of) {
  const found = [];
  let last = null;
  for (const sample of samples) {
    const at = Date.parse(sample.at);
    if (last !== null && at - last > 3 * everyMs) found.push([last + everyMs, null]);
    found.push([at, of(sample)]);
    last = at;
  }
  return found;
}

// The charts that have numbers: [{ id, title, unit, y, lines: [{ name, points }] }].
export function chartsOf(nodes, each, told, everyMs) {
  return CHARTS.map((chart) => {
    const lines = nodes.flatMap((node) => chart.lines(node, each).map(({ name, of }) => ({ name, points: points(told.get(node.id) ?? [], everyMs, of) })));
    return { ...chart, lines: lines.filter((line) => line.points.some(([, value]) => value !== null)).slice(0, COLOURS) };
  }).filter((chart) => chart.lines.length);
}

export function clock(ms) {
  return new Date(ms).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

function option(chart, colours) {
  const text = { color: colours.text, fontSize: SMALL };
  const said = (hovered) => hovered.filter(({ value }) => value[1] !== null).map(({ seriesIndex, value }) => ({ mark: `c${seriesIndex + 1}`, label: chart.lines[seriesIndex].name, values: [`${value[1].toFixed(1)} ${chart.unit}`] }));
  return {
    ...plotFrame(),
    grid: GRID,
    xAxis: { type: "time", splitNumber: 4, axisLabel: { ...text, hideOverlap: true, formatter: clock }, axisLine: { lineStyle: { color: colours.strong } }, axisTick: { show: false } },
    yAxis: valueAxis(colours, chart.y, chart.unit, chart.more),
    tooltip: { ...tooltipStyle(colours, (hovered) => tip(clock(hovered[0].value[0]), said(hovered))), trigger: "axis", axisPointer: { lineStyle: { color: colours.strong, type: "solid" } } },
    series: chart.lines.map(({ name, points: data }, i) => ({ type: "line", name, data, color: colours.series[i], showSymbol: data.length < 3, lineStyle: { width: 1.6 }, emphasis: { disabled: true } })),
  };
}

class Cards {
  constructor(place, echarts) {
    this.place = place;
    this.echarts = echarts;
    this.plots = new Map();
  }

  draw(charts) {
    for (const chart of charts) {
      const { plot, legend } = this.plots.get(chart.id) ?? this.added(chart);
      legend.replaceChildren(...chart.lines.map(({ name }, i) => make("li", {}, make("i", { className: `c${i + 1}` }), name)));
      plot.resize();
      plot.setOption(option(chart, palette()), { notMerge: true });
    }
    this.place.dataset.drawn = "";
  }

  added(chart) {
    const canvas = make("div", { className: "plot", role: "img", "aria-label": `${chart.title} over the last hour; the node's page has a table` });
    const legend = make("ul", { className: "legend" });
    this.place.append(make("section", { className: "chart half" }, make("div", { className: "chart-head" }, make("h3", { textContent: chart.title })), legend, canvas));
    const made = { plot: this.echarts.init(canvas, null, { renderer: "canvas" }), legend };
    this.plots.set(chart.id, made);
    return made;
  }
}

async function start(place, { nodes, each }) {
  const echarts = await import(place.dataset.echarts);
  const cards = new Cards(place, echarts);
  const told = new Map(); // node -> samples
  let everyMs = 10_000;

  async function more(node) {
    const before = told.get(node.id) ?? [];
    const since = before.length ? `?since=${encodeURIComponent(before.at(-1).at)}` : "";
    const answer = await fetch(`${root}v1/nodes/${encodeURIComponent(node.id)}/samples${since}`);
    if (!answer.ok) throw new Error(`${answer.url}: ${answer.status}`);
    const { every_s: seconds, items } = await answer.json();
    everyMs = 1000 * seconds;
    told.set(node.id, [...before, ...items].filter(({ at }) => Date.parse(at) > Date.now() - HOUR_MS));
  }
  const draw = () => cards.draw(chartsOf(nodes, each, told, everyMs));
  async function renew() {
    if (document.hidden) return;
    try {
      await Promise.all(nodes.map(more));
      dispatchEvent(new Event("connection:back"));
    } catch {
      dispatchEvent(new Event("connection:lost"));
      return;
    }
    draw();
  }
  await renew();
  setInterval(renew, everyMs);
  onReturn(renew);
  document.addEventListener("themechange", draw);
  new ResizeObserver(draw).observe(place);
}

const place = document.getElementById("use");
if (place?.dataset.echarts) start(place, JSON.parse(document.getElementById("use-data").textContent));
