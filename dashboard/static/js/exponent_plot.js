// Exponent p over the run: a sentence, a heat strip by update, the last pass by step, and counts. One step axis.
import { CLASS_LABELS, cellText, classOf, columnSize, columns, exponentRule, exponentSteps, mergedWidth, namesOf, sentence, strip } from "./exponent.js";
import { number } from "./format.js";
import { lineFigure } from "./lines.js";
import { classColours, exponentScale, hatch, palette, plotFrame, SMALL, stepAxis, tip, tooltipStyle, valueAxis } from "./plot.js";
import { grouped, MOST } from "./pairs.js";
import { inView } from "./steps.js";

const LEFT = 66;
const RIGHT = 18;
const ROW = 20; // pixels of an update's row in the strip, less if there are many
const STRIP_MOST = 168;
const PASS = 132;
const COUNTS = 56;
const GAP = 26; // between panels, for a line of text


const CLASSES = CLASS_LABELS.map((_, i) => `p${i}`);

function heights(updates) {
  const row = Math.min(ROW, STRIP_MOST / updates);
  return { row, strip: row * updates };
}

function height(data) {
  return heights(data.updates).strip + PASS + COUNTS + 2 * GAP + 46;
}

// A rectangle over the steps `from` to `to` (both included) and the values `low` to `high`.
function box(api, from, to, low, high, inset) {
  const [left, top] = api.coord([from - 0.5, high]);
  const [right, bottom] = api.coord([to + 0.5, low]);
  const gap = right - left > 5 ? inset : 0;
  return { x: left + gap, y: top, width: Math.max(right - left - 2 * gap, 0.7), height: bottom - top };
}

function custom(id, grid, data, renderItem, more = {}) {
  return { type: "custom", id, xAxisIndex: grid, yAxisIndex: grid, data, renderItem, clip: true, silent: true, ...more };
}

function stripSeries(data, colours, ramp) {
  const lines = hatch(colours.strong);
  const background = custom("no p", 0, [[data.from, 0]], (_, api) => {
    const all = box(api, data.from, data.to, -0.5, data.updates - 0.5, 0);
    return { type: "rect", shape: { ...all, height: Math.abs(all.height), y: Math.min(all.y, all.y + all.height) }, style: { fill: lines } };
  });
  const grid = custom("grid", 0, data.grid.map((from) => [from, 0]), (params, api) => {
    const area = params.coordSys;
    const [x] = api.coord([api.value(0) - 0.5, 0]);
    return { type: "rect", shape: { x: x - 0.5, y: area.y, width: 1.5, height: area.height }, style: { fill: colours.raised } };
  });
  const cells = data.cells.map((cell) => [cell.from, cell.update, cell.value, cell.to]);
  const heat = custom("p/mean", 0, cells, (_, api) => {
    const shape = box(api, api.value(0), api.value(3), api.value(1) - 0.5, api.value(1) + 0.5, 0.75);
    const [y, tall] = [Math.min(shape.y, shape.y + shape.height), Math.abs(shape.height)];
    const value = api.value(2);
    const { fill, ink } = ramp[classOf(value)];
    const rect = { type: "rect", shape: { ...shape, y: y + 0.75, height: tall - 1.5 }, style: { fill } };
    if (shape.width < 24 || tall < 14) return rect;
    const text = { text: cellText(value), x: shape.x + shape.width / 2, y: y + tall / 2, fill: ink, align: "center", verticalAlign: "middle", fontSize: 10 };
    return { type: "group", children: [rect, { type: "text", style: text }] };
  });
  const rows = Array.from({ length: data.updates - 1 }, (_, i) => [data.from, i + 1]);
  const ruled = custom("rows", 0, rows, (params, api) => {
    const area = params.coordSys;
    const [, y] = api.coord([data.from, api.value(1) - 0.5]);
    return { type: "rect", shape: { x: area.x, y: y - 0.75, width: area.width, height: 1.5 }, style: { fill: colours.raised } };
  });
  return [background, heat, grid, ruled];
}

function passSeries(data, colours) {
  const known = data.columns.filter((column) => column.mean !== null);
  const [color, mean] = [colours.series[0], colours.series[1]];
  const middle = (column) => (column.from + Math.min(column.to, data.to)) / 2;
  const band = custom("p/q10", 1, known.filter((column) => column.q10 !== null).map((column) => [column.from, column.q10, column.to]), (_, api) => {
    const shape = box(api, api.value(0), Math.min(api.value(2), data.to), api.value(1), Math.max(1, api.value(1)), data.dotted ? 3 : 0);
    return { type: "rect", shape, style: { fill: color, opacity: 0.18 } };
  });
  const line = {
    type: "line", id: "mean", xAxisIndex: 1, yAxisIndex: 1, color: mean, z: 4,
    data: known.map((column) => [middle(column), column.mean]),
    symbol: "rect", symbolSize: [Math.max(5, Math.min(18, data.columnWidth * 0.6)), 3], showSymbol: data.dotted,
    lineStyle: { width: 1.4 }, emphasis: { disabled: true },
  };
  const most = Math.max(1, ...data.dots.map((dot) => dot.trajectories));
  const dots = {
    type: "scatter", id: "trajectories", xAxisIndex: 1, yAxisIndex: 1, z: 3, silent: true,
    data: data.dots.map((dot) => [dot.step, dot.p, dot.trajectories]),
    symbolSize: ([, , count]) => Math.max(4, Math.min(13, data.columnWidth * 0.8) * Math.sqrt(count / most)),
    itemStyle: { color, opacity: 0.6 }, tooltip: { show: false },
  };
  return [band, dots, line];
}

