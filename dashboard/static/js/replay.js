// Recorded p against replayed p: one point per trajectory and update; on the diagonal nothing changed.
import { number, tick } from "./format.js";

const data = JSON.parse(document.getElementById("replay-data").textContent);

function palette() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { point: read("--s1"), line: read("--line"), strong: read("--line-strong"), text: read("--text-2"), raised: read("--bg-raised") };
}

// Built from elements: the content-security policy allows no inline styles in HTML text.
function tooltip({ value: [recorded, replayed, trajectory, update] }) {
  const box = document.createElement("div");
  box.className = "tip";
  const heading = document.createElement("p");
  heading.textContent = `trajectory ${trajectory}, update ${update}`;
  const numbers = document.createElement("span");
  numbers.textContent = `${number(recorded)} → ${number(replayed)}`;
  box.append(heading, numbers);
  return box;
}

function axis(name, colours, min, max) {
  return {
    type: "value",
    name,
    nameLocation: "middle",
    nameGap: 26,
    min,
    max,
    nameTextStyle: { color: colours.text },
    axisLabel: { color: colours.text, fontSize: 11, formatter: tick },
    axisLine: { lineStyle: { color: colours.strong } },
    splitLine: { lineStyle: { color: colours.line } },
  };
}

function option() {
  const colours = palette();
  const all = data.points.flatMap(([before, after]) => [before, after]);
  const [min, max] = [all.reduce((a, b) => Math.min(a, b), 0), all.reduce((a, b) => Math.max(a, b), 1)];
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    grid: { left: 52, right: 16, top: 12, bottom: 44 },
    xAxis: axis(`p under ${data.recorded}, recorded`, colours, min, max),
    yAxis: axis(`p under ${data.replayed}`, colours, min, max),
    tooltip: { trigger: "item", confine: true, transitionDuration: 0, backgroundColor: colours.raised, borderColor: colours.strong, formatter: tooltip },
    series: [
      { type: "line", data: [[min, min], [max, max]], silent: true, showSymbol: false, color: colours.strong, lineStyle: { width: 1, type: "dashed" }, tooltip: { show: false } },
      { type: "scatter", data: data.points, symbolSize: 7, itemStyle: { color: colours.point, opacity: 0.6 } },
    ],
  };
}

const echarts = await import(document.getElementById("replay-script").dataset.echarts);
const plot = echarts.init(document.getElementById("replay-plot"), null, { renderer: "canvas" });
plot.setOption(option());
addEventListener("resize", () => plot.resize());
document.addEventListener("themechange", () => plot.setOption(option(), { notMerge: true }));
