// Tells of events at most once a period: the first at once, and at the end of its period once more.
//
// The second telling is what makes the last event count. Whoever was told of the first may have looked before the
// event's numbers were there, or may not have listened, as an element that is being replaced does not.
export function paced(tell, periodMs) {
  const open = new Map(); // periods: did more come in them?
  const begin = (name) => {
    tell(name);
    open.set(name, true);
    setTimeout(() => end(name), periodMs(name));
  };
  const end = (name) => {
    const more = open.get(name);
    open.delete(name);
    if (!more) return;
    tell(name);
    open.set(name, false);
    setTimeout(() => end(name), periodMs(name));
  };
  return (name) => {
    if (open.has(name)) open.set(name, true);
    else begin(name);
  };
}
