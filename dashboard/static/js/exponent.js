// Exponent p over the run, in numbers: one entry a step, the summary's sentence, columns and classes. Pure functions.
import { number, percent } from "./format.js";
import { inView, lastPass } from "./steps.js";

const POOLED = "p/last_pass/";
export const POOLED_NAMES = ["mean", "q10", "min", "defined", "below_1", "undefined"].map((name) => POOLED + name);
// Jobs from before these were recorded have p by update only.
const BY_UPDATE = ["p/q10", "p/share_below_1", "p/undefined"];

// How the objective comes to p: "chosen" for each trajectory, "fixed", "scheduled" (one for a whole step), or "none".
const RULES = {
  pmpo: { kind: "chosen" },
  grpo: { kind: "fixed", p: 1 },
  dr_grpo: { kind: "fixed", p: 1 },
  dapo: { kind: "fixed", p: 1 },
  gmpo: { kind: "fixed", p: 0 },
  gspo: { kind: "fixed", p: 0 },
  holder: { kind: "scheduled", how: "moves in a straight line over training" },
  apmpo: { kind: "scheduled", how: "follows the batch's mean reward" },
  cispo: { kind: "none" },
};

export function exponentRule(algorithm) {
  if (algorithm.name === "power_mean") return { kind: "fixed", p: algorithm.p };
  return RULES[algorithm.name] ?? { kind: "none" };
}

// Of p itself by trajectory, what small ratios give for a clip fraction f; null if the spec's rule is another.
export function expectedExponent(algorithm) {
  if (algorithm.ess_target === "absolute") return null;
  return (f) => Math.sqrt(1 - Math.min(1, f / algorithm.clip_fraction_full));
}

export function namesOf(store) {
  const old = store.points(`${POOLED}defined`).length === 0 && store.points("p/mean").length > 0;
  return ["p/mean", ...POOLED_NAMES, ...(old ? BY_UPDATE : [])];
}

// [{ step, mean, q10, min, defined, below, none }] in order, of the last pass over the step's batch. `min` is null
// where only numbers by update are known.
export function exponentSteps(store, job) {
  const steps = new Map();
  const entry = (step) => {
    if (!steps.has(step)) steps.set(step, { step, mean: null, q10: null, min: null, defined: 0, below: 0, none: 0 });
    return steps.get(step);
  };
  if (store.points(`${POOLED}defined`).length === 0) fromUpdates(store, job, entry);
  for (const [name, field] of [["mean", "mean"], ["q10", "q10"], ["min", "min"], ["defined", "defined"], ["below_1", "below"], ["undefined", "none"]]) {
    for (const point of store.points(POOLED + name)) {
      entry(point.step)[field] = name === "min" ? point.low ?? point.value : point.value;
      if (name === "defined" && point.low != null) entry(point.step).merged = true;
    }
  }
  return [...steps.values()].sort((a, b) => a.step - b.step);
}

function fromUpdates(store, job, entry) {
  const each = job.trajectories / job.minibatches; // trajectories of an update
  const first = job.updates - job.minibatches;
  const valueAt = (name) => new Map(store.points(name).map((point) => [`${point.step} ${point.update}`, point.value]));
  const [q10, share] = [valueAt("p/q10"), valueAt("p/share_below_1")];
  const means = valueAt("p/mean");
  for (const point of store.points("p/undefined").filter((candidate) => candidate.update >= first)) {
    const key = `${point.step} ${point.update}`;
    const defined = Math.max(0, each - point.value);
    if (!defined || means.get(key) == null) continue;
    const step = entry(point.step);
    step.mean = ((step.mean ?? 0) * step.defined + means.get(key) * defined) / (step.defined + defined);
    step.q10 = Math.min(step.q10 ?? Infinity, q10.get(key) ?? Infinity);
    step.defined += defined;
    step.below += Math.round((share.get(key) ?? 0) * defined);
  }
  for (const point of lastPass(store.points("p/mean"), job)) {
    const step = entry(point.step);
    step.none = job.trajectories - step.defined; // updates that were skipped have no rows
  }
}

// An entry that the server merged, in a long run, stands for all steps since the one before it.
function* weighed(steps, zoom) {
  let before = 0;
  for (const step of steps) {
    const covered = step.merged ? Math.max(1, step.step - before) : 1;
    before = step.step;
    if (inView([step], zoom).length) yield { ...step, covered };
  }
}

// Totals over the steps in view: { trajectories, defined, below, meanBelow, lowest: {p, step} }; null without any.
export function summarise(steps, zoom) {
  const counted = steps.filter((step) => step.defined + step.none > 0);
  const total = { trajectories: 0, defined: 0, below: 0, missing: 0, lowest: null };
  for (const step of weighed(counted, zoom)) {
    total.trajectories += (step.defined + step.none) * step.covered;
    total.defined += step.defined * step.covered;
    total.below += step.below * step.covered;
    total.missing += step.mean === null ? 0 : step.defined * step.covered * (1 - step.mean);
    if (step.min !== null && !(total.lowest?.p <= step.min)) total.lowest = { p: step.min, step: step.step };
  }
  if (!total.trajectories) return null;
  const { missing, ...rest } = total;
  return { ...rest, meanBelow: total.below ? 1 - missing / total.below : null };
}

