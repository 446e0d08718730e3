// The page's title follows the job's state; at its end the browser says so, where it may and was asked to.
const key = (job) => `notify:${job}`;

function asked(job) {
  try {
    return localStorage.getItem(key(job)) !== null;
  } catch {
    return false; // storage can be disabled
  }
}

function ask(job, wanted) {
  try {
    if (wanted) localStorage.setItem(key(job), "1");
    else localStorage.removeItem(key(job));
  } catch {
    // then nobody can be told
  }
}

const possible = () => "Notification" in window && isSecureContext && Notification.permission !== "denied";

function label(button) {
  button.hidden = !possible();
  button.setAttribute("aria-pressed", String(asked(button.dataset.notify) && Notification.permission === "granted"));
}

function tell({ job, state, name }) {
  if (!asked(job)) return;
  ask(job, false);
  if (possible() && Notification.permission === "granted") new Notification(`${name}: ${state}`, { tag: job });
}

let shown = null; // of the title, what the header says

function update() {
  const header = document.querySelector("[data-title]");
  if (!header) return;
  const title = header.dataset.title.replace(/\s+/g, " ").trim(); // as browsers keep titles
  if (shown !== null) document.title = document.title.replace(shown, () => title);
  shown = title;
  const button = header.querySelector("[data-notify]");
  if (button) label(button);
  else if (["finished", "failed", "cancelled"].includes(header.dataset.state)) tell(header.dataset);
}

export function followEnding() {
  update();
  addEventListener("htmx:afterSettle", update);
  addEventListener("click", async (event) => {
    const button = event.target.closest("[data-notify]");
    if (!button) return;
    const wanted = button.getAttribute("aria-pressed") !== "true";
    if (wanted && (await Notification.requestPermission()) !== "granted") return label(button);
    ask(button.dataset.notify, wanted);
    label(button);
  });
}
