// A form goes out only while the server answers: sent to one that is down, it would give way to the browser's own error
// page, and what was typed would be lost.
import { root } from "./root.js";

const DEADLINE_MS = 10_000;
const AGAIN_MS = 2000;
const checked = new WeakSet(); // forms that go out now
const asking = new WeakSet(); // forms whose server is being asked
const notice = document.getElementById("unsent");
let waiting = null;

async function answers() {
  try {
    const answer = await fetch(`${root}healthz`, { cache: "no-store", signal: AbortSignal.timeout(DEADLINE_MS) });
    return ![502, 503, 504].includes(answer.status); // a proxy's word for a server that is down
  } catch {
    return false;
  }
}

// Says so where it is seen and covers nothing: at the form's buttons, or above the page for forms of one line.
function tell(form) {
  const buttons = form.querySelector(".actions");
  if (buttons) buttons.before(notice);
  else document.getElementById("main").prepend(notice);
  notice.hidden = true;
  notice.textContent = "Not sent: the server does not answer. Your entries are kept. Try again when it is back.";
  notice.classList.remove("good");
  notice.hidden = false;
  if (buttons) notice.scrollIntoView({ block: "nearest" });
  waiting ??= setInterval(async () => {
    if (document.hidden || !(await answers())) return;
    clearInterval(waiting);
    waiting = null;
    notice.textContent = "The server answers again: send it now.";
    notice.classList.add("good");
  }, AGAIN_MS);
}

export function guardForms() {
  addEventListener("submit", async (event) => {
    const { target: form, submitter } = event;
    if (event.defaultPrevented || form.method !== "post" || checked.delete(form)) return;
    event.preventDefault();
    if (asking.has(form)) return;
    asking.add(form);
    const possible = await answers();
    asking.delete(form);
    if (!possible) return tell(form);
    checked.add(form);
    form.requestSubmit(submitter);
  });
}
