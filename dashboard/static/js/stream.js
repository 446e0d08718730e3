// Follows a job's events with an EventSource; whatever interrupts it, it resumes after the last event seen.
import { onReturn } from "./returning.js";
import { root } from "./root.js";

const RETRY_MS = [500, 1000, 2000, 5000, 10000];
const KINDS = ["metrics", "state", "rewind", "trajectories", "checkpoint"];

export class JobStream {
  #source = null;
  #timer = null;
  #failures = 0;
  #stopped = false;

  // handlers: event(kind, data, seq), status("live" | "waiting" | "paused" | "ended")
  constructor(jobId, seq, handlers) {
    this.jobId = jobId;
    this.seq = seq;
    this.handlers = handlers;
    document.addEventListener("visibilitychange", () => this.#rest());
    onReturn(() => this.#look());
    addEventListener("pagehide", () => this.#close());
    addEventListener("pageshow", (event) => { if (event.persisted) this.open(); });
  }

  open() {
    if (this.#stopped || this.#source) return;
    clearTimeout(this.#timer);
    const source = new EventSource(`${root}v1/jobs/${encodeURIComponent(this.jobId)}/events?after=${this.seq}`);
    this.#source = source;
    source.onopen = () => {
      this.#failures = 0;
      this.handlers.status("live");
    };
    source.onerror = () => this.#lost(source);
    source.addEventListener("end", () => this.stop()); // the job has ended and everything was sent
    source.addEventListener("reconnect", () => this.#again(source)); // this server stops, another one goes on
    for (const kind of KINDS) source.addEventListener(kind, (message) => this.#take(kind, message));
  }

  stop() {
    this.#stopped = true;
    this.#close();
    this.handlers.status("ended");
  }

  #take(kind, message) {
    const seq = Number(message.lastEventId);
    if (!(seq > this.seq)) return; // already seen before the connection broke
    this.seq = seq;
    this.handlers.event(kind, JSON.parse(message.data), seq);
  }

  #again(source) {
    if (source !== this.#source) return;
    this.#close();
    this.open();
  }

  // The browser retries by itself after a lost connection but gives up on an error answer (a proxy's 502, say).
  // Reopening handles both cases; ?after carries the last event seen.
  #lost(source) {
    if (source !== this.#source) return;
    this.#close();
    this.handlers.status("waiting");
    const wait = RETRY_MS[Math.min(this.#failures, RETRY_MS.length - 1)];
    this.#failures += 1;
    this.#timer = setTimeout(() => this.open(), wait);
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  // Browsers allow few connections per host, so a hidden page closes its own.
  #rest() {
    if (this.#stopped || !document.hidden) return;
    this.#close();
    this.handlers.status("paused");
  }

  // At once, not when the next try is due: what failed meanwhile may work now.
  #look() {
    if (this.#stopped || this.#source?.readyState === EventSource.OPEN) return;
    this.#failures = 0;
    this.#close();
    this.open();
  }
}
