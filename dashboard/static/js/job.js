// A job's page: history first, then the stream. Changes are drawn at most a few times a second.
import { Card } from "./card.js";
import { CHARTS, metricNames } from "./charts.js";
import { paced } from "./pace.js";
import { root } from "./root.js";
import { SeriesStore } from "./store.js";
import { JobStream } from "./stream.js";

const MAX_POINTS = 1500;
const DRAW_EVERY_MS = 250;
const TELL_EVERY_MS = { metrics: 2000, trajectories: 5000 };
const STATUS = { live: "Live", waiting: "Reconnecting…", paused: "Paused while hidden", ended: "Ended" };

const job = JSON.parse(document.getElementById("job-data").textContent);
const store = new SeriesStore();
const view = { from: 0, to: 1, zoom: null, smoothed: false, updatesPerStep: job.updatesPerStep };
const cards = [];

async function loadEcharts() {
  const address = document.getElementById("job-script").dataset.echarts;
  if (!address) return null;
  try {
    return await import(address);
  } catch (error) {
    console.warn("The plotting library did not load; showing tables.", error);
    return null;
  }
}

let missed = null; // events received while a history was loading

// Reload the history and apply what the stream sent meanwhile.
async function loadHistory() {
  missed = [];
  try {
    store.setHistory(await fetchHistory());
    for (const { kind, data, seq } of missed) {
      if (seq > store.seq) apply(kind, data);
    }
  } finally {
    missed = null;
  }
}

function apply(kind, data) {
  if (kind === "metrics") store.addRows(data.rows);
  if (kind === "rewind") store.rewind(data.from_step);
}

async function fetchHistory() {
  const query = new URLSearchParams([...metricNames().map((name) => ["name", name]), ["max_points", String(MAX_POINTS)]]);
  const answer = await fetch(`${root}v1/jobs/${encodeURIComponent(job.id)}/metrics?${query}`);
  if (!answer.ok) throw new Error(`history: ${answer.status}`);
  return answer.json();
}

function lastStep() {
  let last = 0;
  for (const points of store.series.values()) {
    if (points.length) last = Math.max(last, points[points.length - 1].step);
  }
  return last;
}

function draw() {
  const end = lastStep() + 1;
  view.from = view.zoom ? view.zoom[0] : 0;
  view.to = view.zoom && Number.isFinite(view.zoom[1]) ? view.zoom[1] : Math.max(end, view.from + 1);
  for (const card of cards) card.draw();
}

let drawing = null;
function drawSoon() {
  drawing ??= setTimeout(() => {
    drawing = null;
    requestAnimationFrame(draw);
  }, DRAW_EVERY_MS);
}

// Server-rendered parts of the page listen for these events (hx-trigger).
const tell = paced(
  (name) => document.body.dispatchEvent(new CustomEvent(`job:${name}`)),
  (name) => TELL_EVERY_MS[name] ?? 500,
);

function showStatus(status) {
  const element = document.getElementById("stream");
  element.hidden = false;
  element.textContent = STATUS[status];
  element.className = `stream ${status}`;
}

// Merged points may span a rewind, and a page left open for days collects more points than can be drawn.
function outgrown(kind) {
  return (kind === "rewind" && store.thinned) || store.longest() > 4 * MAX_POINTS;
}

function follow() {
  const stream = new JobStream(job.id, store.seq, {
    status: showStatus,
    event(kind, data, seq) {
      missed?.push({ kind, data, seq });
      apply(kind, data);
      drawSoon();
      if (missed === null && outgrown(kind)) loadHistory().catch((error) => console.warn(error)).then(drawSoon);
      tell(kind);
    },
  });
  stream.open();
}

function button(text, pressed, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
  made.addEventListener("click", () => onClick(made));
  return made;
}

function stepInput(name, text) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "number", min: "0", step: "any", name, autocomplete: "off" });
  label.append(text, input);
  return [label, input];
}

function buildTools(zoomable) {
  const tools = document.getElementById("chart-tools");
  const [fromLabel, from] = stepInput("from", "Steps");
  const [toLabel, to] = stepInput("to", "to");
  const reset = button("Whole run", null, () => zoomTo(null));
  const apply = (range) => {
    view.zoom = range && range[1] > range[0] ? [Math.max(0, range[0]), range[1]] : null;
    reset.disabled = !view.zoom;
    draw();
  };
  const zoomTo = (range) => {
    apply(range);
    from.value = view.zoom ? +view.zoom[0].toFixed(2) : "";
    to.value = view.zoom ? +view.zoom[1].toFixed(2) : "";
  };
  // An open end follows the run.
  const typed = () => {
    if (from.value === "" && to.value === "") return apply(null);
    return apply([Number(from.value || 0), to.value === "" ? Infinity : Number(to.value)]);
  };
  for (const input of [from, to]) input.addEventListener("change", typed);
  reset.disabled = true;
  tools.append(fromLabel, toLabel, reset);
  if (zoomable) {
    const toggle = (made, value) => made.setAttribute("aria-pressed", String(value));
    tools.append(
      button("Smooth", false, (made) => { view.smoothed = !view.smoothed; toggle(made, view.smoothed); draw(); }),
      button("Tables", false, (made) => {
        const tabular = made.getAttribute("aria-pressed") !== "true";
        toggle(made, tabular);
        for (const card of cards) card.showTable(tabular);
      }),
    );
  }
  tools.hidden = false;
  return zoomTo;
}

function buildCards(echarts, zoomTo) {
  const grid = document.getElementById("grid");
  const stepAddress = (step) => `${root}jobs/${encodeURIComponent(job.id)}/steps/${step}`;
  const page = { store, view, echarts, zoomTo, stepAddress, final: job.final, metrics: job.metrics };
  for (const chart of CHARTS) {
    if (chart.group) {
      const heading = document.createElement("h3");
      heading.textContent = chart.group;
      grid.append(heading);
      continue;
    }
    const card = new Card(chart, page);
    cards.push(card);
    grid.append(card.root);
  }
  new ResizeObserver(() => { for (const card of cards) card.resize(); }).observe(grid);
  document.addEventListener("themechange", draw);
}

async function start() {
  const [echarts] = await Promise.all([loadEcharts(), loadHistory()]);
  buildCards(echarts, buildTools(Boolean(echarts)));
  draw();
  document.getElementById("grid").dataset.ready = "true";
  if (job.final) showStatus("ended");
  else follow();
}

start().catch((error) => {
  console.warn(error);
  const element = document.getElementById("stream");
  element.hidden = false;
  element.className = "stream waiting";
  element.textContent = "The numbers did not load. Reload the page to try again.";
});
