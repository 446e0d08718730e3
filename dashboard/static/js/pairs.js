// Trajectories of the steps in view by p and clip fraction, fetched when they are wanted and kept by step.
export const MOST = 50; // steps of one answer, as on the server

export class Pairs {
  #steps = new Map(); // step -> [{ step, p, clip_fraction, advantage, trajectories }]
  #recorded = new Set(); // steps that have trajectories, with a p or without
  #answered = false;
  #loading = null; // { cut }: the fetch under way, and the step from which on it no longer counts
  #fetch;
  #changed;

  // fetch(from, to): the answer for these steps. changed(): called when there are new rows.
  constructor(fetch, changed) {
    this.#fetch = fetch;
    this.#changed = changed;
  }

  // Of a longer range the newest steps are wanted.
  want(from, to) {
    if (this.#loading) return;
    const missing = steps(from, to).filter((step) => !this.#steps.has(step));
    if (missing.length) this.#load(missing[0], missing.at(-1));
  }

  async #load(from, to) {
    const loading = (this.#loading = { cut: Infinity });
    try {
      const answer = await this.#fetch(from, to);
      const newest = Math.max(-1, ...answer.steps);
      const kept = steps(from, to).filter((step) => step <= newest && step < loading.cut);
      for (const step of kept) this.#steps.set(step, []); // a step without rows is known, too
      for (const step of answer.steps) if (step < loading.cut) this.#recorded.add(step);
      const first = !this.#answered;
      this.#answered = true;
      for (const row of answer.rows) if (row.step < loading.cut) this.#steps.get(row.step)?.push(row);
      if (kept.length || first) this.#changed();
    } catch (error) {
      console.warn(error);
    } finally {
      this.#loading = null;
    }
  }

  rewind(step) {
    for (const known of [...this.#steps.keys()]) if (known >= step) this.#steps.delete(known);
    for (const known of [...this.#recorded]) if (known >= step) this.#recorded.delete(known);
    if (this.#loading) this.#loading.cut = Math.min(step, this.#loading.cut);
  }

  // How many steps of the range have trajectories; null until the first answer.
  recorded(from, to) {
    return this.#answered ? steps(from, to).filter((step) => this.#recorded.has(step)).length : null;
  }

  rows(from, to) {
    return steps(from, to).flatMap((step) => this.#steps.get(step) ?? []);
  }
}

function steps(from, to) {
  const first = Math.max(from, to - MOST + 1);
  return Array.from({ length: Math.max(0, to - first + 1) }, (_, i) => first + i);
}

// Rows with the same key become one, with all their trajectories and steps.
export function grouped(rows, key) {
  const found = new Map();
  for (const row of rows) {
    const known = found.get(key(row));
    if (!known) found.set(key(row), { ...row, steps: new Set([row.step]) });
    else {
      known.trajectories += row.trajectories;
      known.steps.add(row.step);
    }
  }
  return [...found.values()];
}
