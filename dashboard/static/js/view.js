// What is shown of the charts is in the page's address, so that a link or a reload shows the same.
export function readView(search = location.search) {
  const query = new URLSearchParams(search);
  const from = Number(query.get("from") ?? 0);
  const to = query.has("to") ? Number(query.get("to")) : Infinity;
  const zoomed = (query.has("from") || query.has("to")) && from >= 0 && to >= from;
  return { zoom: zoomed ? [from, to] : null, smoothed: query.has("smooth"), tables: query.has("tables") };
}

// The query for a view; "" for the whole run, plain.
export function viewQuery({ zoom, smoothed, tables }) {
  const query = new URLSearchParams();
  if (zoom) {
    query.set("from", +zoom[0].toFixed(2));
    if (Number.isFinite(zoom[1])) query.set("to", +zoom[1].toFixed(2));
  }
  if (smoothed) query.set("smooth", "1");
  if (tables) query.set("tables", "1");
  return query.size ? `?${query}` : "";
}

// Into the address, and into the tabs that show charts.
export function writeView(view) {
  const query = viewQuery(view);
  history.replaceState(history.state, "", location.pathname + query + location.hash);
  for (const tab of document.querySelectorAll("a[data-keeps-view]")) tab.search = query;
}
