// Why this p: clip fraction against p, a circle for each pair, and the line sqrt(1 - f) that small ratios give.
import { expectedExponent } from "./exponent.js";
import { number, percentTick } from "./format.js";
import { grouped, MOST } from "./pairs.js";
import { exponentScale, palette, plotFrame, SMALL, tip, tooltipStyle, valueAxis } from "./plot.js";

const LARGEST = 34; // pixels of the largest circle
const SIGNS = [
  { sign: -1, label: "advantage < 0", color: 1 },
  { sign: 1, label: "advantage > 0", color: 2 },
];

// Circles of the steps in view: [{ p, clip_fraction, advantage, trajectories, steps }].
export function circles(rows) {
  return grouped(rows, (row) => `${row.p} ${row.clip_fraction} ${row.advantage}`);
}

// Why there is no circle; `recorded`: how many steps in view have trajectories, or null if that isn't known yet.
export function nothing(recorded) {
  if (recorded === null) return "Loading…";
  if (recorded === 0) return "No trajectories are recorded for the steps in view.";
  const steps = recorded === 1 ? "the step" : `the ${number(recorded)} steps`;
  return `No trajectory of ${steps} in view has a p: in every group all rewards were equal.`;
}

function line(expected, most) {
  return Array.from({ length: 61 }, (_, i) => (i / 60) * most).map((f) => [f, expected(f)]);
}

export function whyFigure(chart, job) {
  const expected = expectedExponent(job.algorithm);
  const full = job.algorithm.clip_fraction_full;
  const formula = full === 1 ? "√(1−f)" : `√(1−f/${number(full)})`;
  return {
    ...chart,
    still: true, // no step axis to zoom
    names: () => ["p/mean"],
    read({ pairs, view }) {
      const { from, to } = view;
      pairs.want(from, to);
      return { circles: circles(pairs.rows(from, to)), cut: to - from >= MOST, recorded: pairs.recorded(from, to) };
    },
    empty: (data) => data.circles.length === 0,
    nothing: ({ recorded }) => nothing(recorded),
    sentence(data) {
      const which = data.cut ? `, of the newest ${MOST} steps in view` : "";
      const found = [`Each circle: trajectories of the last pass with that clip fraction and p${which}.`];
      if (expected) found.push(` Line: ${formula}, what small ratios give. Far from the line: a few tokens with extreme ratios.`);
      return found;
    },
    legend: () => [...SIGNS.map(({ label, color }) => ({ mark: `c${color} ball`, label })), { label: "area: how many" }],
    height: () => 318,
    option(data) {
      const colours = palette();
      const most = Math.min(1, Math.max(0.1, ...data.circles.map((circle) => circle.clip_fraction)) * 1.08);
      const lowest = Math.min(0.9, ...data.circles.map((circle) => circle.p));
      const largest = Math.max(...data.circles.map((circle) => circle.trajectories));
      const size = (circle) => Math.max(6, LARGEST * Math.sqrt(circle.trajectories / largest));
      const untouched = data.circles.filter((circle) => circle.p === 1 && circle.clip_fraction === 0);
      const count = untouched.reduce((sum, circle) => sum + circle.trajectories, 0);
      const widest = Math.max(0, ...untouched.map(size)) / 2;
      const scatter = SIGNS.map(({ sign, label, color }) => ({
        type: "scatter", id: label, color: colours.series[color - 1], z: 3,
        data: data.circles
          .filter((circle) => Math.sign(circle.advantage) === sign)
          .sort((a, b) => b.trajectories - a.trajectories)
          .map((circle) => ({ value: [circle.clip_fraction, circle.p], symbolSize: size(circle), circle })),
        itemStyle: { opacity: 0.65 }, emphasis: { disabled: true }, clip: false,
      }));
      const curve = {
        type: "line", id: "expected", data: expected ? line(expected, most) : [], showSymbol: false, silent: true, z: 2,
        color: colours.strong, lineStyle: { width: 1.2, type: [4, 3] }, tooltip: { show: false },
      };
      const label = {
        type: "scatter", id: "untouched", data: count ? [[0, 1]] : [], symbolSize: 0.1, silent: true, tooltip: { show: false }, z: 4,
        label: {
          show: true, position: "right", distance: widest + 6, color: colours.text, fontSize: SMALL,
          backgroundColor: colours.raised, padding: [0, 3], formatter: `${number(count)} at p = 1: nothing clipped`,
        },
      };
      return {
        ...plotFrame(),
        grid: { left: 46 + widest, right: 22, top: 22, bottom: 42, outerBoundsMode: "none" },
        xAxis: {
          ...valueAxis(colours, {}, "clip fraction f", { nameRotate: 0, nameGap: 25, min: 0, scale: false, max: most < 1 ? null : 1, splitNumber: 5 }),
          axisLabel: { color: colours.text, fontSize: SMALL, formatter: percentTick, hideOverlap: true },
          axisLine: { show: true, onZero: false, lineStyle: { color: colours.strong } },
        },
        yAxis: valueAxis(colours, {}, "p", { nameGap: 34, nameMoveOverlap: false, offset: widest, ...exponentScale(lowest), axisLine: { show: false }, axisTick: { show: false } }),
        tooltip: { ...tooltipStyle(colours, ({ data: item }) => told(item.circle)), trigger: "item" },
        series: [curve, ...scatter, label],
      };
    },
    table(data) {
      const rows = new Map();
      const ordered = [...data.circles].sort((a, b) => a.clip_fraction - b.clip_fraction || b.p - a.p);
      for (const circle of ordered) {
        const key = `${percentTick(+circle.clip_fraction.toFixed(4))}|${circle.p}|${circle.advantage}`;
        rows.set(key, [percentTick(+circle.clip_fraction.toFixed(4)), number(circle.p), circle.advantage < 0 ? "< 0" : "> 0", number(circle.trajectories), stepsOf(circle)]);
      }
      return { first: null, head: ["Clip fraction", "p", "Advantage", "Trajectories", "Steps"], rows };
    },
  };
}

function stepsOf(circle) {
  const steps = [...circle.steps].sort((a, b) => a - b);
  return steps.length > 6 ? `${steps.slice(0, 5).join(", ")} and ${steps.length - 5} more` : steps.join(", ");
}

function told(circle) {
  return tip(`${number(circle.trajectories)} ${circle.trajectories === 1 ? "trajectory" : "trajectories"}`, [
    { label: "clip fraction", values: [`${number(100 * circle.clip_fraction)} %`] },
    { label: "p", values: [number(circle.p)] },
    { label: circle.steps.size === 1 ? "step" : "steps", values: [stepsOf(circle)] },
  ]);
}
