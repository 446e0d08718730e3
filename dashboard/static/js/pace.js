// Announces events at most once per period: the first at once, and again at the end of its period.
//
// The second announcement makes sure that the last event counts: a listener may have reacted to the first before the
// event's numbers were there, or may not have listened, like an element that is just being replaced.
export function paced(tell, periodMs) {
  const open = new Map(); // running periods by name: announce at the end?
  const begin = (name, again) => {
    tell(name);
    open.set(name, again);
    setTimeout(() => end(name), periodMs(name));
  };
  const end = (name) => {
    const again = open.get(name);
    open.delete(name);
    if (again) begin(name, false);
  };
  return (name) => {
    if (open.has(name)) open.set(name, true);
    else begin(name, true);
  };
}
