// The toolbar above the charts: which steps, smoothing, tables. What is chosen is in the page's address.
import { range } from "./steps.js";

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
  Object.assign(input, { type: "number", min: "0", step: "1", name, autocomplete: "off" });
  label.append(text, input);
  return [label, input];
}

// change({ zoom | smoothed | tables }) draws and keeps the address. Returns { zoomTo(from, to) }, whole steps or null.
export function buildTools(view, plots, change, showTables) {
  const tools = document.getElementById("chart-tools");
  const [fromLabel, from] = stepInput("from", "Steps");
  const [toLabel, to] = stepInput("to", "to");
  const reset = button("Whole run", null, () => zoomTo(null, null));
  const show = () => {
    from.value = view.zoom?.from ?? "";
    to.value = view.zoom?.to ?? "";
    reset.disabled = !view.zoom;
  };
  const zoomTo = (first, last) => {
    change({ zoom: range(first, last) });
    show();
  };
  const typed = (input) => (input.value === "" ? null : Number(input.value));
  for (const input of [from, to]) input.addEventListener("change", () => zoomTo(typed(from), typed(to)));
  show();
  tools.append(fromLabel, toLabel, reset);
  if (plots) {
    const toggle = (text, name, also) =>
      button(text, view[name], (made) => {
        const value = !view[name];
        made.setAttribute("aria-pressed", String(value));
        change({ [name]: value });
        also?.(value);
      });
    tools.append(toggle("Smooth", "smoothed"), toggle("Tables", "tables", showTables));
  }
  return { zoomTo };
}