function countSeries(data, colours, ramp) {
  const items = data.columns.map((column) => [column.from, column.below, column.to, column.defined, column.defined + column.none]);
  return custom("counts", 2, items, (_, api) => {
    const to = Math.min(api.value(2), data.to);
    const rect = (low, high, style) => ({ type: "rect", shape: box(api, api.value(0), to, low, high, 1), style });
    const [below, defined, all] = [api.value(1), api.value(3), api.value(4)];
    return {
      type: "group",
      children: [
        rect(0, all, data.dotted ? { fill: "none", stroke: colours.line } : { fill: "none" }),
        rect(below, defined, { fill: ramp[0].fill }),
        rect(0, below, { fill: ramp[3].fill }),
      ],
    };
  });
}

function note(text, top, colours) {
  return { type: "text", left: LEFT, top, silent: true, style: { text, fill: colours.text, fontSize: SMALL } };
}

function grids(data) {
  const { strip: strips } = heights(data.updates);
  const tops = [2, 2 + strips + GAP, 2 + strips + GAP + PASS + GAP];
  return tops.map((top, i) => ({ left: LEFT, right: RIGHT, top, height: [strips, PASS, COUNTS][i], outerBoundsMode: "none" }));
}

function lowest(data) {
  const values = [...data.columns.map((column) => column.q10), ...data.dots.map((dot) => dot.p)].filter((p) => p !== null);
  return Math.min(0.9, ...values);
}

function axes(data, colours) {
  const range = { from: data.from, to: data.to };
  const bare = { name: "", axisLabel: { show: false } };
  const update = {
    type: "value", inverse: true, min: -0.5, max: data.updates - 0.5, interval: 1, axisTick: { show: false },
    splitLine: { show: false }, axisLabel: { show: false }, axisLine: { show: false },
  };
  const most = Math.max(1, ...data.columns.map((column) => column.defined + column.none));
  const label = { color: colours.text, fontSize: SMALL };
  return {
    xAxis: [0, 1, 2].map((grid) => stepAxis(colours, range, { gridIndex: grid, ...(grid < 2 ? bare : {}) })),
    yAxis: [
      { ...update, gridIndex: 0 },
      valueAxis(colours, {}, "p, last pass", {
        gridIndex: 1, nameGap: 50, nameMoveOverlap: false, ...exponentScale(lowest(data)),
        axisLabel: { ...label, formatter: (p) => (p > 0.999 ? "GRPO  1" : `${+p.toFixed(2)}`) },
      }),
      valueAxis(colours, {}, "trajectories", {
        gridIndex: 2, nameGap: 50, nameMoveOverlap: false, min: 0, max: most, interval: most, axisLabel: { ...label, formatter: (count) => number(Math.round(count)) }, splitLine: { show: false },
      }),
    ],
  };
}

function updateLabels(data, colours) {
  const { row } = heights(data.updates);
  const every = Math.ceil(13 / row);
  const shown = Array.from({ length: data.updates }, (_, update) => update).filter((update) => update % every === 0);
  return shown.map((update) => ({
    type: "text", right: undefined, x: LEFT - 8, y: 2 + (update + 0.5) * row, silent: true,
    style: { text: data.narrow ? `upd. ${update}` : `update ${update}`, fill: colours.text, fontSize: SMALL, align: "right", verticalAlign: "middle" },
  }));
}

function columnName({ from, to, members }) {
  return members > 1 || to > from ? `steps ${from} to ${to}` : `step ${from}`;
}

function tooltip(data, x) {
  const column = data.columns.find((candidate) => x >= candidate.from - 0.5 && x < candidate.to + 0.5);
  if (!column) return "";
  const average = column.to > column.from ? ", on average" : "";
  const cells = data.cells.filter((cell) => cell.from === column.from).sort((a, b) => a.update - b.update);
  const rows = [
    { label: `trajectories with p < 1${average}`, values: [number(Math.round(column.below))] },
    { label: `with p = 1${average}`, values: [number(Math.round(column.defined - column.below))] },
    { label: `without p${average}`, values: [number(Math.round(column.none))] },
    { label: "mean p, last pass", values: [number(column.mean)] },
    { label: "10 % quantile", values: [number(column.q10)] },
    { label: "lowest", values: [number(column.min)] },
    ...cells.map((cell) => ({ mark: `swatch ${CLASSES[classOf(cell.value)]}`, label: `mean p, update ${cell.update}`, values: [number(cell.value)] })),
  ];
  return tip(`${columnName(column)}: click for its trajectories`, rows);
}

