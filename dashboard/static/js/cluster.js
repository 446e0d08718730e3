// The lanes of the cluster page: drawn with ECharts, asked for again every few seconds while somebody looks.
import { ACTIVITIES, barsOf, projectColours, rowsOf, stripsOf } from "./lanes.js";
import { hatch, make, palette, plotFrame, SMALL, tip, tooltipStyle } from "./plot.js";
import { onReturn } from "./returning.js";
import { root } from "./root.js";

const EVERY_MS = 10_000;
const ROW = 21; // pixels of a lane
const BAND = 13; // of its bar; the strip of what the job does is below
const STRIP = 5;
const TOP = 6;
const BOTTOM = 26;
const GAUGE = 78; // pixels at the right for utilisation and memory
const LETTER = 6.1; // pixels of a letter in a bar, on average

const told = JSON.parse(document.getElementById("lane-data").textContent);
const place = document.getElementById("lanes");
const legend = document.getElementById("lane-legend");

async function ask() {
  const since = told.window === "1h" ? "" : `?since=${new Date(Date.now() - 1000 * told.seconds).toISOString()}`;
  const answers = await Promise.all([fetch(`${root}v1/cluster/lanes${since}`), fetch(`${root}v1/nodes`)]);
  for (const answer of answers) if (!answer.ok) throw new Error(`${answer.url}: ${answer.status}`);
  const [lanes, nodes] = await Promise.all(answers.map((answer) => answer.json()));
  return { ...lanes, nodes: nodes.items };
}

