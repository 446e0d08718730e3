// Counts of what went wrong, always a table: what the last step had, and the worst step.
import { number } from "./format.js";
import { inView } from "./steps.js";

// By step; what is counted by update is summed.
export function stepCounts(points) {
  const found = new Map();
  for (const { step, value, high } of points) {
    const count = found.get(step) ?? { step, value: 0, high: 0 };
    count.value += value ?? 0;
    count.high = Math.max(count.high + (value ?? 0), high ?? 0);
    found.set(step, count);
  }
  return [...found.values()];
}

export function counterFigure(chart) {
  return {
    ...chart,
    names: () => chart.series.map((series) => series.name),
    read: ({ store, view }) => chart.series.map((series) => ({ series, counts: stepCounts(inView(store.points(series.name), view.zoom)) })),
    empty: () => false,
    sentence: () => [],
    legend: () => [],
    option: null,
    table(data) {
      const rows = new Map();
      for (const { series, counts } of data) {
        const last = counts.at(-1);
        const worst = counts.reduce((most, count) => (count.high > (most?.high ?? -1) ? count : most), null);
        const happened = (worst?.high ?? 0) > 0;
        const highest = worst ? `${number(worst.high)}${happened ? ` in step ${worst.step}` : ""}` : "–";
        rows.set(series.label, [number(last?.value), last ? `${last.step}` : "–", highest]);
      }
      return { first: "Counter", head: ["Newest", "Step", "Highest"], rows, warned: (cells) => /[1-9]/.test(cells[2].split(" in ")[0]) };
    },
  };
}
