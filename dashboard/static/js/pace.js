// Tells of events at most once a period: the first at once, and at the end of its period once more.
//
// The second telling is what makes the last event count. Whoever was told of the first may have looked before the
// event's numbers were there, or may not have listened, as an element that is being replaced does not.
export function paced(tell, periodMs) {
  const open = new Map(); // the periods that run, by name: is it to be told at their end?
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
