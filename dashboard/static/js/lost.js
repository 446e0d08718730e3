// Weight lost to few tokens: 1 - N in percent, of GRPO's weights and of those trained with, a step's last pass.
import { number, percent } from "./format.js";
import { GRID, palette, plotFrame, stepAxis, tip, tooltipStyle, valueAxis } from "./plot.js";
import { inView, lastPass } from "./steps.js";

const FEW = 60; // with more steps, lines instead of circles
const EQUAL = 1e-4; // share of N(1)'s loss by which the target may miss N(p)

// [{ step, grpo: 1 - N(1), trained: 1 - N(p), target: 1 - N* or null while it equals N(p) }]
export function lostSteps(store, job, zoom) {
  const of = (name) => new Map(lastPass(inView(store.points(name), zoom), job).map((point) => [point.step, point.value]));
  const [trained, grpo, target] = [of("ess/mean"), of("ess/at_1"), of("ess/target")];
  const found = [];
  for (const [step, value] of trained) {
    if (value === null) continue;
    const at = grpo.get(step) ?? null;
    const goal = target.get(step) ?? null;
    const same = goal === null || Math.abs(goal - value) <= Math.max(1e-6, EQUAL * (1 - (at ?? 1)));
    found.push({ step, trained: 1 - value, grpo: at === null ? null : 1 - at, target: same ? null : 1 - goal });
  }
  return found;
}

// The trained weights' loss as a share of what p = 1 would have lost; null where nothing was lost.
export function keptShare(steps) {
  const known = steps.filter((step) => step.grpo !== null);
  const lost = known.reduce((sum, step) => sum + step.grpo, 0);
  return lost > 0 ? known.reduce((sum, step) => sum + step.trained, 0) / lost : null;
}

function losses(step) {
  return [["GRPO's weights, 1 − N(1)", step.grpo], ["as trained, 1 − N(p)", step.trained], ["target, 1 − N*", step.target]];
}

export function lostFigure(chart, job) {
  return {
    ...chart,
    names: () => ["ess/mean", "ess/at_1", "ess/target"],
    read: ({ store, view }) => lostSteps(store, job, view.zoom),
    empty: (steps) => steps.length === 0,
    sentence(steps) {
      const kept = keptShare(steps);
      const meaning = "Share of the effective sample that uneven token weights cost, last pass.";
      if (kept === null || job.algorithm.name !== "pmpo") return [meaning];
      return [`${meaning} PMPO kept it at `, { strong: percent(kept) }, " of what GRPO's weights (p = 1) would have lost."];
    },
    legend(steps) {
      const last = steps.at(-1);
      const newest = (value) => (last && value !== null ? { step: last.step, value } : {});
      const marks = ["hollow", "c1 ball", "c3 dots"];
      return losses(last ?? {})
        .map(([label, value], i) => ({ mark: marks[i], label, newest: newest(value ?? null), share: true }))
        .filter((_, i) => i < 2 || steps.some((step) => step.target !== null));
    },
    option(steps, { view }) {
      const colours = palette();
      const few = steps.length <= FEW;
      const stem = {
        type: "custom", id: "saved", silent: true, z: 1,
        data: few ? steps.filter((step) => step.grpo !== null).map((step) => [step.step, step.trained, step.grpo]) : [],
        renderItem(_, api) {
          const [x, low] = api.coord([api.value(0), api.value(1)]);
          const [, high] = api.coord([api.value(0), api.value(2)]);
          return { type: "line", shape: { x1: x, x2: x, y1: low, y2: high }, style: { stroke: colours.series[0], opacity: 0.45, lineWidth: 2.5 } };
        },
      };
      const series = (id, name, color, itemStyle, z) => ({
        type: "line", id, color, z, data: steps.filter((step) => step[name] !== null).map((step) => [step.step, step[name]]),
        showSymbol: few, symbol: "circle", symbolSize: 8, itemStyle, lineStyle: { color, width: few ? 0 : 1.5 }, sampling: "minmax",
        emphasis: { disabled: true },
      });
      const grey = colours.series[6];
      return {
        ...plotFrame(),
        grid: GRID,
        xAxis: stepAxis(colours, view),
        yAxis: valueAxis(colours, { share: true }, "1 − N"),
        tooltip: {
          ...tooltipStyle(colours, (hovered) => tooltip(steps, hovered)),
          trigger: "axis",
          axisPointer: { lineStyle: { color: colours.strong, type: "solid" } },
        },
        series: [
          stem,
          series("ess/at_1", "grpo", grey, { color: colours.raised, borderColor: grey, borderWidth: 2 }, 2),
          series("ess/mean", "trained", colours.series[0], { color: colours.series[0] }, 3),
          series("ess/target", "target", colours.series[2], { color: "transparent", borderColor: colours.series[2], borderWidth: 1.5 }, 4),
        ],
      };
    },
    table(steps) {
      const rows = new Map(steps.map((step) => [step.step, losses(step).map(([, value]) => number(value))]));
      return { head: losses({}).map(([label]) => label), rows };
    },
  };
}

function tooltip(steps, hovered) {
  const at = Math.round(hovered.find((item) => item.value)?.value[0] ?? NaN);
  const step = steps.find((candidate) => candidate.step === at);
  if (!step) return "";
  const marks = ["c7", "c1", "c3"];
  const rows = losses(step).map(([label, value], i) => ({ mark: marks[i], label, values: [value === null ? "–" : `${number(100 * value)} %`], value }));
  return tip(`step ${at}: click for its trajectories`, rows.filter((row) => row.value !== null));
}
