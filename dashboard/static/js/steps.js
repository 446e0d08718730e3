// From updates to steps: which value stands for a step, where it lies on the step axis, and which steps are in view.
// Pure functions. A job's facts are { updates, minibatches }: updates of a step, and how many of them make one pass.
import { WHOLE_STEP } from "./store.js";

const COLUMN = 0.8; // the part of a step's column over which its updates are spread

const POOLS = {
  mean: (values) => values.reduce((sum, value) => sum + value, 0) / values.length,
  min: (values) => Math.min(...values),
  max: (values) => Math.max(...values),
};

// A step's own number lies at the step; its updates are spread around it, in order.
export function place(point, updates) {
  if (point.update === WHOLE_STEP) return point.step;
  return point.step + ((point.update + 0.5) / updates - 0.5) * COLUMN;
}

export function inView(points, zoom) {
  if (!zoom) return points;
  return points.filter((point) => point.step >= zoom.from && point.step <= (zoom.to ?? Infinity));
}

// One point a step: the step's own, or the updates of its last pass in one (their mean, largest or smallest).
// Earlier updates see ratios near 1, so averaging them in would say more about the number of updates than about p.
export function lastPass(points, job, pool = "mean") {
  const first = job.updates - job.minibatches;
  const found = [];
  for (let at = 0; at < points.length; ) {
    const { step } = points[at];
    const pass = [];
    for (; at < points.length && points[at].step === step; at += 1) {
      if (points[at].update === WHOLE_STEP || points[at].update >= first) pass.push(points[at]);
    }
    if (pass.length) found.push(pooled(pass, pool));
  }
  return found;
}

function pooled(pass, pool) {
  const { step } = pass[0];
  const values = pass.map((point) => point.value).filter((value) => value !== null);
  const point = { step, update: WHOLE_STEP, value: values.length ? POOLS[pool](values) : null };
  const merged = pass.filter((each) => each.low != null);
  if (merged.length) {
    point.low = POOLS.min(merged.map((each) => each.low));
    point.high = POOLS.max(merged.map((each) => each.high));
  }
  return point;
}

// Exponential moving average without initial bias; gaps stay gaps.
export function smooth(values, weight) {
  let mean = 0;
  let mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

// The typed or dragged range as whole steps, both included; an open end (null) follows the run. Null: everything.
export function range(from, to) {
  if (from === null && to === null) return null;
  const first = Math.max(0, Math.round(from ?? 0));
  if (to === null) return first > 0 ? { from: first, to: null } : null;
  const last = Math.round(to);
  return last < first ? { from: Math.max(0, last), to: first } : { from: first, to: last };
}
