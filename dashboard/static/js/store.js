// The series of one job, for charts and tables. No DOM, no network.
export const WHOLE_STEP = -1;

// A point is placed at its step; the updates of a step are spread up to the next one.
export function position(point, updatesPerStep) {
  return point.update === WHOLE_STEP ? point.step : point.step + point.update / updatesPerStep;
}

const ORDER = 2 ** 20; // above any update number, as on the server

function rank(point) {
  return point.step * ORDER + point.update + 1;
}

export class SeriesStore {
  constructor() {
    this.series = new Map(); // name -> points, ordered by (step, update), each key once
    this.seq = 0; // everything up to this event is included
    this.thinned = false; // some points are merged from several
  }

  points(name) {
    return this.series.get(name) ?? [];
  }

  longest() {
    return Math.max(0, ...[...this.series.values()].map((points) => points.length));
  }

  setHistory(history) {
    this.series = new Map(history.series.map((series) => [series.name, [...series.points]]));
    this.thinned = history.series.some((series) => series.points.some((point) => point.low !== null && point.low !== undefined));
    this.seq = history.seq;
  }

  // Adding the same rows again has no effect; a newer value replaces the older one.
  addRows(rows) {
    for (const row of rows) this.#put(row.name, { step: row.step, update: row.update ?? WHOLE_STEP, value: row.value });
  }

  // A new attempt starts at `step`, so earlier records from there on no longer count.
  rewind(step) {
    for (const points of this.series.values()) {
      let end = points.length;
      while (end > 0 && points[end - 1].step >= step) end -= 1;
      points.length = end;
    }
  }

  #put(name, point) {
    let points = this.series.get(name);
    if (!points) this.series.set(name, (points = []));
    let at = points.length;
    while (at > 0 && rank(points[at - 1]) > rank(point)) at -= 1;
    if (at > 0 && rank(points[at - 1]) === rank(point)) points[at - 1] = point;
    else points.splice(at, 0, point);
  }
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
