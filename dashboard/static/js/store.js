// The series of one job, for charts and tables. No DOM, no network.
export const WHOLE_STEP = -1;

const ORDER = 2 ** 20; // above any update number, as on the server

function rank(point) {
  return point.step * ORDER + point.update + 1;
}

export class SeriesStore {
  constructor() {
    this.series = new Map(); // name -> points, ordered by (step, update), each key once
    this.thinned = false; // some points are merged from several
  }

  points(name) {
    return this.series.get(name) ?? [];
  }

  longest() {
    return Math.max(0, ...[...this.series.values()].map((points) => points.length));
  }

  lastStep() {
    return Math.max(0, ...[...this.series.values()].map((points) => points.at(-1)?.step ?? 0));
  }

  firstStep() {
    const starts = [...this.series.values()].filter((points) => points.length).map((points) => points[0].step);
    return starts.length ? Math.min(...starts) : 0;
  }

  // The history's series replace those of the same names.
  addHistory(history) {
    for (const series of history.series) this.series.set(series.name, [...series.points]);
    this.thinned = [...this.series.values()].some((points) => points.some((point) => point.low != null));
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
