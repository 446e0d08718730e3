// One chart on the page: title, legend with the newest values, plot or table.
import { number } from "./format.js";
import { chartData, plotOption, stepName } from "./plot.js";

const DOUBLE_CLICK_MS = 300;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "popoverTargetAction") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function lastValue(points) {
  return points.length ? points[points.length - 1] : null;
}

function swatch(series) {
  const shape = { dashed: "dashed", marks: "dots", stack: "fill" }[series.style] ?? "";
  return make("i", { className: `c${series.color} ${shape}`, ariaHidden: "true" });
}

function aboutBox(chart, metrics) {
  const list = make("dl");
  for (const series of chart.series) {
    const info = metrics[series.name] ?? { meaning: "", unit: "" };
    list.append(
      make("dt", {}, series.label, make("code", { textContent: series.name })),
      make("dd", { textContent: `${info.meaning}${info.unit ? ` (${info.unit})` : ""}` }),
    );
  }
  return make("div", { className: "about", id: `about-${chart.id}`, popover: "auto" }, make("strong", { textContent: chart.title }), list);
}

export class Card {
  #plot = null;
  #data = [];

  // page: { store, metrics, view, echarts, zoomTo, final, stepAddress }
  constructor(chart, page) {
    this.chart = chart;
    this.page = page;
    this.tabular = Boolean(chart.counters) || !page.echarts;
    this.legend = make("ul", { className: "legend" });
    this.canvas = make("div", { className: "plot", role: "img" });
    this.nothing = make("p", { className: "nothing", textContent: page.final ? "No numbers." : "No numbers yet." });
    this.table = make("div", { className: "data", tabIndex: 0, role: "region", ariaLabel: `${chart.title}: numbers` });
    this.toggle = make("button", { type: "button", textContent: "Table", className: "quiet", ariaPressed: "false" });
    this.toggle.setAttribute("aria-label", `${chart.title} as a table`);
    this.toggle.addEventListener("click", () => this.showTable(!this.tabular));
    this.toggle.hidden = this.tabular;
    const info = make("button", { type: "button", textContent: "?", className: "quiet" });
    info.setAttribute("popovertarget", `about-${chart.id}`);
    info.setAttribute("aria-label", `What ${chart.title} shows`);
    const title = make("h4", { textContent: chart.title, id: `title-${chart.id}` });
    this.root = make(
      "article",
      { className: chart.half ? "chart half" : "chart", id: `chart-${chart.id}` },
      make("div", { className: "chart-head" }, title, info, this.toggle),
      this.legend, this.canvas, this.nothing, this.table, aboutBox(chart, page.metrics),
    );
    this.root.setAttribute("aria-labelledby", title.id);
    if (page.echarts) this.#listenForZoom();
  }

  showTable(tabular) {
    if (this.chart.counters || !this.page.echarts) return;
    this.tabular = tabular;
    this.toggle.setAttribute("aria-pressed", String(tabular));
    this.draw();
  }

  draw() {
    const { store, view } = this.page;
    this.#data = chartData(this.chart, store, view.updatesPerStep, view.zoom);
    const empty = this.#data.every((entry) => entry.points.length === 0);
    this.root.hidden = this.chart.series.every((series) => store.points(series.name).length === 0);
    this.nothing.hidden = !empty || Boolean(this.chart.counters);
    this.table.hidden = !this.tabular || (empty && !this.chart.counters);
    this.canvas.hidden = this.tabular || empty;
    this.legend.hidden = Boolean(this.chart.counters);
    if (this.chart.counters) this.#drawCounters();
    else {
      this.#drawLegend();
      if (this.tabular) this.#drawTable();
      else if (!empty) this.#drawPlot();
    }
  }

  resize() {
    if (!this.canvas.hidden) this.#plot?.resize();
  }

