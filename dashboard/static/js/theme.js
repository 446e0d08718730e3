// Loaded before the first paint, so that a chosen theme never flashes: follows the system unless chosen otherwise.
"use strict";
try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // storage can be forbidden: then the system's theme it is
}
