// What all plots share: colours, axes, the tooltip and its elements. No numbers of a job.
import { percentTick, tick } from "./format.js";

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "popoverTargetAction") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function palette() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    series: [1, 2, 3, 4, 5, 6, 7, 8, 9].map((n) => read(`--s${n}`)),
    line: read("--line"),
    strong: read("--line-strong"),
    ink: read("--text"),
    text: read("--text-2"),
    raised: read("--bg-raised"),
  };
}

// Background and text colour of CSS classes, as the theme resolves them.
export function classColours(names) {
  const probe = make("i");
  document.body.append(probe);
  const found = names.map((name) => {
    probe.className = name;
    const { backgroundColor, color } = getComputedStyle(probe);
    return { fill: backgroundColor, ink: color };
  });
  probe.remove();
  return found;
}

export const SMALL = 11; // pixels of text in a plot

// A run's steps, each a column from half a step before it to half a step after.
export function stepAxis(colours, view, more = {}) {
  return {
    type: "value",
    min: view.from - 0.5,
    max: view.to + 0.5,
    minInterval: 1,
    name: "step",
    nameLocation: "middle",
    nameGap: 20,
    nameTextStyle: { color: colours.text, fontSize: SMALL },
    axisLabel: { color: colours.text, fontSize: SMALL, hideOverlap: true, formatter: (x) => (Number.isInteger(x) ? tick(x) : "") },
    axisLine: { lineStyle: { color: colours.strong }, onZero: false },
    axisTick: { show: false },
    splitLine: { show: false },
    ...more,
  };
}

// y: { min, max }: ends the axis keeps while the data is within them; `share`: 0 to 1, read as percentages, and never
// drawn above 100 %. Outside its ends, ECharts chooses round numbers.
export function valueAxis(colours, y = {}, title = "", more = {}) {
  const { share } = y;
  const ends = share ? { min: 0, ...y } : y;
  const axis = {
    type: "value",
    scale: true,
    splitNumber: 4,
    name: title,
    nameLocation: "middle",
    nameRotate: 90,
    nameTextStyle: { color: colours.text, fontSize: SMALL },
    axisLabel: { color: colours.text, fontSize: SMALL, formatter: share ? percentTick : tick },
    splitLine: { lineStyle: { color: colours.line } },
    ...more,
  };
  if (ends.min === 0 && (share || ends.max === 1)) axis.splitNumber = 5; // fifths end at 1, thirds don't
  if (ends.min !== undefined) axis.min = (data) => (data.min < ends.min ? null : ends.min);
  const most = share ? 1 : ends.max;
  const always = ends.max !== undefined;
  if (most !== undefined) axis.max = (data) => (data.max > most || (!always && data.max <= 0.6 * most) ? null : most);
  return axis;
}

// Where an axis of p starts, in whole ticks below 1, and the distance of its ticks.
export function exponentScale(lowest) {
  const interval = lowest < 0.5 ? 0.2 : 0.1;
  const ticks = Math.max(1, Math.ceil((1 - lowest) / interval - 1e-9));
  return { min: +(1 - ticks * interval).toFixed(1), max: 1, interval };
}

export function plotFrame() {
  return { animation: false, textStyle: { fontFamily: getComputedStyle(document.body).fontFamily } };
}

export const GRID = { left: 22, right: 12, top: 14, bottom: 24, outerBoundsMode: "same", outerBoundsContain: "axisLabel" };

export function tooltipStyle(colours, formatter) {
  return {
    confine: true,
    transitionDuration: 0,
    backgroundColor: colours.raised,
    borderColor: colours.strong,
    padding: [7, 10],
    formatter,
  };
}

// rows: [{ mark: CSS class or null, label, values: [text] }]. Built from elements: the content-security policy allows
// no inline styles in HTML text.
export function tip(heading, rows) {
  const table = make("table");
  for (const { mark, label, values } of rows) {
    const row = table.insertRow();
    const name = row.insertCell();
    if (mark) name.append(make("i", { className: mark }));
    name.append(label);
    for (const value of values) row.insertCell().textContent = value;
  }
  return make("div", { className: "tip" }, make("p", { textContent: heading }), table);
}

// Diagonal lines: a place without a value.
export function hatch(colour) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.globalAlpha = 0.45;
  pen.lineWidth = 1;
  for (const shift of [-6, 0, 6]) {
    pen.moveTo(shift, 6);
    pen.lineTo(shift + 6, 0);
  }
  pen.stroke();
  return { image: tile, repeat: "repeat" };
}