  #drawLegend() {
    this.legend.replaceChildren(
      ...this.#data.map(({ series, points }) =>
        make("li", {}, swatch(series), `${series.label} `, make("b", { textContent: number(lastValue(points)?.value) })),
      ),
    );
  }

  #drawPlot() {
    if (!this.#plot) this.#plot = this.page.echarts.init(this.canvas, null, { renderer: "canvas" });
    this.#plot.resize();
    this.#plot.setOption(plotOption(this.chart, this.#data, this.page.view), { notMerge: true });
    const said = this.#data.filter((entry) => entry.points.length).map(({ series, points }) => `${series.label} ${number(lastValue(points).value)}`);
    this.canvas.setAttribute("aria-label", `${this.chart.title}. Newest: ${said.join("; ")}. The table has all numbers.`);
  }

  // One row per point in time, newest first; the values are those of the plot without smoothing.
  #drawTable() {
    const rows = new Map();
    this.#data.forEach(({ points }, column) => {
      for (const point of points) {
        if (!rows.has(point.x)) rows.set(point.x, { point, values: [] });
        rows.get(point.x).values[column] = point.value;
      }
    });
    const table = make("table");
    const head = table.createTHead().insertRow();
    head.append(make("th", { scope: "col", textContent: "Step" }), ...this.#data.map(({ series }) => make("th", { scope: "col", textContent: series.label })));
    const body = table.createTBody();
    for (const [, { point, values }] of [...rows].sort(([a], [b]) => b - a)) {
      const row = body.insertRow();
      const link = make("a", { href: this.page.stepAddress(point.step), textContent: stepName(point) });
      row.append(make("th", { scope: "row" }, link));
      this.#data.forEach((_, column) => { row.insertCell().textContent = column in values ? number(values[column]) : ""; });
    }
    this.table.replaceChildren(table);
  }

  #drawCounters() {
    const table = make("table");
    const head = table.createTHead().insertRow();
    head.append(...["Counter", "Last step", "Highest"].map((text) => make("th", { scope: "col", textContent: text })));
    const body = table.createTBody();
    for (const { series, points } of this.#data) {
      const row = body.insertRow();
      row.append(make("th", { scope: "row", textContent: series.label }));
      const highest = points.reduce((most, point) => Math.max(most, point.high ?? point.value ?? 0), 0);
      row.insertCell().textContent = number(lastValue(points)?.value);
      row.insertCell().textContent = points.length ? number(highest) : "–";
      if (highest > 0) row.className = "happened";
    }
    this.table.replaceChildren(table);
  }

  // The step of the drawn point nearest to a horizontal pixel position.
  #stepAt(pixel) {
    const x = this.#plot.convertFromPixel({ xAxisIndex: 0 }, pixel);
    const distance = (point) => Math.abs(point.x - x);
    const points = this.#data.flatMap((entry) => entry.points);
    return points.reduce((best, point) => (distance(point) < distance(best) ? point : best)).step;
  }

  // Dragging across a plot zooms all charts to those steps. A double click shows everything again, a click opens
  // the nearest step.
  #listenForZoom() {
    let start = null;
    let opening = null;
    const mark = make("div", { className: "selection", hidden: true });
    const xOf = (event) => event.clientX - this.canvas.getBoundingClientRect().left;
    const stop = () => { start = null; mark.hidden = true; };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button !== 0) return;
      start = xOf(event);
      this.canvas.append(mark);
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (start === null) return;
      const [left, right] = [start, xOf(event)].sort((a, b) => a - b);
      mark.hidden = right - left < 6;
      mark.style.left = `${left}px`;
      mark.style.width = `${right - left}px`;
    });
    this.canvas.addEventListener("pointercancel", stop);
    this.canvas.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const [left, right] = [start, xOf(event)].sort((a, b) => a - b);
      stop();
      if (!this.#plot) return;
      clearTimeout(opening);
      if (right - left < 6) {
        const step = this.#stepAt(left);
        opening = setTimeout(() => location.assign(this.page.stepAddress(step)), DOUBLE_CLICK_MS);
        return;
      }
      this.page.zoomTo([left, right].map((x) => this.#plot.convertFromPixel({ xAxisIndex: 0 }, x)));
    });
    this.canvas.addEventListener("dblclick", () => {
      clearTimeout(opening);
      this.page.zoomTo(null);
    });
  }
}
