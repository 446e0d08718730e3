// Loaded before the first paint, so that the theme does not flash. Follows the system unless one was chosen.
"use strict";
try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // storage can be disabled: then use the system's theme
}
