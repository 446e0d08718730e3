// One chart on the page: title, what it says in words, legend with the newest values, plot or table.
//
// A figure (lines.js, exponent_plot.js, ...) knows its numbers: names(store), read(page, width) -> data, empty(data),
// nothing(data): why it is empty, sentence(data), legend(data), option(data, page) -> ECharts options (or null: no
// plot), table(data), height(data).
import { number } from "./format.js";
import { make } from "./plot.js";

const DOUBLE_CLICK_MS = 300;

function aboutBox(figure, metrics) {
  const list = make("dl");
  for (const series of figure.series) {
    const info = metrics[series.name] ?? { meaning: "", unit: "" };
    list.append(
      make("dt", {}, series.label, make("code", { textContent: series.name })),
      make("dd", { textContent: `${info.meaning}${info.unit ? ` (${info.unit})` : ""}` }),
    );
  }
  return make("div", { className: "about", id: `about-${figure.id}`, popover: "auto" }, make("strong", { textContent: figure.title }), list);
}

function words(parts) {
  return parts.map((part) => (typeof part === "string" ? part : make("strong", { textContent: part.strong })));
}

function plain(parts) {
  return parts.map((part) => (typeof part === "string" ? part : part.strong)).join("");
}

function shown(item) {
  return item.share && item.newest.value !== undefined ? `${number(100 * item.newest.value)} %` : number(item.newest.value);
}

export class Card {
  #plot = null;
  #data = null;
  #stale = true;
  #visible = false;

  // page: { store, pairs, metrics, job, view, echarts, loaded, want, zoomTo, stepAddress, behind }
  constructor(figure, page) {
    this.figure = figure;
    this.page = page;
    this.plotted = Boolean(figure.option && page.echarts);
    this.tabular = !this.plotted || page.view.tables;
    this.sentence = make("p", { className: "sentence" });
    this.legend = make("ul", { className: "legend" });
    this.canvas = make("div", { className: "plot", role: "img", ariaLabel: figure.title });
    this.nothing = make("p", { className: "nothing", textContent: "Loading…" });
    this.table = make("div", { className: "data", hidden: true, tabIndex: 0, role: "region", ariaLabel: `${figure.title}: numbers` });
    this.toggle = make("button", { type: "button", textContent: "Table", className: "quiet", ariaPressed: String(this.tabular) });
    this.toggle.setAttribute("aria-label", `${figure.title} as a table`);
    this.toggle.addEventListener("click", () => this.showTable(!this.tabular));
    this.toggle.hidden = !this.plotted;
    const info = make("button", { type: "button", textContent: "?", className: "quiet" });
    info.setAttribute("popovertarget", `about-${figure.id}`);
    info.setAttribute("aria-label", `What ${figure.title} shows`);
    info.hidden = !figure.series.length;
    const title = make("h4", { textContent: figure.title, id: `title-${figure.id}` });
    this.root = make(
      "article",
      { className: figure.size ? `chart ${figure.size}` : "chart", id: `chart-${figure.id}` },
      make("div", { className: "chart-head" }, title, info, this.toggle),
      this.sentence, this.legend, this.canvas, this.nothing, this.table, aboutBox(figure, page.metrics),
    );
    this.root.setAttribute("aria-labelledby", title.id);
    if (this.plotted && !figure.still) this.#listenForZoom();
  }

