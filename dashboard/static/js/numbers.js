// The job's series: fetched when a chart first wants them, then kept up to date by the stream's events.
import { root } from "./root.js";
import { inView } from "./steps.js";
import { SeriesStore } from "./store.js";

const COLUMNS = 400; // as many steps, or buckets of merged steps, as a plot can tell apart
const MOST = 10_000; // points of a series, as the server allows

export class Numbers {
  store = new SeriesStore();
  seq = null; // of the first history: the stream goes on from there
  first = 0; // steps of the whole run
  last = 1;
  #loaded = new Set();
  #wanted = new Set();
  #missed = null; // events received while a history was loading
  #zoom = null; // the steps that are shown; null: all
  #long = false; // the whole run has too many steps to get each, so that a part is fetched by itself
  #range = null; // that part
  #job;
  #changed;

  // changed(): called when series have come.
  constructor(job, changed) {
    this.#job = job;
    this.#changed = changed;
  }

  loaded(names) {
    return names.every((name) => this.#loaded.has(name));
  }

  // Whether all of these series are here. If not they are fetched, together with what else is wanted meanwhile.
  want(names) {
    const missing = names.filter((name) => !this.#loaded.has(name));
    for (const name of missing) this.#wanted.add(name);
    if (missing.length && this.seq !== null) setTimeout(() => this.#loadWanted(), 0);
    return missing.length === 0;
  }

  // The first history, which the page waits for.
  async start() {
    await this.#load([...this.#wanted]);
  }

  zoom(zoom) {
    this.#zoom = zoom;
    this.#fit();
  }

  #fit() {
    const range = this.#long ? this.#zoom : null;
    if (range === this.#range) return;
    this.#range = range;
    this.#reload();
  }

  // Events that the histories under way may lack are applied again when they have come: that changes nothing else.
  take({ kind, data, seq }) {
    this.#missed?.push({ kind, data, seq });
    this.#apply(kind, data);
    if (this.#outgrown(kind)) this.#reload();
  }

  #apply(kind, data) {
    if (kind === "metrics") {
      this.last = Math.max(this.last, ...data.rows.map((row) => row.step));
      this.store.addRows(inView(data.rows, this.#range).filter((row) => this.#loaded.has(row.name)));
    }
    if (kind === "rewind") {
      this.last = Math.max(1, data.from_step - 1);
      this.store.rewind(data.from_step);
    }
  }

  // Merged points may span a rewind, and a page left open for days collects more points than can be drawn.
  #outgrown(kind) {
    return (kind === "rewind" && this.store.thinned) || this.store.longest() > 4 * this.#points();
  }

  #points() {
    return Math.min(MOST, Math.max(1000, COLUMNS * this.#job.updates));
  }

  // What is here stays until the new history has come.
  #reload() {
    for (const name of this.#loaded) this.#wanted.add(name);
    this.#loaded.clear();
    this.#loadWanted();
  }

  #loadWanted() {
    const names = [...this.#wanted];
    if (!this.#missed && names.length) this.#load(names).catch((error) => console.warn(error));
  }

  async #load(names) {
    const range = this.#range;
    this.#missed = [];
    try {
      const history = await this.#fetch(names, range);
      for (const name of names) this.#wanted.delete(name);
      if (range === this.#range) this.#add(history, names);
      else for (const name of names) this.#wanted.add(name);
    } finally {
      this.#missed = null;
    }
    this.#changed();
    this.#fit();
    this.#loadWanted();
  }

  #add(history, names) {
    this.seq ??= history.seq;
    for (const name of names) this.#loaded.add(name);
    this.store.addHistory(history);
    if (!this.#range) {
      this.#long ||= this.store.thinned;
      this.first = this.store.firstStep();
      this.last = Math.max(this.last, this.store.lastStep());
    }
    for (const { kind, data, seq } of this.#missed) if (seq > history.seq) this.#apply(kind, data);
  }

  async #fetch(names, range) {
    const query = new URLSearchParams([...names.map((name) => ["name", name]), ["max_points", String(this.#points())]]);
    if (range) query.set("from_step", String(range.from));
    if (range?.to != null) query.set("to_step", String(range.to));
    const answer = await fetch(`${root}v1/jobs/${encodeURIComponent(this.#job.id)}/metrics?${query}`);
    if (!answer.ok) throw new Error(`history: ${answer.status}`);
    return answer.json();
  }
}