function clock(ms) {
  return new Date(ms).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

function lasted(ms) {
  const minutes = Math.round(ms / 60_000);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// The part of a bar that is in the plot, at its lane.
function box(api, { from, to, row }, area) {
  const [left, y] = api.coord([from, row]);
  const [right] = api.coord([to, row]);
  const [x, end] = [Math.max(left, area.x), Math.min(right, area.x + area.width)];
  return { x, y: y - ROW / 2 + 1, width: Math.max(end - x, 1) };
}

// As much of the text as fits into these pixels; nothing if that says nothing.
function fitted(text, width) {
  const room = Math.floor(width / LETTER);
  if (text.length <= room) return text;
  return room >= 4 ? `${text.slice(0, room - 1)}…` : "";
}

// Where strips have the colours, bars have none; else a bar has its project's.
function barSeries(data, bars, colours, hatched, inks) {
  return {
    type: "custom",
    id: "bars",
    data: bars.map((bar) => [bar.from, bar.row, bar.to]),
    encode: { x: [0, 2], y: 1 },
    cursor: "pointer",
    renderItem(params, api) {
      const bar = bars[params.dataIndex];
      const at = box(api, bar, params.coordSys);
      const color = !bar.mine || data.phases ? colours.strong : inks.get(bar.mine.project);
      const shape = { ...at, height: BAND };
      const children = [
        { type: "rect", shape, style: bar.mine ? { fill: color, opacity: 0.24 } : { fill: hatched } },
        { type: "rect", shape: { ...shape, width: Math.min(3, at.width) }, style: { fill: color } },
      ];
      const text = bar.mine ? names(bar.mine, data.phases) : "another project";
      const shown = fitted(text, at.width - 9);
      if (shown) {
        const style = { text: shown, x: at.x + 6, y: at.y + BAND / 2, fill: bar.mine ? colours.ink : colours.text, fontSize: 10.5, verticalAlign: "middle" };
        children.push({ type: "text", style, silent: true });
      }
      return { type: "group", children };
    },
  };
}

function names({ name, project }, withProject) {
  return withProject ? `${name} · ${project}` : name;
}

function stripSeries(strips, colours) {
  const fills = new Map(ACTIVITIES.map(({ name, color }) => [name, colours.series[color - 1]]));
  return {
    type: "custom",
    id: "strips",
    silent: true,
    data: strips.map((strip) => [strip.from, strip.row, strip.to]),
    encode: { x: [0, 2], y: 1 },
    tooltip: { show: false },
    renderItem(params, api) {
      const strip = strips[params.dataIndex];
      const at = box(api, strip, params.coordSys);
      return { type: "rect", shape: { ...at, y: at.y + BAND, height: STRIP }, style: { fill: fills.get(strip.activity) } };
    },
  };
}

// What is said of a lane as a whole, and a line above the first one of each node.
function laneSeries(rows, data, colours) {
  return {
    type: "custom",
    id: "lanes",
    silent: true,
    clip: false,
    tooltip: { show: false },
    z: 1,
    data: rows.map((_, row) => [Date.parse(data.since), row]),
    encode: { x: 0, y: 1 },
    renderItem(params, api) {
      const row = rows[params.dataIndex];
      const area = params.coordSys;
      const [, y] = api.coord([api.value(0), params.dataIndex]);
      const line = { type: "rect", shape: { x: area.x, y: y - ROW / 2, width: area.width, height: 1 }, style: { fill: row.first ? colours.strong : colours.line } };
      const texts = [];
      const say = (text, x, align, fill) => texts.push({ type: "text", style: { text, x, y, align, fill, verticalAlign: "middle", fontSize: 10.5 } });
      const right = area.x + area.width;
      const [free] = api.coord([row.freeSince, 0]);
      if (row.note && !row.held) say(fitted(row.note, right - Math.max(free, area.x) - 14), right - 6, "right", colours.text);
      if (row.gauge) say(row.gauge, right + GAUGE - 2, "right", colours.text);
      return { type: "group", children: [line, ...texts] };
    },
  };
}

function tooltip(bars, data) {
  return ({ seriesId, dataIndex }) => {
    const bar = seriesId === "bars" ? bars[dataIndex] : null;
    if (!bar) return "";
    const rows = [
      { label: "from", values: [`${bar.from === Date.parse(data.since) ? "before " : ""}${clock(bar.from)}`] },
      { label: "to", values: [bar.held ? "now" : clock(bar.to)] },
      { label: "in the window", values: [lasted(bar.to - bar.from)] },
    ];
    if (!bar.mine) return tip("another project's job", rows);
    const phases = bar.mine.phases;
    const now = bar.held && phases.length ? [{ label: "does", values: [phases.at(-1)[1]] }] : [];
    return tip(`${bar.mine.name}: click to open it`, [{ label: "project", values: [bar.mine.project] }, { label: "attempt", values: [bar.attempt] }, ...rows, ...now]);
  };
}

function labelled(rows, width) {
  const short = width < 480;
  return rows.map((row) => (row.first ? `{node|${short ? row.node.slice(0, 8) : row.node}}  ${row.label}` : row.label));
}

function option(data, width) {
  const colours = palette();
  const [rows, bars, strips] = [rowsOf(data, data.nodes), barsOf(data), stripsOf(data)];
  const inks = new Map([...projectColours(data)].map(([name, color]) => [name, colours.series[color - 1]]));
  const labels = labelled(rows, width);
  const text = { color: colours.text, fontSize: SMALL };
  const axisLabel = { ...text, interval: 0, margin: 8, rich: { node: { color: colours.ink, fontSize: SMALL, fontWeight: 600 } } };
  return {
    ...plotFrame(),
    grid: { left: width < 480 ? 84 : 104, right: rows.some((row) => row.gauge) ? GAUGE + 4 : 18, top: TOP, height: rows.length * ROW, outerBoundsMode: "none" },
    xAxis: {
      type: "time", min: Date.parse(data.since), max: Date.parse(data.until), splitNumber: width < 480 ? 3 : 8,
      axisLabel: { ...text, hideOverlap: true, formatter: clock }, axisLine: { lineStyle: { color: colours.strong } }, splitLine: { show: true, lineStyle: { color: colours.line } },
    },
    yAxis: { type: "category", inverse: true, data: labels.map((_, i) => i), axisLabel: { ...axisLabel, formatter: (i) => labels[i] }, axisTick: { show: false }, axisLine: { show: false } },
    tooltip: { trigger: "item", ...tooltipStyle(colours, tooltip(bars, data)) },
    series: [laneSeries(rows, data, colours), barSeries(data, bars, colours, hatch(colours.strong), inks), stripSeries(strips, colours)],
  };
}

function explain(data) {
  const item = (name, color, mark) => make("li", {}, make("i", { className: color ? `${mark} c${color}` : mark }), name);
  const others = data.lanes.some((lane) => lane.spans.some((span) => span.attempt === null));
  const colours = data.phases
    ? ACTIVITIES.map(({ name, color }) => item(name, color, "strip"))
    : [...projectColours(data)].map(([name, color]) => item(name, color, "fill"));
  legend.replaceChildren(...colours, ...(others ? [item("another project", 0, "hatched")] : []));
  legend.hidden = false;
}

// The plot; a click on a bar opens its job.
function opened(echarts, newest) {
  const plot = echarts.init(place, null, { renderer: "canvas" });
  plot.on("click", { seriesId: "bars" }, ({ dataIndex }) => {
    const job = barsOf(newest())[dataIndex].mine?.job;
    if (job) location.assign(`${root}jobs/${encodeURIComponent(job)}`);
  });
  return plot;
}

async function start() {
  const echarts = await import(document.getElementById("cluster-script").dataset.echarts);
  let plot = null;
  let data = null;
  function draw() {
    if (!data) return;
    place.style.height = `${TOP + data.lanes.length * ROW + BOTTOM}px`;
    plot ??= opened(echarts, () => data);
    plot.resize();
    plot.setOption(option(data, place.clientWidth), { notMerge: true });
    place.dataset.drawn = "";
  }
  async function renew() {
    if (document.hidden) return;
    try {
      data = await ask();
      dispatchEvent(new Event("connection:back"));
    } catch {
      dispatchEvent(new Event("connection:lost"));
      return;
    }
    explain(data);
    draw();
  }
  await renew();
  setInterval(renew, EVERY_MS);
  onReturn(renew);
  document.addEventListener("themechange", draw);
  new ResizeObserver(draw).observe(place.parentElement);
}

// A table that somebody has opened stays open when it is fetched anew.
let open = false;
document.addEventListener("toggle", (event) => {
  if (event.target.id === "lanes-table") open = event.target.open;
}, { capture: true });
document.addEventListener("htmx:afterSwap", () => {
  const table = document.getElementById("lanes-table");
  if (table && open) table.open = true;
});

if (place) start();