// Objectives that don't choose p for each trajectory need less: a sentence, and a line if p moves.
export function exponentFigure(chart, job) {
  const rule = exponentRule(job.algorithm);
  if (rule.kind === "chosen") return panelFigure(chart, job, rule);
  if (rule.kind === "scheduled") {
    const line = lineFigure({ ...chart, series: [{ name: "p/mean", label: "p", color: 1 }], unit: "p" });
    return { ...line, sentence: ([{ points }]) => sentence(rule, job, points.map((point) => ({ ...point, mean: point.value })), null) };
  }
  const nothing = { names: () => [], read: () => null, empty: () => false, legend: () => [], option: null, table: null };
  return { ...chart, ...nothing, size: "row", series: [], sentence: () => sentence(rule, job, [], null) };
}

function texts(data) {
  if (data.narrow) {
    const dots = data.dotted ? "dots: trajectories · " : "";
    return [`${dots}band: 10 % up · ${data.dotted ? "bar" : "line"}: mean`, "strong: p < 1 · light: p = 1 · empty: no p"];
  }
  const dots = data.dotted ? "each dot: trajectories at that p (larger: more) · " : "";
  return [
    `${dots}band: from the 10 % quantile up · ${data.dotted ? "bar" : "line"}: mean`,
    "strong: p < 1 (PMPO differs from GRPO) · light: p = 1 · empty: no p, no reward spread in the group",
  ];
}

function panelFigure(chart, job, rule) {
  return {
    ...chart,
    stepQuery: "?sort=p",
    names: namesOf,
    read({ store, view, pairs }, width) {
      const steps = exponentSteps(store, job);
      const points = store.points("p/mean");
      const shown = inView(steps, view.zoom);
      const first = Math.min(1, steps[0]?.step ?? 1, points[0]?.step ?? 1);
      const [from, to] = [Math.max(view.zoom?.from ?? first, first), Math.max(view.to, first)];
      const inner = Math.max(width - LEFT - RIGHT, 50);
      const size = Math.max(columnSize(to - from + 1, inner), mergedWidth(points, job.updates));
      const dotted = to - from < MOST;
      if (dotted) pairs.want(from, to);
      const grid = Array.from({ length: Math.ceil((to - from + 1) / size) }, (_, i) => from + i * size);
      const columnWidth = (inner * size) / (to - from + 1);
      return {
        steps: shown, all: steps, points, zoom: view.zoom, updates: job.updates, from, to, dotted,
        narrow: width < 480, columnWidth, grid: columnWidth > 6 ? grid : [],
        cells: strip(inView(points, { from, to }), size), columns: columns(inView(steps, { from, to }), size),
        dots: dotted ? grouped(pairs.rows(from, to), (row) => `${row.step} ${row.p}`) : [],
      };
    },
    empty: (data) => data.steps.length === 0,
    sentence: (data) => sentence(rule, job, data.all, data.zoom),
    legend: () => [
      { label: "mean p:" },
      ...CLASS_LABELS.map((label, i) => ({ mark: `swatch ${CLASSES[i]}`, label })),
      { mark: "swatch hatched", label: "no p" },
    ],
    height,
    option(data) {
      const colours = palette();
      const ramp = classColours(CLASSES);
      const [, pass, counts] = grids(data).map((grid) => grid.top);
      const [ofPass, ofCounts] = texts(data);
      return {
        ...plotFrame(),
        grid: grids(data),
        ...axes(data, colours),
        graphic: [...updateLabels(data, colours), note(ofPass, pass - 19, colours), note(ofCounts, counts - 17, colours)],
        axisPointer: { link: [{ xAxisIndex: "all" }], lineStyle: { color: colours.strong, type: "solid" } },
        tooltip: { ...tooltipStyle(colours, (hovered) => tooltip(data, hovered[0]?.axisValue ?? NaN)), trigger: "axis" },
        series: [...stripSeries(data, colours, ramp), ...passSeries(data, colours), countSeries(data, colours, ramp)],
      };
    },
    table(data) {
      const rows = new Map();
      const by = new Map(data.points.map((point) => [`${point.step} ${point.update}`, point.value]));
      for (const step of data.steps) {
        const cells = [step.mean, step.q10, step.min, step.below, step.defined, step.none].map(number);
        const updates = Array.from({ length: data.updates }, (_, update) => number(by.get(`${step.step} ${update}`)));
        rows.set(step.step, [...cells, ...updates]);
      }
      const updates = Array.from({ length: data.updates }, (_, update) => `update ${update}`);
      return { head: ["mean p", "10 %", "lowest", "p < 1", "with p", "no p", ...updates], rows };
    },
  };
}
