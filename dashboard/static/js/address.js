// What the charts show is part of the page's address, so that a link shows the same: ?from=3&to=6&smooth=1.
import { range } from "./steps.js";

function wholeNumber(text) {
  return text !== null && /^\d{1,9}$/.test(text) ? Number(text) : null;
}

export function readView(search) {
  const query = new URLSearchParams(search);
  return {
    zoom: range(wholeNumber(query.get("from")), wholeNumber(query.get("to"))),
    smoothed: query.get("smooth") === "1",
    tables: query.get("tables") === "1",
  };
}

// The same query with the view in it; what else is there stays.
export function writeView(search, view) {
  const query = new URLSearchParams(search);
  const wanted = {
    from: view.zoom?.from ?? null,
    to: view.zoom?.to ?? null,
    smooth: view.smoothed ? 1 : null,
    tables: view.tables ? 1 : null,
  };
  for (const [name, value] of Object.entries(wanted)) {
    if (value === null) query.delete(name);
    else query.set(name, String(value));
  }
  const text = query.toString();
  return text ? `?${text}` : "";
}
