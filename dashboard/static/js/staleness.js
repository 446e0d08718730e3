// p, effective sample size and clip fraction by staleness. The server re-renders this part as steps come in.
import { number, tick } from "./format.js";

const SERIES = [
  { label: "p, mean", color: 1, of: (row) => row.last.p },
  { label: "p, 10 %", color: 4, dashed: true, of: (row) => row.last.p_q10 },
  { label: "p, 90 %", color: 6, dashed: true, of: (row) => row.last.p_q90 },
  { label: "N(p)", color: 3, of: (row) => row.last.ess },
  { label: "N(1)", color: 7, of: (row) => row.last.ess_at_1 },
  { label: "clipped", color: 2, of: (row) => row.last.clip_fraction },
];

function palette() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

// Built from elements: the content-security policy allows no inline styles in HTML text.
function tooltip(rows, [{ dataIndex }]) {
  const row = rows[dataIndex];
  const box = document.createElement("div");
  box.className = "tip";
  const heading = document.createElement("p");
  heading.textContent = `staleness ${row.staleness}: ${number(row.trajectories)} trajectories`;
  const table = document.createElement("table");
  for (const series of SERIES) {
    const line = table.insertRow();
    const name = line.insertCell();
    const mark = document.createElement("i");
    mark.className = `c${series.color}`;
    name.append(mark, series.label);
    line.insertCell().textContent = number(series.of(row));
  }
  box.append(heading, table);
  return box;
}

function option(rows) {
  const colour = palette();
  const text = { color: colour("text-2"), fontSize: 11 };
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    grid: { left: 48, right: 16, top: 12, bottom: 40 },
    xAxis: {
      type: "category",
      data: rows.map((row) => `${row.staleness}`),
      name: "staleness, in weight versions",
      nameLocation: "middle",
      nameGap: 24,
      nameTextStyle: text,
      axisLabel: text,
      axisLine: { lineStyle: { color: colour("line-strong") } },
    },
    yAxis: {
      type: "value",
      min: ({ min }) => (min < 0 ? null : 0),
      max: ({ max }) => (max > 1 ? null : 1),
      name: "p, share",
      nameLocation: "middle",
      nameGap: 28,
      nameTextStyle: text,
      axisLabel: { ...text, formatter: tick },
      splitLine: { lineStyle: { color: colour("line") } },
    },
    tooltip: {
      trigger: "axis",
      confine: true,
      transitionDuration: 0,
      backgroundColor: colour("bg-raised"),
      borderColor: colour("line-strong"),
      formatter: (hovered) => tooltip(rows, hovered),
    },
    series: SERIES.map((series) => ({
      type: "line",
      id: series.label,
      name: series.label,
      data: rows.map(series.of),
      color: colour(`s${series.color}`),
      symbol: "circle",
      symbolSize: series.dashed ? 4 : 7,
      lineStyle: { width: series.dashed ? 1.2 : 1.8, type: series.dashed ? "dashed" : "solid" },
      emphasis: { disabled: true },
    })),
  };
}

const echarts = await import(document.getElementById("staleness-script").dataset.echarts);
let plot = null;
let data = null; // the element that `plot` shows

// ECharts gets an element without an id: htmx copies the styles of elements with one, which the policy forbids.
function draw() {
  if (data !== document.getElementById("staleness-data")) {
    plot?.dispose();
    data = document.getElementById("staleness-data");
    const canvas = document.createElement("div");
    canvas.className = "plot";
    document.getElementById("staleness-plot")?.replaceChildren(canvas);
    plot = data && echarts.init(canvas, null, { renderer: "canvas" });
  }
  plot?.setOption(option(JSON.parse(data.textContent).rows), { notMerge: true });
}

draw();
document.body.addEventListener("htmx:afterSettle", () => {
  if (data !== document.getElementById("staleness-data")) draw();
});
addEventListener("resize", () => plot?.resize());
document.addEventListener("themechange", draw);
