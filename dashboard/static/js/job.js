// A job's page: history first, then the stream. Changes are drawn at most a few times a second.
import { readView, writeView } from "./address.js";
import { Card } from "./card.js";
import { figures } from "./charts.js";
import { trajectoriesBehind } from "./lines.js";
import { Numbers } from "./numbers.js";
import { paced } from "./pace.js";
import { Pairs } from "./pairs.js";
import { root } from "./root.js";
import { buildTools } from "./tools.js";
import { JobStream } from "./stream.js";

const DRAW_EVERY_MS = 250;
const SHORT = 200; // steps of a run whose series are fetched all at once, on screen or not
const TELL_EVERY_MS = { metrics: 2000, trajectories: 5000 };
const STATUS = { live: "Live", waiting: "Reconnecting…", paused: "Paused while hidden", ended: "Ended" };

const job = JSON.parse(document.getElementById("job-data").textContent);
const address = `${root}v1/jobs/${encodeURIComponent(job.id)}`;
const numbers = new Numbers(job, () => drawSoon());
const pairs = new Pairs(fetchPairs, () => drawSoon());
const view = { from: 0, to: 1, ...readView(location.search) };
const grid = document.getElementById("grid");
const cards = [];
const headings = new Map(); // heading -> its cards

async function loadEcharts() {
  const library = document.getElementById("job-script").dataset.echarts;
  if (!library) return null;
  try {
    return await import(library);
  } catch (error) {
    console.warn("The plotting library did not load; showing tables.", error);
    return null;
  }
}

async function fetchPairs(from, to) {
  const answer = await fetch(`${address}/exponents?from_step=${from}&to_step=${to}`);
  if (!answer.ok) throw new Error(`exponents: ${answer.status}`);
  return answer.json();
}

// An open end of the zoom follows the run.
function draw() {
  view.from = view.zoom?.from ?? Math.min(1, numbers.first);
  view.to = Math.max(view.zoom?.to ?? numbers.last, view.from);
  for (const card of cards) card.draw();
  for (const [heading, own] of headings) heading.hidden = own.every((card) => card.root.hidden);
  const some = cards.some((card) => !card.root.hidden);
  document.getElementById("no-numbers").hidden = some;
  document.getElementById("chart-tools").hidden = !some;
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
  if (status === "live") document.dispatchEvent(new CustomEvent("connection:back"));
  if (status === "waiting") document.dispatchEvent(new CustomEvent("connection:lost"));
}

function follow() {
  const stream = new JobStream(job.id, numbers.seq, {
    status: showStatus,
    event(kind, data, seq) {
      numbers.take({ kind, data, seq });
      if (kind === "rewind") pairs.rewind(data.from_step);
      drawSoon();
      tell(kind);
    },
  });
  stream.open();
}

function changeView(change) {
  Object.assign(view, change);
  history.replaceState(history.state, "", location.pathname + writeView(location.search, view) + location.hash);
  for (const tab of document.querySelectorAll("a[data-keeps-view]")) tab.search = writeView("", view);
  numbers.zoom(view.zoom);
  draw();
}

function buildCards(echarts, zoomTo) {
  const stepAddress = (step) => `${root}jobs/${encodeURIComponent(job.id)}/steps/${step}`;
  const page = {
    store: numbers.store, pairs, metrics: job.metrics, job, view, echarts, zoomTo, stepAddress,
    loaded: (names) => numbers.loaded(names),
    want: (names) => numbers.want(names),
    behind: (step) => trajectoriesBehind(numbers.store, step),
  };
  const seen = new IntersectionObserver(
    (entries) => { for (const entry of entries) cards.find((card) => card.root === entry.target).see(entry.isIntersecting); },
    { rootMargin: "200px" },
  );
  let heading = null;
  for (const figure of figures(job, grid.dataset.tab)) {
    if (figure.group) {
      heading = document.createElement("h3");
      heading.textContent = figure.group;
      headings.set(heading, []);
      grid.append(heading);
      continue;
    }
    const card = new Card(figure, page);
    cards.push(card);
    headings.get(heading)?.push(card);
    grid.append(card.root);
    seen.observe(card.root);
  }
  new ResizeObserver(() => { for (const card of cards) card.resize(); }).observe(grid);
  document.addEventListener("themechange", draw);
}

async function start() {
  const echarts = await loadEcharts();
  const tools = buildTools(view, Boolean(echarts), changeView, (tabular) => {
    for (const card of cards) card.showTable(tabular);
  });
  buildCards(echarts, tools.zoomTo);
  numbers.zoom(view.zoom);
  numbers.want(["reward"]); // where the run is, whatever is on screen
  if (job.step < SHORT) for (const card of cards) numbers.want(card.figure.names(numbers.store));
  await new Promise((done) => setTimeout(done, 0)); // the cards on screen add what they want
  await numbers.start();
  draw();
  grid.dataset.ready = "true";
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