// Three digits are enough in a sentence.
function short(p) {
  return `${+p.toPrecision(3)}`;
}

// What the chart says in words, as text and { strong } parts. It is also its accessible name.
export function sentence(rule, job, steps, zoom) {
  const name = job.algorithm.name;
  if (rule.kind === "none") return [`${name} takes no power mean, so there is no exponent p.`];
  if (rule.kind === "fixed") return [{ strong: `p = ${short(rule.p)}` }, ` for every trajectory: ${name} fixes it.`];
  if (rule.kind === "scheduled") {
    const newest = inView(steps, zoom).filter((step) => step.mean !== null).at(-1);
    const now = newest ? [": ", { strong: short(newest.mean) }, ` in step ${newest.step}`] : [];
    return [`One p for all trajectories of a step; it ${rule.how}`, ...now, "."];
  }
  if (job.onPolicy) return ["With one update a step, on fresh data, all ratios are 1: no p can differ from 1, and PMPO is GRPO."];
  const total = summarise(steps, zoom);
  if (!total) return [];
  const count = (value) => number(Math.round(value));
  const without = total.trajectories - total.defined;
  const unlearnt = without
    ? ` ${percent(without / total.trajectories)} of all had no p: no reward spread in their group.`
    : "";
  if (!total.defined) return ["No trajectory had a p: no reward spread in any group."];
  const found = [
    "In the last pass over each batch p was below 1 for ",
    { strong: `${count(total.below)} of ${count(total.defined)}` },
    " trajectories that could be learnt from (",
    { strong: percent(total.below / total.defined) },
    ")",
  ];
  if (total.below) {
    found.push(": ", { strong: short(total.meanBelow) }, " on average there");
    if (total.lowest) found.push(", lowest ", { strong: short(total.lowest.p) }, ` in step ${total.lowest.step}`);
  }
  return [...found, ".", unlearnt];
}

// Five classes with fixed edges, so that two jobs compare by eye. 0 is p = 1 (GRPO); above 1 counts as 1.
const EDGES = [1 - 1e-9, 0.95, 0.9, 0.8];
export const CLASS_LABELS = ["1 (GRPO)", "0.95 – 1", "0.9 – 0.95", "0.8 – 0.9", "< 0.8"];

export function classOf(p) {
  const at = EDGES.findIndex((edge) => p >= edge);
  return at < 0 ? EDGES.length : at;
}

// What fits in a cell: two decimals, and 1 only for 1.
export function cellText(p) {
  if (classOf(p) === 0) return "1";
  const short = Math.min(p, 0.99).toFixed(2);
  return short.replace(/^(-?)0\./, "$1.");
}

// How many steps share a column, so that no column is thinner than `least` pixels. Columns start at multiples of it:
// a new step changes the last one only.
export function columnSize(steps, width, least = 3) {
  return Math.max(1, Math.ceil((steps * least) / Math.max(width, 1)));
}

// Steps that one point of each update stands for, where the server merged a long run's.
export function mergedWidth(points, updates) {
  if (!points.some((point) => point.low != null)) return 1;
  return Math.ceil(((points.at(-1).step - points[0].step + 1) * updates) / points.length);
}

// Cells of the strip, [{ from, to, update, value }]: the mean p of an update over a column's steps, where it has one.
export function strip(points, size) {
  const cells = new Map();
  for (const { step, update, value } of points) {
    if (value === null) continue;
    const column = Math.floor((step - 1) / size);
    const key = `${column} ${update}`;
    const cell = cells.get(key) ?? { from: column * size + 1, to: (column + 1) * size, update, sum: 0, count: 0 };
    cell.sum += value;
    cell.count += 1;
    cells.set(key, cell);
  }
  return [...cells.values()].map(({ sum, count, ...cell }) => ({ ...cell, value: sum / count }));
}

// The same columns of the steps' own numbers: means weighed by how many trajectories have a p, counts by step.
export function columns(steps, size) {
  const found = new Map();
  for (const step of steps) {
    const column = Math.floor((step.step - 1) / size);
    if (!found.has(column)) found.set(column, []);
    found.get(column).push(step);
  }
  return [...found].map(([column, members]) => merged(members, column * size + 1, (column + 1) * size));
}

function merged(members, from, to) {
  const mean = (name) => members.reduce((sum, step) => sum + step[name], 0) / members.length;
  const withP = members.filter((step) => step.mean !== null);
  const weight = (step) => Math.max(step.defined, 1e-9);
  const mass = withP.reduce((sum, step) => sum + weight(step), 0);
  const average = (name) => (withP.length ? withP.reduce((sum, step) => sum + weight(step) * step[name], 0) / mass : null);
  const lows = withP.map((step) => step.min).filter((value) => value !== null);
  return {
    from, to, members: members.length, mean: average("mean"), q10: average("q10"),
    min: lows.length ? Math.min(...lows) : null,
    defined: mean("defined"), below: mean("below"), none: mean("none"),
  };
}