  // Only what is on screen is fetched and drawn, and a card without data is hidden once that is known.
  see(visible) {
    this.#visible = visible;
    if (visible && this.#stale) this.draw();
  }

  showTable(tabular) {
    if (!this.plotted) return;
    this.tabular = tabular;
    this.toggle.setAttribute("aria-pressed", String(tabular));
    this.draw();
  }

  draw() {
    const { figure, page } = this;
    this.#stale = true;
    delete this.root.dataset.drawn;
    const names = figure.names(page.store);
    if (page.loaded(names)) this.root.hidden = names.length > 0 && names.every((name) => !page.store.points(name).length);
    if (!this.#visible || this.root.hidden) return;
    if (!page.want(names)) return; // drawn again when they are here
    this.#data = figure.read(page, this.root.clientWidth - 26);
    const empty = figure.empty(this.#data);
    const sentence = figure.sentence(this.#data);
    this.sentence.hidden = empty || !sentence.length;
    this.sentence.replaceChildren(...words(sentence));
    this.nothing.hidden = !empty;
    this.nothing.textContent = figure.nothing?.(this.#data) ?? (page.job.final ? "No numbers." : "No numbers yet.");
    this.table.hidden = !this.tabular || empty || !figure.table;
    this.canvas.hidden = this.tabular || empty || !this.plotted;
    this.#drawLegend(empty);
    if (!this.table.hidden) this.#drawTable();
    if (!this.canvas.hidden) this.#drawPlot(sentence);
    this.#stale = false;
    this.root.dataset.drawn = "true";
  }

  resize() {
    if (this.#visible && !this.canvas.hidden) this.draw();
  }

  // Values that are not of the newest step say of which step they are, and how many trajectories are behind them.
  #drawLegend(empty) {
    const items = empty && this.figure.option ? [] : this.figure.legend(this.#data);
    this.legend.hidden = !items.length;
    const steps = new Set(items.map((item) => item.newest?.step).filter((step) => step !== undefined));
    const whose = (step) => [`step ${step}`, this.figure.behind ? this.page.behind(step) : ""].filter(Boolean).join(": ");
    const children = items.map((item) => {
      const parts = item.mark ? [make("i", { className: item.mark, ariaHidden: "true" })] : [];
      parts.push(`${item.label} `);
      if (item.newest) parts.push(make("b", { textContent: shown(item) }));
      if (steps.size > 1 && item.newest?.step !== undefined) parts.push(make("span", { className: "when", textContent: whose(item.newest.step) }));
      return make("li", {}, ...parts);
    });
    if (steps.size === 1) children.push(make("li", { className: "when", textContent: whose([...steps][0]) }));
    this.legend.replaceChildren(...children);
  }

  #drawPlot(sentence) {
    const height = this.figure.height?.(this.#data);
    if (height) this.canvas.style.height = `${height}px`;
    if (!this.#plot) this.#plot = this.page.echarts.init(this.canvas, null, { renderer: "canvas" });
    this.#plot.resize();
    this.#plot.setOption(this.figure.option(this.#data, this.page), { notMerge: true });
    const newest = this.figure.legend(this.#data).filter((item) => item.newest?.step !== undefined);
    const said = newest.map((item) => `${item.label} ${shown(item)} in step ${item.newest.step}`);
    const parts = [`${this.figure.title}.`, plain(sentence), said.length ? `Newest: ${said.join("; ")}.` : "", "The table has all numbers."];
    this.canvas.setAttribute("aria-label", parts.filter(Boolean).join(" "));
  }

  // Newest step first, if rows are steps.
  #drawTable() {
    const { head, rows, first = "Step", warned } = this.figure.table(this.#data);
    const byStep = first === "Step";
    const table = make("table");
    const titles = first === null ? head : [first, ...head];
    table.createTHead().insertRow().append(...titles.map((text) => make("th", { scope: "col", textContent: text })));
    const body = table.createTBody();
    for (const [key, cells] of byStep ? [...rows].sort(([a], [b]) => b - a) : rows) {
      const row = body.insertRow();
      if (byStep) row.append(make("th", { scope: "row" }, make("a", { href: this.#address(key), textContent: `${key}` })));
      else if (first !== null) row.append(make("th", { scope: "row", textContent: key }));
      for (const cell of cells) row.insertCell().textContent = cell;
      if (warned?.(cells)) row.className = "happened";
    }
    this.table.replaceChildren(table);
  }

  #address(step) {
    return this.page.stepAddress(step) + (this.figure.stepQuery ?? "");
  }

  #stepAt(pixel) {
    return Math.round(this.#plot.convertFromPixel({ xAxisIndex: 0 }, pixel));
  }

  // Dragging across a plot zooms all charts to those steps. A double click shows everything again, a click opens
  // the nearest step.
  #listenForZoom() {
    let start = null;
    let opening = null;
    const mark = make("div", { className: "selection", hidden: true });
    const xOf = (event) => event.clientX - this.canvas.getBoundingClientRect().left;
    const inside = (step) => Math.min(Math.max(step, this.page.view.from), this.page.view.to);
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
        const step = inside(this.#stepAt(left));
        opening = setTimeout(() => location.assign(this.#address(step)), DOUBLE_CLICK_MS);
        return;
      }
      this.page.zoomTo(...[left, right].map((x) => inside(this.#stepAt(x))));
    });
    this.canvas.addEventListener("dblclick", () => {
      clearTimeout(opening);
      this.page.zoomTo(null, null);
    });
  }
}
