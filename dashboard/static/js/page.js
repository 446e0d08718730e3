// What every page does beyond plain links and forms. Everything also works without it.
import { watchConnection } from "./connection.js";
import { followEnding } from "./ending.js";
import { guardForms } from "./sending.js";

const system = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  return document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
}

function labelToggle(button) {
  const next = theme() === "dark" ? "light" : "dark";
  button.textContent = next === "dark" ? "Dark" : "Light";
  button.setAttribute("aria-label", `Switch to the ${next} theme`);
}

function setUpTheme() {
  const button = document.querySelector("[data-theme-toggle]");
  button.hidden = false;
  labelToggle(button);
  button.addEventListener("click", () => {
    const next = theme() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("theme", next);
    } catch {
      // then the choice lasts for this page only
    }
    labelToggle(button);
    document.dispatchEvent(new CustomEvent("themechange"));
  });
  system.addEventListener("change", () => {
    labelToggle(button);
    document.dispatchEvent(new CustomEvent("themechange"));
  });
}

// Delegated, because htmx swaps parts of pages.
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-confirm]");
  if (opener) {
    const dialog = document.getElementById(opener.dataset.confirm);
    if (dialog) {
      event.preventDefault();
      dialog.showModal();
    }
  }
  if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
});

// An open dialog must not be swapped away.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target.querySelector?.("dialog[open]")) event.detail.shouldSwap = false;
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submits]")) event.target.form.requestSubmit();
  if (event.target.matches("[data-goes]")) {
    location.assign(event.target.form.dataset.stepper + event.target.value + location.search);
  }
});

// A log scrolled to its end stays at its end.
function followLog(log) {
  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  let follow = true;
  log.addEventListener("scroll", () => { follow = atEnd(); });
  new MutationObserver(() => { if (follow) log.scrollTop = log.scrollHeight; }).observe(log, { childList: true, subtree: true });
  log.scrollTop = log.scrollHeight;
}

setUpTheme();
watchConnection();
followEnding();
guardForms();
document.querySelectorAll("[data-follow]").forEach(followLog);
document.querySelector("[data-submit-now]")?.requestSubmit();
