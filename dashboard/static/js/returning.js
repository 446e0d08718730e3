// A page that nobody sees asks rarely or not at all, and a browser without a network in vain: when a page is seen again,
// or the network is back, `look` asks at once.
export function onReturn(look) {
  const seen = () => { if (!document.hidden) look(); };
  document.addEventListener("visibilitychange", seen);
  for (const name of ["focus", "online"]) addEventListener(name, seen);
}
