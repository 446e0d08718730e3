// Says since when the page is out of touch with the server. Parts of pages are fetched again and again (htmx) and a
// job's events are followed (job.js): whichever fails first tells, whichever works again takes it back.
import { onReturn } from "./returning.js";

const notice = document.getElementById("connection");
let answered = new Date();

function back() {
  answered = new Date();
  notice.hidden = true;
}

function lost() {
  if (!notice.hidden) return;
  notice.querySelector("time").textContent = answered.toLocaleTimeString("en-GB");
  notice.hidden = false;
}

export function watchConnection() {
  // The parts' own timers may be a minute away.
  onReturn(() => { if (!notice.hidden) document.body.dispatchEvent(new CustomEvent("connection:look")); });
  for (const name of ["htmx:sendError", "htmx:timeout", "connection:lost", "offline"]) addEventListener(name, lost);
  for (const name of ["htmx:beforeOnLoad", "connection:back"]) {
    addEventListener(name, (event) => {
      const status = event.detail?.xhr?.status ?? 200;
      if (status === 502 || status === 503 || status === 504) lost();
      else back();
    });
  }
}
